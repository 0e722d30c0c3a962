"""Connect to, and listen on, what QMP calls a SocketAddress: inet, unix, vsock or a passed file descriptor."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from typing import Any

from qobra.errors import QobraError, errno_of, strerror
from qobra.socket_address import serves_ipv6_only
from qobra.units import decimal

FindFd = Callable[[str], int]
"""From the name of a passed descriptor (``getfd``) to the number; the callee gives up ownership."""

_MAX_UNIX_PATH = 108


def describe(address: dict[str, Any]) -> str:
    """The address as error texts name it: ``HOST:PORT``, the path, ``vsock:CID:PORT`` or ``fd:NAME``."""
    match address.get("type"):
        case "inet":
            return f"{address['host']}:{address['port']}"
        case "vsock":
            return f"vsock:{address['cid']}:{address['port']}"
        case "fd":
            return f"fd:{address['str']}"
        case _:
            return str(address.get("path"))


def connect(address: dict[str, Any], *, timeout: float | None = None, find_fd: FindFd | None = None) -> socket.socket:
    """A connected, blocking stream socket. Raises QobraError; ``timeout`` in seconds bounds the whole attempt."""
    kind = address.get("type")
    if kind == "fd":
        return _adopt(address["str"], find_fd)
    deadline = None if timeout is None else time.monotonic() + timeout
    last: OSError | None = None
    for family, target in _targets(address, passive=False):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            sock.connect(target)
        except OSError as error:
            sock.close()
            if isinstance(error, TimeoutError):
                error = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            last = error
            continue
        sock.settimeout(None)
        _tune(sock, address)
        return sock
    if last is None:
        last = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    raise QobraError(f"Failed to connect to '{describe(address)}': {strerror(last)}", errno=last.errno)


def hung_up(sock: socket.socket) -> bool:
    """Whether the other side sends no more, though not all that it sent need have been received."""
    poller = select.poll()
    try:
        poller.register(sock, select.POLLRDHUP)
    except ValueError:
        return True  # another thread has closed it meanwhile
    return bool(poller.poll(0))


def listen(address: dict[str, Any], *, backlog: int = 16, find_fd: FindFd | None = None) -> list[socket.socket]:
    """Listening sockets for the address: several where a host name means several. Raises QobraError.

    A unix socket or an empty file that is already there is replaced, as QEMU does. An inet address with ``to`` takes
    the first free port from ``port`` to ``to``.
    """
    if address.get("type") == "fd":
        sock = _adopt(address["str"], find_fd)
        sock.listen(backlog)
        return [sock]
    if address.get("type") == "inet":
        return _listen_inet(address, backlog)
    ((family, target),) = _targets(address, passive=True)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_UNIX and not address.get("abstract"):
            _remove_stale(target)
        sock.bind(target)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        where = "" if family == socket.AF_VSOCK else f" to {describe(address)}"
        raise QobraError(f"Failed to bind socket{where}: {strerror(error)}", errno=error.errno)
    return [sock]


def _listen_inet(address: dict[str, Any], backlog: int) -> list[socket.socket]:
    first = _port(address)
    last = int(address.get("to") or first)
    error: OSError | None = None
    # Any free port has to be free in every family, which may take more than one try.
    for port in range(first, last + 1) if first else (0,) * 8:
        sockets: list[socket.socket] = []
        try:
            targets = _targets({**address, "port": str(port)}, passive=True)
            for family, target in targets:
                if sockets and port == 0:
                    # The families of one host share the port that the first was given.
                    target = (target[0], sockets[0].getsockname()[1], *target[2:])
                sock = socket.socket(family, socket.SOCK_STREAM)
                sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    only = serves_ipv6_only(address, {each for each, _ in targets})
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only))
                sock.bind(target)
                sock.listen(backlog)
            return sockets
        except OSError as failure:
            error = failure
            for sock in sockets:
                sock.close()
            if failure.errno != errno.EADDRINUSE:
                raise QobraError(f"Failed to bind socket: {strerror(failure)}", errno=failure.errno)
    assert error is not None
    raise QobraError(f"Failed to find an available port: {strerror(error)}", errno=error.errno)


def _targets(address: dict[str, Any], *, passive: bool) -> list[tuple[int, Any]]:
    kind = address.get("type")
    if kind == "unix":
        path = str(address["path"])
        if len(os.fsencode(path)) >= _MAX_UNIX_PATH:
            raise QobraError(
                f"UNIX socket path '{path}' is too long", hint=f"Path must be less than {_MAX_UNIX_PATH} bytes"
            )
        if address.get("abstract"):
            path = "\0" + path
            # Without ``tight`` the name is all of the address, with the zero bytes that fill it up.
            return [(socket.AF_UNIX, path if address.get("tight", True) else path.ljust(_MAX_UNIX_PATH, "\0"))]
        return [(socket.AF_UNIX, path)]
    if kind == "vsock":
        return [(socket.AF_VSOCK, vsock_name(address))]
    if kind != "inet":
        raise QobraError(f"Unsupported socket address type '{kind}'")
    host = str(address["host"])
    family = _family(address)
    flags = socket.AI_PASSIVE if passive else 0
    if address.get("numeric"):
        flags |= socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        found = socket.getaddrinfo(host or None, str(address["port"]) or None, family, socket.SOCK_STREAM, 0, flags)
    except socket.gaierror as error:
        raise QobraError(f"address resolution failed for {describe(address)}: {error.strerror}", errno=errno.EINVAL)
    unique = dict.fromkeys((entry[0], entry[4]) for entry in found)
    return [(int(family), target) for family, target in unique]


def vsock_name(address: dict[str, Any]) -> tuple[int, int]:
    """The context id and the port of a vsock address, for the socket calls."""
    for member in ("cid", "port"):
        text = str(address[member])
        if not (text.isascii() and text.isdecimal()) or int(text) >= 1 << 32:
            raise QobraError(f"Failed to parse {member} '{text}'")
    return int(address["cid"]), int(address["port"])


def _family(address: dict[str, Any]) -> int:
    ipv4, ipv6 = address.get("ipv4"), address.get("ipv6")
    if ipv4 is False and ipv6 is False:
        raise QobraError("Cannot disable IPv4 and IPv6 at same time")
    if ipv6 is False or (ipv4 and ipv6 is None):
        return int(socket.AF_INET)
    if ipv4 is False or (ipv6 and ipv4 is None):
        return int(socket.AF_INET6)
    return int(socket.AF_UNSPEC)


def _port(address: dict[str, Any]) -> int:
    """The number of a port that may be a service's name; 0, any free one, for an empty text."""
    text = str(address["port"])
    if text.isdecimal() and len(text) < 6:
        return int(text)
    return int(_targets(address, passive=True)[0][1][1]) if text else 0


def _tune(sock: socket.socket, address: dict[str, Any]) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if address.get("keep-alive"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _remove_stale(path: str) -> None:
    # A socket that nobody listens at, or the empty file with which a program has reserved a name of its own.
    try:
        found = os.lstat(path)
        if stat.S_ISSOCK(found.st_mode) or (stat.S_ISREG(found.st_mode) and not found.st_size):
            os.unlink(path)
    except FileNotFoundError:
        pass


def _adopt(name: str, find_fd: FindFd | None) -> socket.socket:
    inherited = decimal(name)
    if inherited is not None:
        number = inherited
    elif find_fd is not None:
        number = find_fd(name)
    else:
        raise QobraError(f"No file descriptor named '{name}'")
    try:
        sock = socket.socket(fileno=number)
    except (OSError, OverflowError) as error:
        raise QobraError(f"File descriptor '{name}' is not a socket", errno=errno_of(error))
    sock.setblocking(True)
    return sock
