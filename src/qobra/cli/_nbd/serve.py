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
        chose = getattr(connection, "export", None) is not None
        super().ended(connection)
        if chose and not self.connections:
            self.reasons.put("left")


def start(
    layer: BlockLayer,
    backend: BlockBackend,
    address: dict[str, Any],
    *,
    writable: bool,
    name: str,
    description: str,
    bitmaps: list[str],
    allocation_depth: bool,
    shared: int,
    tls_creds: str | None,
    tls_authz: str | None,
) -> Server:
    """Export the node in ``backend`` and listen at ``address`` (none: only what is handed to the server is served)."""
    if tls_creds is not None:
        try:
            server = Server(layer, tls_creds=tls_creds, tls_authz=tls_authz, max_connections=shared)
        except QobraError as error:
            raise ToolError(f"Failed to get TLS creds: {error}")
    else:
        server = Server(layer, max_connections=shared)
    layer.exports.nbd_server = server
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
    layer.exports.add(options)
    if address:
        server.listen(address, int)
    return server


def wait(server: Server, *, persistent: bool) -> None:
    """Wait until a signal ends the server or, unless ``persistent``, the last client has left."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.reasons.put("signal")

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
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
