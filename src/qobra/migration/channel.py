"""The ways that a stream takes: where a migration URI leads, and reading and writing there until somebody cancels."""

from __future__ import annotations

import os
import select
import socket
import stat
import subprocess
from collections.abc import Callable
from typing import Any

from qobra.errors import QobraError
from qobra.nbd.sockets import connect as connect_socket
from qobra.nbd.sockets import listen as listen_socket

BAD_URI = "Parameter 'uri' expects a valid migration protocol"
_CHUNK = 1 << 20


class GivenUp(Exception):
    """Reading or writing ended because somebody cancelled it."""


class Channel:
    """A stream over a file descriptor, which the channel owns. ``child``: a command at its other end.

    Whoever is blocked in it is let go by :meth:`cancel`, and gets :class:`GivenUp`.
    """

    def __init__(self, fd: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self._fd = fd
        self._child = child
        os.set_blocking(fd, False)
        self._wake_read, self._wake_write = os.pipe()

    @property
    def two_way(self) -> bool:
        """Whether the other end can answer."""
        return stat.S_ISSOCK(os.fstat(self._fd).st_mode)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``. Raises OSError, or GivenUp."""
        view = memoryview(data).cast("B")
        while view:
            self._wait(select.POLLOUT)
            try:
                view = view[os.write(self._fd, view[:_CHUNK]) :]
            except BlockingIOError:
                continue

    def read(self, length: int) -> bytes:
        """The next ``length`` bytes; fewer only at the end. Raises OSError, or GivenUp."""
        parts: list[bytes] = []
        while length > 0:
            self._wait(select.POLLIN)
            try:
                part = os.read(self._fd, min(length, _CHUNK))
            except BlockingIOError:
                continue
            if not part:
                break
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def cancel(self) -> None:
        """Let go whoever is blocked here. From any thread."""
        os.write(self._wake_write, b"x")

    def close(self) -> None:
        """Close; a command at the other end has its end of file then, and is waited for."""
        for fd in (self._fd, self._wake_read, self._wake_write):
            os.close(fd)
        if self._child is not None:
            self._child.wait()

    def abort(self) -> None:
        """Close after a failure: a command at the other end is ended."""
        if self._child is not None:
            self._child.terminate()
        self.close()

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._fd, event)
        poll.register(self._wake_read, select.POLLIN)
        if any(fd == self._wake_read for fd, _events in poll.poll()):
            raise GivenUp


def outgoing(uri: str, take_fd: Callable[[str], int]) -> Callable[[], Channel]:
    """A call that opens the way to ``uri``, and may take long. Raises QobraError at once for what is no URI."""
    kind, _colon, rest = uri.partition(":")
    if kind in ("tcp", "unix", "vsock"):
        address = socket_address(kind, rest)
        return lambda: Channel(connect_socket(address).detach())
    if kind == "exec":
        return lambda: _command(rest, writing=True)
    if kind == "fd":
        fd = take_fd(rest)
        return lambda: Channel(fd)
    if kind == "file":
        path, offset = _file_and_offset(rest)
        return lambda: _file(path, offset, os.O_WRONLY | os.O_CREAT | (0 if offset else os.O_TRUNC))
    raise QobraError(BAD_URI)


class Listener:
    """Where an incoming migration is to come from. ``addresses`` are those of its sockets (SocketAddress)."""

    def __init__(self, uri: str, take_fd: Callable[[str], int]) -> None:
        """Start to listen, or find what to read. Raises QobraError."""
        kind, _colon, rest = uri.partition(":")
        self.addresses: list[dict[str, Any]] = []
        self._sockets: list[socket.socket] = []
        self._open: Callable[[], Channel]
        if kind in ("tcp", "unix", "vsock"):
            address = socket_address(kind, rest)
            self._sockets = listen_socket(address, backlog=1)
            self.addresses = [_bound(address, sock) for sock in self._sockets]
            self._open = self._accept
        elif kind == "exec":
            self._open = lambda: _command(rest, writing=False)
        elif kind == "fd":
            fd = take_fd(rest)
            self._open = lambda: Channel(fd)
        elif kind == "file":
            path, offset = _file_and_offset(rest)
            self._open = lambda: _file(path, offset, os.O_RDONLY)
        else:
            raise QobraError(f"unknown migration protocol: {uri}")

    def open(self) -> Channel:
        """Wait for the stream to begin. Raises OSError, QobraError, or GivenUp."""
        return self._open()

    def close(self) -> None:
        """Listen no more."""
        for sock in self._sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()

    def _accept(self) -> Channel:
        poll = select.poll()
        by_fd = {sock.fileno(): sock for sock in self._sockets}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        for fd, events in poll.poll():
            if not events & select.POLLIN or fd not in by_fd:
                break
            connection, _peer = by_fd[fd].accept()
            return Channel(connection.detach())
        raise GivenUp


def socket_address(kind: str, rest: str) -> dict[str, Any]:
    """The SocketAddress in a URI after its ``kind``. Raises QobraError."""
    if kind == "unix":
        if not rest:
            raise QobraError("invalid Unix socket address")
        return {"type": "unix", "path": rest}
    host, colon, port = rest.split(",", 1)[0].rpartition(":")
    if not colon or not port:
        raise QobraError(f"error parsing address '{rest}'")
    if kind == "vsock":
        return {"type": "vsock", "cid": host, "port": port}
    address: dict[str, Any] = {"type": "inet", "host": host.removeprefix("[").removesuffix("]"), "port": port}
    for option in rest.split(",")[1:]:
        name, _equals, value = option.partition("=")
        if name == "to" and value.isdecimal():
            address["to"] = int(value)
        elif name in ("ipv4", "ipv6") and value in ("", "on", "off"):
            address[name] = value != "off"
        else:
            raise QobraError(f"error parsing '{option}' in address '{rest}'")
    return address


def _bound(address: dict[str, Any], sock: socket.socket) -> dict[str, Any]:
    if address["type"] != "inet":
        return dict(address)
    host, port = sock.getsockname()[:2]
    shown = {"type": "inet", "host": host, "port": str(port)}
    return {**shown, "ipv6" if sock.family == socket.AF_INET6 else "ipv4": True}


def _command(line: str, *, writing: bool) -> Channel:
    ours, theirs = os.pipe()[:: -1 if writing else 1]
    try:
        child = subprocess.Popen(
            ["/bin/sh", "-c", line],
            stdin=theirs if writing else subprocess.DEVNULL,
            stdout=None if writing else theirs,
            close_fds=True,
        )
    except OSError as error:
        os.close(ours)
        raise QobraError.from_os(f"Could not run '{line}'", error)
    finally:
        os.close(theirs)
    return Channel(ours, child)


def _file_and_offset(rest: str) -> tuple[str, int]:
    path, _comma, option = rest.partition(",offset=")
    if not option:
        return path, 0
    try:
        return path, int(option, 0)
    except ValueError:
        raise QobraError(f"file URI has bad offset {option}")


def _file(path: str, offset: int, flags: int) -> Channel:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o660)
        os.lseek(fd, offset, os.SEEK_SET)
    except OSError as error:
        raise QobraError.from_os(f"Could not open '{path}'", error)
    return Channel(fd)
