"""Where a QMP server listens.

=============================  ==============================================
``vm.sock``, ``unix:vm.sock``  a unix socket
``host:port``, ``tcp:…``       TCP; IPv6 addresses in brackets
``ssh://[user@]host[:port]/run/vm.sock``     a unix socket on another host, forwarded by ssh
``ssh://[user@]host[:port]/remotehost:port``   a TCP port as that host reaches it, forwarded by ssh
=============================  ==============================================
"""

from __future__ import annotations

from typing import NamedTuple

from qobra.client.errors import ConnectError
from qobra.units import decimal


class UnixAddress(NamedTuple):
    """The path of a unix socket; one that begins with ``@`` is in the abstract namespace."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


class TcpAddress(NamedTuple):
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


class SshAddress(NamedTuple):
    """A socket that ``ssh`` to ``destination`` (``[user@]host``) reaches."""

    destination: str
    port: int | None
    target: UnixAddress | TcpAddress

    def __str__(self) -> str:
        port = f":{self.port}" if self.port is not None else ""
        target = self.target
        path = target.path if isinstance(target, UnixAddress) else "/" + str(target).removeprefix("tcp:")
        return f"ssh://{self.destination}{port}{path}"


Address = UnixAddress | TcpAddress | SshAddress


def parse_address(text: str) -> Address:
    """Read one of the forms above; ConnectError if it is none."""
    if text.startswith("ssh://"):
        return _parse_ssh(text)
    if text.startswith("unix:"):
        # qemu's own spelling has options behind the path: unix:/path,server=on,wait=off
        path = text[5:].split(",", 1)[0]
        if path:
            return UnixAddress(path)
    elif text.startswith("tcp:"):
        return _parse_tcp(text[4:].split(",", 1)[0], text)
    elif text.startswith("@") or "/" in text or ":" not in text:
        if text:
            return UnixAddress(text)
    else:
        return _parse_tcp(text, text)
    raise ConnectError(f"'{text}' is not the address of a QMP server: give unix:PATH, HOST:PORT or ssh://HOST/PATH")


def _parse_tcp(text: str, whole: str) -> TcpAddress:
    host, colon, digits = text.rpartition(":")
    port = decimal(digits)
    if not colon or port is None or port > 65535:
        raise ConnectError(f"'{whole}': expected HOST:PORT")
    return TcpAddress(host.removeprefix("[").removesuffix("]") or "localhost", port)


def _parse_ssh(text: str) -> SshAddress:
    authority, slash, path = text.removeprefix("ssh://").partition("/")
    user, at, host = authority.rpartition("@")
    name, colon, port_text = host.rpartition(":")
    port: int | None = None
    if colon and not host.endswith("]"):
        port = decimal(port_text)
        if port is None or port > 65535:
            raise ConnectError(f"'{text}': '{port_text}' is not a port")
        host = name
    host = host.removeprefix("[").removesuffix("]")
    # A host or user that begins with a hyphen would be an option to ssh.
    if not host or not slash or not path or (user + at + host).startswith("-"):
        raise ConnectError(f"'{text}': expected ssh://[USER@]HOST[:PORT]/PATH-OF-SOCKET")
    last, colon, remote_port = path.rpartition(":")
    target: UnixAddress | TcpAddress
    if colon and remote_port.isdecimal() and "/" not in last:
        target = _parse_tcp(path, text)
    else:
        target = UnixAddress("/" + path)
    return SshAddress(user + at + host, port, target)
