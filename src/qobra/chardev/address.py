"""Sockets by address, as the contract's SocketAddressLegacy gives it: listen, connect, and name the two ends."""

from __future__ import annotations

import _socket as socket
import os

from qobra.errors import QobraError
from qobra.socket_address import serves_ipv6_only

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.machine.machine import Machine

    Address = dict[str, Any]

_MAX_UNIX_PATH = 107
_KIND, _DEVICES = 0o170000, (0o020000, 0o060000)
"""S_IFMT, and S_IFCHR and S_IFBLK, without an import at every start."""


def listen(machine: Machine, address: Address) -> socket.socket:
    """A listening socket at ``address``."""
    data = address["data"]
    kind = address["type"]
    if kind == "unix":
        return _listen_unix(data)
    if kind == "inet":
        return _listen_inet(data)
    if kind == "vsock":
        from qobra.nbd.sockets import vsock_name

        return _bind(_vsock(), vsock_name(data))
    return _adopt(machine, data["str"])


def connect(machine: Machine, address: Address) -> socket.socket:
    """A socket connected to ``address``."""
    data = address["data"]
    kind = address["type"]
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        return _connect(sock, _unix_name(data), data["path"])
    if kind == "inet":
        return _connect_inet(data)
    if kind == "vsock":
        from qobra.nbd.sockets import vsock_name

        return _connect(_vsock(), vsock_name(data), f"{data['cid']}:{data['port']}")
    return _adopt(machine, data["str"])


def resolve(data: dict[str, Any], *, passive: bool, datagram: bool = False) -> list[tuple[int, Any]]:
    """The families and addresses that an InetSocketAddress stands for, at least one."""
    host, port = data.get("host", ""), data.get("port", "")
    ipv4, ipv6 = data.get("ipv4"), data.get("ipv6")
    family = socket.AF_UNSPEC
    if ipv4 is False and ipv6 is False:
        raise QobraError("Cannot disable IPv4 and IPv6 at same time")
    if (ipv6 and ipv4 is None) or ipv4 is False:
        family = socket.AF_INET6
    elif (ipv4 and ipv6 is None) or ipv6 is False:
        family = socket.AF_INET
    flags = socket.AI_PASSIVE if passive else 0
    if data.get("numeric"):
        flags |= socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    kind = socket.SOCK_DGRAM if datagram else socket.SOCK_STREAM
    try:
        found = socket.getaddrinfo(host or None, port or "0", family, kind, 0, flags)
    except (socket.gaierror, UnicodeError) as error:
        text = error.strerror if isinstance(error, OSError) else "Name or service not known"
        raise QobraError(f"address resolution failed for {host}:{port}: {text}")
    return [(entry[0], entry[4]) for entry in found]


def describe(address: Address, sock: socket.socket | None = None, *, passive: bool = False) -> str:
    """``tcp:HOST:PORT``, ``unix:PATH``, ...: the configured address, or the one that ``sock`` is bound to."""
    data = address["data"]
    kind = address["type"]
    if sock is not None and sock.fileno() < 0:
        sock = None
    if kind == "inet":
        host, port = data.get("host", ""), data.get("port", "")
        if sock is not None and passive:
            name = sock.getsockname()
            host, port = name[0], str(name[1])
        return f"tcp:{host}:{port}"
    if kind == "unix":
        abstract = ",abstract=on" + (",tight=on" if data.get("tight", True) else "") if data.get("abstract") else ""
        return f"unix:{data['path']}{abstract}"
    if kind == "vsock":
        return f"vsock:{data['cid']}:{data['port']}"
    if sock is not None:
        local = sock.getsockname()
        if not isinstance(local, tuple):
            return f"unix:{os.fsdecode(local)}"
        if sock.family != socket.AF_UNIX:
            return f"tcp:{local[0]}:{local[1]}"
    return f"fd:{data['str']}"


def _listen_unix(data: dict[str, Any]) -> socket.socket:
    path = data["path"]
    if not path:
        raise QobraError("UNIX socket path may not be empty")
    name = _unix_name(data)
    if not data.get("abstract"):
        try:
            # A device of the host's (somebody said /dev/null) is missed by everybody.
            if os.lstat(name).st_mode & _KIND not in _DEVICES:
                os.unlink(name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise QobraError.from_os(f"Failed to unlink socket {path}", error)
    return _bind(socket.socket(socket.AF_UNIX), name, path)


def _unix_name(data: dict[str, Any]) -> bytes:
    """The name to bind or connect to: a path, or in Linux's abstract namespace (padded unless ``tight``)."""
    path = os.fsencode(data["path"])
    abstract = bool(data.get("abstract"))
    longest = _MAX_UNIX_PATH - abstract
    if len(path) > longest:
        raise QobraError(
            f"UNIX socket path '{data['path']}' is too long", hint=f"Path must be less than {longest + 1} bytes"
        )
    if b"\0" in path:
        raise QobraError(f"UNIX socket path '{data['path']}' has a NUL character in it")
    if not abstract:
        return path
    name = b"\0" + path
    return name if data.get("tight", True) else name.ljust(_MAX_UNIX_PATH + 1, b"\0")


def _bind(sock: socket.socket, name: Any, shown: str = "") -> socket.socket:
    try:
        sock.bind(name)
        sock.listen(1)
    except OSError as error:
        sock.close()
        raise QobraError.from_os(f"Failed to bind socket to {shown}" if shown else "Failed to bind socket", error)
    return sock


def _listen_inet(data: dict[str, Any]) -> socket.socket:
    import errno

    shown = f"{data.get('host', '')}:{data.get('port', '')}"
    failure: OSError | None = None
    found = resolve(data, passive=True)
    try:
        first = int(data.get("port") or 0)
    except ValueError:
        first = found[0][1][1]
    last = data.get("to", first)
    for port in range(first, min(last, 65535) + 1):
        for family, name in found:
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    only = serves_ipv6_only(data, {entry[0] for entry in found})
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only))
                sock.bind((name[0], port, *name[2:]))
                sock.listen(1)
                return sock
            except OSError as error:
                sock.close()
                failure = error
                if error.errno not in (errno.EADDRINUSE, errno.EINVAL, errno.EADDRNOTAVAIL):
                    raise QobraError.from_os(f"Failed to bind socket to {shown}", error)
    raise QobraError.from_os(f"Failed to find an available port for {shown}", failure or OSError(errno.EINVAL, ""))


def _connect_inet(data: dict[str, Any]) -> socket.socket:
    shown = f"{data.get('host', '')}:{data.get('port', '')}"
    failure: QobraError | None = None
    for family, name in resolve(data, passive=False):
        try:
            sock = _connect(socket.socket(family, socket.SOCK_STREAM), name, shown)
        except QobraError as error:
            failure = error
            continue
        if data.get("keep-alive"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return sock
    raise failure or QobraError(f"address resolution failed for {shown}")


def _connect(sock: socket.socket, name: Any, shown: str) -> socket.socket:
    try:
        sock.connect(name)
    except OSError as error:
        sock.close()
        raise QobraError.from_os(f"Failed to connect to '{shown}'", error)
    return sock


def _vsock() -> socket.socket:
    try:
        return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except (AttributeError, OSError):
        raise QobraError("socket family AF_VSOCK unsupported")


def _adopt(machine: Machine, name: str) -> socket.socket:
    fd = machine.fdsets.take_named_or_number(name)
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise QobraError(f"File descriptor '{name}' is not a socket")
    if sock.type != socket.SOCK_STREAM:
        sock.close()
        raise QobraError(f"File descriptor '{name}' is not a socket")
    return sock
