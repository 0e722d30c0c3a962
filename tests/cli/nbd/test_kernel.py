"""``-c`` and ``-d``, with a device whose ioctls are answered as drivers/block/nbd.c does: CI's machines have none."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from qobra.block.backend import BlockBackend
from qobra.block.layer import BlockLayer
from qobra.cli._nbd import kernel, serve
from qobra.cli._tool.report import ToolError
from qobra.nbd import protocol as p

MIB = 1 << 20


class Device:
    """The kernel's side: it has a socket of an export that was chosen, and sends requests while DO_IT runs."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.sectors = self.block_size = self.flags = 0
        self.read = b""
        self.done = threading.Event()
        self.stop = threading.Event()
        self.refused = 0
        self._socket: socket.socket | None = None

    def ioctl(self, _fd: int, request: int, argument: int = 0) -> int:
        self.asked.append(request)
        if request == self.refused:
            raise OSError(errno.EBUSY, "Device or resource busy")
        if request == 0xAB00:  # NBD_SET_SOCK
            self._socket = socket.socket(fileno=os.dup(argument))
        elif request == 0xAB01:  # NBD_SET_BLKSIZE
            self.block_size = argument
        elif request == 0xAB07:  # NBD_SET_SIZE_BLOCKS
            self.sectors = argument
        elif request == 0xAB0A:  # NBD_SET_FLAGS
            self.flags = argument
        elif request == 0xAB03:  # NBD_DO_IT
            self._use()
        return 0

    def _use(self) -> None:
        assert self._socket is not None
        with self._socket as link:
            link.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_READ, 7, 4096, 512))
            answer = b""
            while len(answer) < p.SIMPLE_REPLY.size + 512:
                answer += link.recv(4096)
            magic, error, cookie = p.SIMPLE_REPLY.unpack(answer[: p.SIMPLE_REPLY.size])
            assert (magic, error, cookie) == (p.SIMPLE_REPLY_MAGIC, 0, 7)
            self.read = answer[p.SIMPLE_REPLY.size :]
            self.done.set()
            self.stop.wait(30)
            link.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_DISC, 8, 0, 0))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(kernel.fcntl, "ioctl", made.ioctl)
    return made


def exported(tmp_path: Path, name: str, *, writable: bool) -> Any:
    (tmp_path / "disk").write_bytes(bytes(4096) + b"data" * 128 + bytes(MIB - 4608))
    layer = BlockLayer()
    backend = BlockBackend(layer)
    layer.open({"driver": "raw", "file": {"driver": "file", "filename": str(tmp_path / "disk")}}, root=backend)
    server = serve.bind(layer, {}, label=None, shared=1, tls_creds=None, tls_authz=None)
    serve.start(server, backend, writable=writable, name=name, description="", bitmaps=[], allocation_depth=False)
    return layer, backend, server


@pytest.mark.parametrize("writable", [True, False])
def test_the_device_is_set_up_and_used(device: Device, tmp_path: Path, writable: bool) -> None:
    (tmp_path / "nbd0").touch()
    layer, backend, server = exported(tmp_path, "x", writable=writable)
    thread = kernel.connect(server, str(tmp_path / "nbd0"), "x")
    assert device.done.wait(30)
    assert device.read == b"data" * 128
    assert (device.sectors * device.block_size, device.block_size) == (MIB, 512)
    assert bool(device.flags & p.FLAG_READ_ONLY) is not writable
    device.stop.set()
    thread.join(30)
    assert server.reasons.get(timeout=30) == "left"  # which ends a server that is not persistent
    assert device.asked[-2:] == [0xAB05, 0xAB04]
    layer.exports.close()
    backend.remove()
    layer.close()


def test_a_device_in_use_is_one_error(device: Device, tmp_path: Path) -> None:
    (tmp_path / "nbd0").touch()
    layer, backend, server = exported(tmp_path, "", writable=True)
    device.refused = 0xAB00
    with pytest.raises(ToolError, match="^Failed to set NBD socket$"):
        kernel.connect(server, str(tmp_path / "nbd0"), "")
    with pytest.raises(ToolError, match="^Failed to open .*missing: No such file or directory$"):
        kernel.connect(server, str(tmp_path / "missing"), "")
    layer.exports.close()
    backend.remove()
    layer.close()


def test_disconnecting_does_not_mind_what_is_not_connected(device: Device, tmp_path: Path) -> None:
    (tmp_path / "nbd0").touch()
    device.refused = 0xAB08
    kernel.disconnect(str(tmp_path / "nbd0"))
    assert device.asked == [0xAB05, 0xAB08, 0xAB04]
