"""Interfaces of the host's kernel: by name, by descriptor, by a helper."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.testing.network import RecordingCard
from qobra.testing.waiting import wait_until

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 2, 0x1000, 0x4000
_FRAME = b"\xff" * 6 + b"\x52\x54\0\x12\x34\x56\x88\xb5" + b"hello" * 10


def _usable() -> bool:
    try:
        os.close(_open_tap("", 0)[0])
    except OSError:
        return False
    return True


def _open_tap(name: str, flags: int) -> tuple[int, str]:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | flags)
        return fd, fcntl.ioctl(fd, _TUNSETIFF, request)[:16].rstrip(b"\0").decode()
    except OSError:
        os.close(fd)
        raise


needs_tun = pytest.mark.skipif(not _usable(), reason="no interfaces can be made here")


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


def _up(interface: str) -> socket.socket:
    """A socket that sees all packets of an interface, which is up then."""
    with socket.socket() as control:
        request = struct.pack("16sH14x", interface.encode(), 1)
        fcntl.ioctl(control, 0x8914, request)  # SIOCSIFFLAGS
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
    sock.bind((interface, 0x88B5))
    sock.settimeout(30)
    return sock


def _exchange(backend: Any, interface: str) -> None:
    peer = RecordingCard()
    backend.peer = peer
    with _up(interface) as outside:
        backend.send(_FRAME)
        assert outside.recv(2000) == _FRAME
        outside.send(_FRAME[6:12] + b"\xff" * 6 + _FRAME[12:])
        wait_until(lambda: _FRAME[6:12] + b"\xff" * 6 + _FRAME[12:] in peer.packets)


@needs_tun
@pytest.mark.parametrize("options", [{}, {"vnet_hdr": True}, {"queues": 3}, {"sndbuf": "1M"}])
def test_an_interface_of_its_own(machine: Machine, options: dict[str, Any]) -> None:
    backend: Any = machine.netdevs.create({"type": "tap", "id": "t", "script": "no", "downscript": "no", **options})
    _exchange(backend, backend.interface)


@needs_tun
@pytest.mark.parametrize("flags", [0, _IFF_VNET_HDR])
@pytest.mark.parametrize("option", ["fd", "fds"])
def test_a_descriptor_that_a_manager_made(machine: Machine, option: str, flags: int) -> None:
    fd, interface = _open_tap("", flags)
    machine.fdsets.put_named("tap", fd)
    _exchange(machine.netdevs.create({"type": "tap", "id": "t", option: "tap"}), interface)


@needs_tun
def test_scripts(machine: Machine, tmp_path: Path) -> None:
    for name in ("up", "down"):
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/{name}.log\n')
        script.chmod(0o755)
    options = {"script": f"{tmp_path}/up", "downscript": f"{tmp_path}/down"}
    backend: Any = machine.netdevs.create({"type": "tap", "id": "t", **options})
    assert (tmp_path / "up.log").read_text() == f"{backend.interface}\n"
    names = f"ifname={backend.interface},script={tmp_path}/up,downscript={tmp_path}/down"
    assert backend.describe() == f"tap,{names}"
    machine.netdevs.remove("t")
    assert (tmp_path / "down.log").read_text() == f"{backend.interface}\n"
    with pytest.raises(QobraError, match="network script /bin/false failed with status 1"):
        machine.netdevs.create({"type": "tap", "id": "t", "script": "/bin/false"})


_HELPER = """\
import socket, sys
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
open(sys.argv[1], "w").write(options["br"])
with socket.socket(fileno=int(options["fd"])) as there, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
    socket.send_fds(there, [b"x"], [made.fileno()])
"""


@pytest.mark.parametrize("kind", ["tap", "bridge"])
def test_a_helper_makes_it(machine: Machine, tmp_path: Path, kind: str) -> None:
    program = tmp_path / "helper.py"
    program.write_text(_HELPER)
    line = f"{sys.executable} {program} {tmp_path}/log"
    backend = machine.netdevs.create({"type": kind, "id": "t", "helper": line, "br": "virbr7"})
    assert backend.describe() == f"tap,helper={line}" + ",br=virbr7" * (kind == "bridge")
    assert (tmp_path / "log").read_text() == "virbr7"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"type": "tap", "helper": "/bin/false"}, "bridge helper failed"),
        ({"type": "bridge", "helper": "/bin/true"}, "bridge helper failed"),
        ({"type": "bridge", "helper": "/nowhere/helper"}, "failed to launch bridge helper: No such file or directory"),
        ({"type": "tap", "fd": "x", "ifname": "y"}, "helper=, queues=, fds=, and vhostfds= are invalid with fd="),
        ({"type": "tap", "fds": "x:y", "queues": 2}, "helper=, queues=, and vhostfd= are invalid with fds="),
        ({"type": "tap", "helper": "x", "queues": 2}, "vnet_hdr=, queues=, and vhostfds= are invalid with helper="),
        ({"type": "tap", "queues": 0}, "queues= must be between 1 and 1024"),
        ({"type": "tap", "fd": "x"}, "File descriptor named 'x' has not been found"),
    ],
)
def test_refusals(machine: Machine, options: dict[str, Any], text: str) -> None:
    with pytest.raises(QobraError) as caught:
        machine.netdevs.create({"id": "t", **options})
    assert caught.value.desc.endswith(text)
