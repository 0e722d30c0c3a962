"""Block devices as the human monitor shows them."""

from __future__ import annotations

from qobra.block.backend import BlockBackend
from qobra.machine.machine import Machine
from qobra.qmp import hmp


class _Device:
    qom_path = "disk0"
    is_removable = True
    has_tray = tray_open = medium_locked = False


def test_a_device_is_shown_by_the_name_of_its_drive_else_of_its_node_else_by_its_own():
    machine = Machine()
    with machine.control:
        for name, node in (("drive0", "n0"), ("", "n1"), ("", "")):
            backend = BlockBackend(machine.block, name)
            if node:
                backend.insert(machine.block.add_node({"driver": "null-co", "node-name": node}))
            if name:
                machine.block.backends[name] = backend
            backend.attach_device(_Device())
        text = hmp.execute(machine, "info block")
        assert [line for line in text.splitlines() if line and not line.startswith(" ")] == [
            "drive0 (n0): null-co:// (null-co)",
            "n1: null-co:// (null-co)",
            "disk0: [not inserted]",
        ]
        for backend in list(machine.block.devices):
            backend.detach_device()
            backend.remove()
    machine.close()
