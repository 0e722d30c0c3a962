"""NBD URIs: ``nbd://host:port/export``, ``nbd+unix:///export?socket=/path``, ``nbd+vsock://cid:port/export``, and
``nbds...`` for each with TLS (NBD URI specification, doc/uri.md of the protocol's repository).
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from qobra.errors import QobraError
from qobra.nbd.protocol import DEFAULT_PORT, MAX_STRING, octets

_TRANSPORTS = {"nbd": "inet", "nbd+tcp": "inet", "nbd+unix": "unix", "nbd+vsock": "vsock"}
_TLS_PARAMETERS = frozenset(
    ("tls-type", "tls-hostname", "tls-username", "tls-certificates", "tls-psk-file", "tls-verify-peer")
)


class NbdUri(NamedTuple):
    """What an NBD URI says."""

    address: dict[str, Any]
    """Where to connect: a SocketAddress as QMP writes it, ``type`` one of inet, unix, vsock."""
    export: str
    tls: bool
    """Whether the scheme asks for TLS (``nbds``)."""
    parameters: dict[str, str]
    """The ``tls-*`` parameters of the query."""


def parse(text: str) -> NbdUri:
    """Take an NBD URI apart. Raises QobraError (EINVAL) where it is malformed or of another scheme."""
    if len(text) > 4 * MAX_STRING:
        raise _invalid(text[:64] + "...", "too long")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _invalid(text, str(error))
    scheme = parts.scheme.lower()
    tls = scheme == "nbds" or scheme.startswith("nbds+")
    transport = _TRANSPORTS.get("nbd" + scheme[4:] if tls else scheme)
    if transport is None:
        raise _invalid(text, f"'{parts.scheme}' is not an NBD scheme")
    query = parse_qsl(parts.query, keep_blank_values=True)
    parameters = {name: value for name, value in query if name in _TLS_PARAMETERS}
    if parts.username is not None:
        parameters.setdefault("tls-username", unquote(parts.username))
    export = unquote(parts.path.removeprefix("/"), errors="surrogateescape")
    if len(octets(export)) > MAX_STRING:
        raise _invalid(text[:64] + "...", "export name too long")
    address = _address(text, transport, parts.hostname or "", port, [v for n, v in query if n == "socket"])
    return NbdUri(address, export, tls, parameters)


def _address(text: str, transport: str, host: str, port: int | None, sockets: list[str]) -> dict[str, Any]:
    if transport == "unix":
        if len(sockets) != 1 or not sockets[0]:
            raise _invalid(text, "a socket=PATH parameter is needed, once")
        if host or port is not None:
            raise _invalid(text, "a unix socket has no host or port")
        return {"type": "unix", "path": sockets[0]}
    if sockets:
        raise _invalid(text, "a socket= parameter goes with a +unix scheme only")
    if transport == "vsock":
        if not host.isdigit():
            raise _invalid(text, "a vsock address begins with a context id")
        return {"type": "vsock", "cid": host, "port": str(port or DEFAULT_PORT)}
    return {"type": "inet", "host": unquote(host) or "localhost", "port": str(port or DEFAULT_PORT)}


def build(address: dict[str, Any], export: str = "", *, tls: bool = False) -> str:
    """The NBD URI of a SocketAddress and an export name. Raises QobraError for an address that has none (fd)."""
    scheme = "nbds" if tls else "nbd"
    path = quote(octets(export), safe="/")
    match address["type"]:
        case "inet":
            host = str(address["host"])
            host = f"[{host}]" if ":" in host else quote(host)
            port = str(address.get("port", DEFAULT_PORT))
            return f"{scheme}://{host}{'' if port == str(DEFAULT_PORT) else ':' + port}/{path}"
        case "unix":
            return f"{scheme}+unix:///{path}?socket={quote(str(address['path']), safe='/')}"
        case "vsock":
            return f"{scheme}+vsock://{address['cid']}:{address['port']}/{path}"
        case kind:
            raise QobraError(f"A socket address of type '{kind}' has no NBD URI")


def _invalid(text: str, why: str) -> QobraError:
    import errno

    return QobraError(f"Invalid NBD URI '{text}': {why}", errno=errno.EINVAL)
