"""NBD, the network block device protocol: a client library, and the pieces that servers are built of.

::

    import qobra.nbd

    with qobra.nbd.connect("nbd+unix:///disk?socket=/run/nbd.sock", meta_contexts=["base:allocation"]) as disk:
        head = disk.pread(512, 0)
        disk.pwrite(b"x" * 4096, 1 << 20, fua=True)
        reads = [disk.aio_pread(4096, offset) for offset in range(0, 1 << 20, 4096)]
        data = [read.result() for read in reads]
        for offset, length, flags in disk.extents():
            ...

Nothing of Qobra but its error class is used here. ``docs/nbd.md`` is the manual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qobra.nbd.aio import AsyncClient as AsyncClient
    from qobra.nbd.client import Client as Client
    from qobra.nbd.connection import connect as connect
    from qobra.nbd.connection import connect_command as connect_command
    from qobra.nbd.connection import connect_systemd_socket_activation as connect_systemd_socket_activation
    from qobra.nbd.connection import list_exports as list_exports
    from qobra.nbd.connection import open_handshake as open_handshake
    from qobra.nbd.export_info import BlockSizes as BlockSizes
    from qobra.nbd.export_info import ExportInfo as ExportInfo
    from qobra.nbd.request import Request as Request
    from qobra.nbd.request import StatusExtent as StatusExtent
    from qobra.nbd.server_process import ServerProcess as ServerProcess

_HOMES = {
    "AsyncClient": "aio",
    "Client": "client",
    "connect": "connection",
    "connect_command": "connection",
    "connect_systemd_socket_activation": "connection",
    "list_exports": "connection",
    "open_handshake": "connection",
    "BlockSizes": "export_info",
    "ExportInfo": "export_info",
    "Request": "request",
    "StatusExtent": "request",
    "ServerProcess": "server_process",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    # Servers import the constants from here; they should not pay for the client.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"qobra.nbd.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'qobra.nbd' has no attribute '{name}'")
