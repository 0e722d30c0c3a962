"""Sockets to a server."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence

from qobra.client.address import Address, SshAddress, UnixAddress, parse_address
from qobra.client.errors import ConnectError
from qobra.client.forward import SshForward

# One read takes in as much as this.
READ_SIZE = 256 * 1024

Target = str | os.PathLike[str] | Address | tuple[str, int] | socket.socket


class Link:
    """A connected socket and what must be taken down with it. :func:`open_link` makes one; it blocks."""

    def __init__(self, connection: socket.socket, name: str, forward: SshForward | None = None) -> None:
        self.socket = connection
        self.name = name
        self._forward = forward

    def close(self) -> None:
        """Close the connection; harmless when it is closed already."""
        self.socket.close()
        if self._forward is not None:
            self._forward.close()
            self._forward = None


def open_link(target: Target, timeout: float) -> Link:
    """Connect to ``target`` within ``timeout`` seconds: an address, its text, a (host, port), a connected socket.

    Raises ConnectError with the reason.
    """
    if isinstance(target, socket.socket):
        return Link(target, "the given socket")
    if isinstance(target, os.PathLike):
        target = UnixAddress(os.fspath(target))
    address = parse_address(target) if isinstance(target, str) else target
    if isinstance(address, SshAddress):
        forward = SshForward(address, timeout)
        try:
            return Link(forward.connect(), str(address), forward)
        except BaseException:
            forward.close()
            raise
    try:
        if isinstance(address, UnixAddress):
            return Link(_connect_unix(address.path, timeout), str(address))
        connection = socket.create_connection((address[0], address[1]), timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        name = str(address) if isinstance(address, UnixAddress) else f"tcp:{address[0]}:{address[1]}"
        raise ConnectError.from_os(f"cannot connect to {name}", error) from None
    return Link(connection, f"tcp:{address[0]}:{address[1]}")


def send_with_fds(connection: socket.socket, data: bytes, fds: Sequence[int]) -> int:
    """Send the beginning of ``data`` with ``fds`` attached to it (SCM_RIGHTS); returns how much of it."""
    if connection.family != socket.AF_UNIX:
        raise ConnectError("file descriptors can be passed over a unix socket only")
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    return connection.sendmsg([data], [rights])


def _connect_unix(path: str, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect("\0" + path[1:] if path.startswith("@") else path)
    except BaseException:
        connection.close()
        raise
    return connection
