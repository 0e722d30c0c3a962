"""The ways that streams take: where a migration URI leads."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from qobra.errors import QobraError
from qobra.migration.channel import Channel, GivenUp
from qobra.nbd.sockets import connect as connect_socket
from qobra.nbd.sockets import listen as listen_socket
from qobra.socket_address import socket_address
from qobra.units import integer

if TYPE_CHECKING:
    from qobra.migration.tls import TlsChannel

    AnyChannel: TypeAlias = Channel | TlsChannel

BAD_URI = "Parameter 'uri' expects a valid migration protocol"
SOCKETS = ("tcp", "unix", "vsock")
_BACKLOG = 256


class Way:
    """How to reach the other side: ``open()`` may take long, and raises OSError, QobraError or GivenUp.

    ``many``: it may be called more than once, for one channel each. ``hostname``: of the other side, where known.
    """

    def __init__(self, open: Callable[[], Channel], *, many: bool = False, hostname: str | None = None) -> None:
        self.open = open
        self.many = many
        self.hostname = hostname


def outgoing(uri: str, take_fd: Callable[[str], int]) -> Way:
    """The way to ``uri``. Raises QobraError at once for what is no URI."""
    kind, _colon, rest = uri.partition(":")
    if kind in SOCKETS:
        address = socket_address(kind, rest)
        return Way(lambda: Channel(connect_socket(address).detach()), many=True, hostname=address.get("host"))
    if kind == "exec":
        return Way(lambda: _command(rest, writing=True))
    if kind == "fd":
        fd = take_fd(rest)
        return Way(lambda: Channel(fd))
    if kind == "file":
        path, offset = _file_and_offset(rest)
        return Way(lambda: _file(path, offset, os.O_WRONLY | os.O_CREAT | (0 if offset else os.O_TRUNC)))
    raise QobraError(BAD_URI)


class Listener:
    """Where an incoming migration is to come from. ``addresses`` are its sockets' (SocketAddress), the last first."""

    def __init__(self, uri: str, take_fd: Callable[[str], int]) -> None:
        """Start to listen, or find what to read. Raises QobraError."""
        kind, _colon, rest = uri.partition(":")
        self.addresses: list[dict[str, Any]] = []
        self._sockets: list[socket.socket] = []
        self._closed = False
        self._lock = threading.Lock()
        self._open: Callable[[], Channel]
        if kind in SOCKETS:
            address = socket_address(kind, rest)
            self._sockets = listen_socket(address, backlog=_BACKLOG)
            self.addresses = [_bound(address, sock) for sock in reversed(self._sockets)]
            for sock in self._sockets:
                sock.setblocking(False)
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

    @property
    def many(self) -> bool:
        """Whether more than one channel can come."""
        return bool(self._sockets)

    def open(self) -> Channel:
        """Wait for the next channel to be there. Raises OSError, QobraError, or GivenUp."""
        return self._open()

    def close(self) -> None:
        """Listen no more; who waits here is let go."""
        with self._lock:
            self._closed = True
            for sock in self._sockets:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                sock.close()

    def _accept(self) -> Channel:
        poll = select.poll()
        # Twins of the sockets: were those closed meanwhile, their numbers might be another file's by now.
        with self._lock:
            if self._closed:
                raise GivenUp
            by_fd = {twin.fileno(): twin for twin in [sock.dup() for sock in self._sockets]}
        try:
            for fd in by_fd:
                poll.register(fd, select.POLLIN)
            while not self._closed:
                for fd, _events in poll.poll():
                    try:
                        connection, _peer = by_fd[fd].accept()
                    except (BlockingIOError, ConnectionAbortedError):
                        continue  # whoever came has left
                    return Channel(connection.detach())
        except OSError:
            if not self._closed:
                raise
        finally:
            for twin in by_fd.values():
                twin.close()
        raise GivenUp


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
    except ValueError as error:
        os.close(ours)
        raise QobraError(f"Could not run '{line}': {error}")
    finally:
        os.close(theirs)
    return Channel(ours, child)


def _file_and_offset(rest: str) -> tuple[str, int]:
    path, _comma, option = rest.partition(",offset=")
    if not option:
        return path, 0
    offset = integer(option)
    if offset is None:
        raise QobraError(f"file URI has bad offset {option}")
    return path, offset


def _file(path: str, offset: int, flags: int) -> Channel:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o660)
        os.lseek(fd, offset, os.SEEK_SET)
    except OSError as error:
        raise QobraError.from_os(f"Could not open '{path}'", error)
    except ValueError as error:  # a NUL character
        raise QobraError(f"Could not open '{path}': {error}")
    return Channel(fd)
