"""Serve one image over NBD until the last client has left, or for ever."""

from __future__ import annotations

import os
import signal
from _queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any

from qobra.block.backend import BlockBackend
from qobra.block.export.nbd.server import NbdServer
from qobra.cli._tool.report import ToolError
from qobra.errors import QobraError, strerror

if TYPE_CHECKING:
    from qobra.block.export.nbd.connection import Connection
    from qobra.block.layer import BlockLayer

EXPORT_ID = "qobra-nbd-export"


class Server(NbdServer):
    """Tells when the last client that had chosen an export has left: every reason to end is put into ``reasons``."""

    def __init__(self, layer: BlockLayer, **arguments: Any) -> None:
        super().__init__(layer, **arguments)
        # A handler of signals puts into it while its own thread waits: an Event or a Condition would not survive that.
        self.reasons: SimpleQueue[str] = SimpleQueue()

    def ended(self, connection: Connection) -> None:
        """See :meth:`NbdServer.ended`."""
        super().ended(connection)
        if connection.has_chosen and not self.connections:
            self.reasons.put("left")


def bind(
    layer: BlockLayer,
    address: dict[str, Any],
    *,
    label: str | None,
    shared: int,
    tls_creds: str | None,
    tls_authz: str | None,
) -> Server:
    """A server that is bound to ``address`` (none: only what is handed to it is served), with nothing to serve yet.

    ``label`` is the SELinux context of the socket.
    """
    if tls_creds is not None:
        try:
            server = Server(layer, tls_creds=tls_creds, tls_authz=tls_authz, max_connections=shared)
        except QobraError as error:
            raise ToolError(f"Failed to get TLS creds: {error}")
    else:
        server = Server(layer, max_connections=shared)
    layer.exports.nbd_server = server
    if address:
        if label is not None:
            _label_sockets(label)
        server.bind(address, int)
        if label is not None:
            _label_sockets("")
    return server


def _label_sockets(label: str) -> None:
    """Let sockets that are made from now on have a SELinux context (proc(5): attr/sockcreate)."""
    try:
        with open("/proc/thread-self/attr/sockcreate", "w", encoding="utf-8") as file:
            file.write(label)
    except OSError as error:
        what = f"set SELinux socket create context to {label}" if label else "clear SELinux socket create context"
        raise ToolError(f"Cannot {what}: {strerror(error)}")


def start(
    server: Server,
    backend: BlockBackend,
    *,
    writable: bool,
    name: str,
    description: str,
    bitmaps: list[str],
    allocation_depth: bool,
) -> None:
    """Export the node in ``backend``, and accept clients."""
    options: dict[str, Any] = {
        "type": "nbd",
        "id": EXPORT_ID,
        "node-name": backend.inserted().node_name,
        "name": name,
        "description": description,
        "writable": writable,
        "writethrough": not backend.writeback,
        "allocation-depth": allocation_depth,
    }
    if bitmaps:
        options["bitmaps"] = bitmaps
    server.layer.exports.add(options)
    server.accept()


def end_by_signals(server: Server) -> None:
    """From here on a signal is a reason to end, and what was begun comes to its end: an image is closed as a whole.

    To be called before there are clients, who may have what they want, and end the server, at any moment.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.reasons.put("signal")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)


def wait(server: Server, *, persistent: bool) -> None:
    """Wait until a signal ends the server or, unless ``persistent``, the last client has left."""
    while server.reasons.get() == "left" and persistent:
        pass


def write_pid_file(path: str) -> int:
    """Write the process id into ``path`` and keep it locked; the descriptor. Raises ToolError."""
    import fcntl

    try:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ToolError(f"Could not create '{path}': {strerror(error)}")
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ToolError(f"Cannot lock pid file: {strerror(error)}")
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd
