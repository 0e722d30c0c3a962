"""From a URI, an address or a socket to a :class:`~qobra.nbd.client.Client`, or to a list of exports."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from qobra.errors import QobraError
from qobra.nbd import uri as uris
from qobra.nbd.client import Client
from qobra.nbd.handshake import Handshake
from qobra.nbd.sockets import connect as connect_socket
from qobra.nbd.transport import Transport

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Sequence
    from typing import TypedDict, Unpack

    from qobra.nbd.export_info import ExportInfo
    from qobra.nbd.server_process import ServerProcess
    from qobra.nbd.sockets import FindFd

    Place = dict[str, Any] | socket.socket | ServerProcess
    Target = str | Place
    Tls = bool | ssl.SSLContext | None

    class ConnectOptions(TypedDict, total=False):
        """What :func:`connect` takes by keyword."""

        tls: Tls
        tls_hostname: str | None
        meta_contexts: Sequence[str]
        structured: bool
        timeout: float | None
        handshake_timeout: float
        find_fd: FindFd | None


HANDSHAKE_SECONDS = 30.0


class Negotiated(NamedTuple):
    """A connection whose handshake is over."""

    transport: Transport
    info: ExportInfo
    structured: bool
    contexts: dict[int, str]


def connect(target: Target, export: str | None = None, **options: Unpack[ConnectOptions]) -> Client:
    """Connect to an NBD export.

    ``target`` is an NBD URI, a SocketAddress as QMP writes it, a connected stream socket, which the client then owns,
    or a :class:`~qobra.nbd.server_process.ServerProcess`, which is started if it does not run. ``export`` overrides the
    URI's. ``tls`` is an ``ssl.SSLContext``, or True for one made of the URI's parameters and the system's authorities;
    None follows the URI's scheme. ``meta_contexts`` are asked for, and :attr:`Client.meta_contexts` tells which were
    granted. ``timeout`` (seconds) breaks the connection when an answer is due and the server sends nothing for so long;
    None waits for ever. ``find_fd`` gives the descriptor that an address of type fd names. Raises QobraError.
    """
    negotiated = negotiate(target, export, **options)
    return Client(negotiated.transport, negotiated.info, structured=negotiated.structured, contexts=negotiated.contexts)


def connect_command(argv: Sequence[str], export: str | None = None, **options: Unpack[ConnectOptions]) -> Client:
    """Start a server that speaks NBD on its standard input and output (``nbdkit -s``), and connect to it.

    It ends with the connection. Raises QobraError.
    """
    from qobra.nbd.server_process import ServerProcess

    return connect(ServerProcess(argv), export, **options)


def connect_systemd_socket_activation(
    argv: Sequence[str], export: str | None = None, **options: Unpack[ConnectOptions]
) -> Client:
    """Start a server that takes its listening socket as systemd passes it (nbdkit, qemu-nbd), and connect to it.

    It ends with the connection. Raises QobraError.
    """
    from qobra.nbd.server_process import ServerProcess

    return connect(ServerProcess(argv, activation=True), export, **options)


def negotiate(
    target: Target,
    export: str | None = None,
    *,
    tls: Tls = None,
    tls_hostname: str | None = None,
    meta_contexts: Sequence[str] = (),
    structured: bool = True,
    timeout: float | None = None,
    handshake_timeout: float = HANDSHAKE_SECONDS,
    find_fd: FindFd | None = None,
) -> Negotiated:
    """What :func:`connect` does but for the client."""
    handshake, name = open_handshake(
        target, export, tls=tls, tls_hostname=tls_hostname, handshake_timeout=handshake_timeout, find_fd=find_fd
    )
    try:
        if structured or meta_contexts:
            handshake.request_structured_replies()
        if meta_contexts and handshake.structured:
            handshake.set_meta_contexts(name, meta_contexts)
        info = handshake.go(name)
    except QobraError:
        handshake.abort()
        raise
    transport = handshake.transport
    transport.deadline, transport.timeout = None, timeout
    return Negotiated(transport, info, handshake.structured, handshake.contexts)


def list_exports(
    target: Target,
    *,
    tls: Tls = None,
    tls_hostname: str | None = None,
    handshake_timeout: float = HANDSHAKE_SECONDS,
) -> list[tuple[ExportInfo, list[str]]]:
    """Every export that the server tells of, with the metadata contexts that it has. Raises QobraError.

    An export that the server lists and then does not let us ask about has size -1.
    """
    from qobra.nbd.export_info import ExportInfo
    from qobra.nbd.handshake import OptionRefused

    handshake, _ = open_handshake(target, "", tls=tls, tls_hostname=tls_hostname, handshake_timeout=handshake_timeout)
    try:
        if handshake.oldstyle is not None:
            return [(handshake.oldstyle, [])]
        handshake.request_structured_replies()
        found = []
        for name, description in handshake.list_exports():
            contexts: list[str] = []
            try:
                info = handshake.info(name)
                info.description = info.description or description
                if handshake.structured:
                    contexts = handshake.list_meta_contexts(name)
            except OptionRefused:
                info = ExportInfo(name, -1, 0, description)
            found.append((info, contexts))
        return found
    finally:
        handshake.abort()


def open_handshake(
    target: Target,
    export: str | None = None,
    *,
    tls: Tls = None,
    tls_hostname: str | None = None,
    handshake_timeout: float = HANDSHAKE_SECONDS,
    find_fd: FindFd | None = None,
) -> tuple[Handshake, str]:
    """Connect, go over to TLS if asked, and stop there; the handshake, and the name of the export."""
    parameters: dict[str, str] = {}
    name = export or ""
    if isinstance(target, str):
        parsed = uris.parse(target)
        target, parameters = parsed.address, parsed.parameters
        name = parsed.export if export is None else export
        tls = parsed.tls if tls is None else tls
    context = _tls_context(tls, parameters)
    if context is not None and tls_hostname is None:
        tls_hostname = parameters.get("tls-hostname") or _hostname(target)
    deadline = time.monotonic() + handshake_timeout
    transport = _transport(target, handshake_timeout, find_fd)
    transport.deadline = deadline
    try:
        handshake = Handshake(transport)
        if context is not None:
            handshake.start_tls(context, tls_hostname)
    except BaseException:
        transport.close()
        raise
    return handshake, name


def _transport(place: Place, seconds: float, find_fd: FindFd | None) -> Transport:
    if isinstance(place, dict):
        return Transport(connect_socket(place, timeout=seconds, find_fd=find_fd))
    from qobra.nbd.server_process import ServerProcess

    if not isinstance(place, ServerProcess):
        return Transport(place)
    transport = Transport(place.connect())
    transport.on_close = place.release
    return transport


def _tls_context(tls: Tls, parameters: dict[str, str]) -> ssl.SSLContext | None:
    if not tls:
        return None
    if tls is not True:
        return tls
    from qobra.nbd.tls import client_context

    return client_context(
        parameters.get("tls-certificates"),
        verify=parameters.get("tls-verify-peer", "true").lower() not in ("false", "0", "no", "off"),
        psk_file=parameters.get("tls-psk-file"),
        username=parameters.get("tls-username"),
    )


def _hostname(target: Place) -> str:
    """What the certificate is checked against where nobody says: the host that we connect to."""
    if isinstance(target, dict) and target.get("type") == "inet":
        return str(target["host"])
    return "localhost"


__all__ = [
    "HANDSHAKE_SECONDS",
    "connect",
    "connect_command",
    "connect_systemd_socket_activation",
    "list_exports",
    "negotiate",
    "open_handshake",
]
