"""The NBD server over the human monitor, in QEMU's words."""

from __future__ import annotations

from typing import Any

import pytest

from qobra.block.backend import BlockBackend
from qobra.machine.machine import Machine
from qobra.qmp import hmp


def test_server(tmp_path: Any) -> None:
    machine = Machine()
    path = tmp_path / "nbd.sock"
    for line, answer in (
        ("nbd_server_start foo", "Error: error parsing address 'foo'\r\n"),
        (f"nbd_server_start -w unix:{path}", "Error: -w only valid together with -a\r\n"),
        ("nbd_server_stop", "Error: NBD server not running\r\n"),
        (f"nbd_server_start unix:{path}", ""),
        ("nbd_server_start localhost:0", "Error: NBD server already running\r\n"),
        ("nbd_server_add zz", "Error: Cannot find device='zz' nor node-name='zz'\r\n"),
        ("nbd_server_remove zz", "Error: Export 'zz' is not found\r\n"),
        (
            "nbd_server_add",
            'nbd_server_add: block device name expected\r\nTry "help nbd_server_add" for more information\r\n',
        ),
        ("nbd_server_stop", ""),
    ):
        assert hmp.execute(machine, line) == answer
    machine.close()


@pytest.fixture
def drive() -> Any:
    """A machine with a drive, as yet without a device."""
    machine = Machine()
    with machine.control:
        node = machine.block.add_node({"driver": "null-co", "node-name": "n", "size": 1 << 20})
        backend = BlockBackend(machine.block, "d0")
        machine.block.backends["d0"] = backend
        backend.insert(node)
    yield machine, backend
    machine.close()


def test_all_devices(drive: Any, tmp_path: Any) -> None:
    machine, _backend = drive
    assert hmp.execute(machine, f"nbd_server_start -a -w unix:{tmp_path}/s") == ""
    (info,) = machine.block.exports.query()
    assert info["id"] == "d0"
    assert hmp.execute(machine, "nbd_server_add -w n other") == ""
    assert hmp.execute(machine, "nbd_server_remove -f other") == ""
    assert hmp.execute(machine, "nbd_server_remove d0") == ""
    assert machine.block.exports.query() == []


def test_the_export_goes_with_the_medium(drive: Any, tmp_path: Any) -> None:
    machine, backend = drive
    events = []
    machine.events.subscribe(lambda event: events.append(event["event"]))
    hmp.execute(machine, f"nbd_server_start -a unix:{tmp_path}/s")
    with machine.control:
        backend.remove()
    assert machine.block.exports.query() == [] and events == ["BLOCK_EXPORT_DELETED"]
    assert backend.ejecting == []
