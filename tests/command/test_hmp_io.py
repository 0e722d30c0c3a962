"""The human monitor's ``qemu-io``."""

from __future__ import annotations

from qobra.block.backend import BlockBackend
from qobra.machine.machine import Machine
from qobra.qmp import hmp


def test_a_second_write_does_not_wait_for_one_that_is_held():
    machine = Machine()

    def run(line):
        with machine.control:
            return hmp.execute(machine, f'qemu-io drive "{line}"')

    with machine.control:
        backend = BlockBackend(machine.block, "drive")
        image = {"driver": "null-co", "size": 1 << 20}
        backend.insert(
            machine.block.add_node(
                {"driver": "raw", "node-name": "disk", "file": {"driver": "blkdebug", "image": image}}
            )
        )
        machine.block.backends["drive"] = backend
    assert run("break write_aio first") == ""
    assert run("aio_write 0 64k") == run("wait_break first") == ""
    assert run("write 64k 64k") == ""
    assert run("resume first") == run("aio_flush") == ""
    machine.close()
