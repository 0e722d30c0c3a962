"""Block devices as the human monitor shows them."""

from __future__ import annotations

import pytest

from qobra.block.backend import BlockBackend
from qobra.cli.img import main as make_image
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


@pytest.fixture
def machine():
    made = Machine()
    with made.control:
        made.block.add_node({"driver": "null-co", "node-name": "n0"})
        made.block.add_node({"driver": "null-co", "node-name": "n1", "size": 1 << 20})
    yield made
    made.close()


def test_an_empty_line_stands_before_every_node_but_the_first_there_is(machine):
    assert hmp.execute(machine, "info block -n n0").startswith("\r\nn0: ")
    assert hmp.execute(machine, "info block -n n1").startswith("n1: ")


def test_the_verbose_form_tells_what_the_format_has(machine, tmp_path):
    disk = str(tmp_path / "disk")
    make_image(["create", "-q", "-f", "qcow2", disk, "1M"])
    with machine.control:
        machine.block.add_node(
            {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": disk, "node-name": "f"}}
        )
    assert "Format specific information:\r\n    compat: 1.1\r\n" in hmp.execute(machine, "info block -n -v q")


@pytest.mark.parametrize(
    ("size", "answer"),
    [
        ("-1", "invalid size"),
        ("1X", "block_resize: extraneous characters at the end of line"),
        ("64MB", "block_resize: extraneous characters at the end of line"),
        ("0x40M", "Error: Cannot find device='d' nor node-name=''"),
        ("5.M", "Error: Cannot find device='d' nor node-name=''"),
        ("010", "Error: Cannot find device='d' nor node-name=''"),
        ("67108864.5b", "invalid size"),
        ("8E", "invalid size"),
        (".5G", "invalid size"),
        ('"64M"', "invalid size"),
        ("inf", "invalid size"),
    ],
)
def test_sizes(machine, size, answer):
    assert hmp.execute(machine, f"block_resize d {size}").split("\r\n")[0] == answer
