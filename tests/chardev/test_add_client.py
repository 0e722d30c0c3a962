"""Sockets that are handed to a character device, by name, as peers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.qmp.monitor import Monitors


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    address = {"type": "unix", "data": {"path": str(tmp_path / "s")}}
    with machine.control:
        machine.chardevs.create("s", {"type": "socket", "data": {"addr": address, "server": True, "wait": False}})
        machine.chardevs.create("n", {"type": "null", "data": {}})
        Monitors(machine).add("s")
    yield machine
    machine.close()


def _add(machine: Machine, protocol: str, fd: int) -> Any:
    with machine.control:
        machine.fdsets.put_named("x", fd)
        return dispatch.call(machine, "add_client", {"protocol": protocol, "fdname": "x"})


def _connect(machine: Machine, protocol: str) -> socket.socket:
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    try:
        _add(machine, protocol, theirs.detach())
    except QobraError:
        assert ours.recv(1) == b""  # it was closed
        ours.close()
        raise
    return ours


def test_a_server_has_one_client_at_a_time(machine: Machine) -> None:
    with _connect(machine, "s") as client:
        assert client.recv(7) == b'{"QMP":'
        with pytest.raises(QobraError, match="^failed to add client$"):
            _connect(machine, "s")
        client.sendall(b'{"execute": "qmp_capabilities"}')
        while not client.recv(1 << 16).endswith(b'{"return": {}}\r\n'):
            pass
    device: Any = machine.chardevs.find("s")
    with device._turn:  # its peer has gone
        pass
    with _connect(machine, "s") as client:
        assert client.recv(7) == b'{"QMP":'


@pytest.mark.parametrize(
    ("protocol", "text"),
    [
        ("nope", "protocol 'nope' is invalid"),
        ("vnc", "VNC is not in use"),
        ("spice", "SPICE is not in use"),
        ("n", "failed to add client"),
    ],
)
def test_refusals(machine: Machine, protocol: str, text: str) -> None:
    with pytest.raises(QobraError, match=f"^{text}$"):
        _connect(machine, protocol)


def test_what_is_no_socket_is_closed(machine: Machine) -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(QobraError, match="^failed to add client$"):
        _add(machine, "s", fd)
    with pytest.raises(OSError):
        os.fstat(fd)
