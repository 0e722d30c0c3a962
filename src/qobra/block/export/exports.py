"""The exports of a block layer, by id, and its NBD server. Everything here is called in the control strand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block.export.export import Export, kinds, required_iothread
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.export.nbd.server import NbdServer
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode


LEAVING = 0.2
"""Seconds that a client which is gone, or disconnected, is given to leave its export before that is called in use."""


class Exports:
    """See the module."""

    def __init__(self, layer: BlockLayer) -> None:
        self._layer = layer
        self._exports: dict[str, Export] = {}
        self.nbd_server: NbdServer | None = None

    # Exports of every kind --------------------------------------------------------------------------------------------

    def add(self, options: dict[str, Any]) -> Export:
        """block-export-add: make the export that ``options`` (a BlockExportOptions) describes. Raises QobraError."""
        from qobra.block.opener import valid_id

        name = options["id"]
        if not valid_id(name):
            raise QobraError("Invalid block export id")
        if name in self._exports:
            raise QobraError(f"Block export id '{name}' is already in use")
        kind = kinds.find(options["type"])
        if kind is None:
            raise QobraError("No driver found for the requested export type")
        node = self._layer.find_node(options["node-name"])
        writable = options.get("writable", False)
        if writable and node.read_only:
            raise QobraError("Cannot export read-only node as writable")
        if "iothread" in options:
            required_iothread(self._layer, options["iothread"])
        return self._make(kind, options, node, writable)

    def add_nbd(self, arguments: dict[str, Any]) -> Export:
        """nbd-server-add: the older form, by device or node, whose id is the export's name. Raises QobraError."""
        node = self._layer.find_device_or_node(arguments["device"])
        options: dict[str, Any] = {
            "type": "nbd",
            "id": arguments.get("name", arguments["device"]),
            "node-name": node.node_name,
            "name": arguments.get("name", arguments["device"]),
            # Unlike block-export-add, which refuses, this one settles for what there is.
            "writable": arguments.get("writable", False) and not node.read_only,
        }
        if "description" in arguments:
            options["description"] = arguments["description"]
        if "bitmap" in arguments:
            options["bitmaps"] = [arguments["bitmap"]]
        export = self.add(options)
        drive = self._layer.backends.get(arguments["device"])
        if drive is not None:
            # It goes when the medium is taken out of the drive.
            def eject() -> None:
                if not export.shutting_down:
                    export.request_shutdown()

            drive.ejecting.append(eject)
            export.when_gone.append(lambda: drive.ejecting.remove(eject))
        return export

    def remove(self, name: str, mode: str = "safe", *, only: str | None = None) -> None:
        """block-export-del: begin to remove an export; BLOCK_EXPORT_DELETED tells when it is gone.

        ``mode`` ``safe`` refuses while clients are connected, ``hard`` disconnects them. ``only`` is a type that the
        export must have. Raises QobraError.
        """
        export = self._exports.get(name)
        if export is None:
            raise QobraError(f"Export '{name}' is not found")
        if only is not None and export.type_name != only:
            raise QobraError(f"Block export '{name}' is not an {only.upper()} export")
        if export.shutting_down:
            raise QobraError(f"Export '{name}' is already shutting down")
        if mode == "safe":
            export.wait_hung_up(LEAVING)
            if export.in_use:
                raise QobraError(f"export '{name}' still in use")
        export.request_shutdown()
        # So that whoever asks next finds it gone, unless a request takes its time.
        export.wait_left(LEAVING)

    def remove_nbd(self, name: str, mode: str = "safe") -> None:
        """nbd-server-remove: :meth:`remove` for NBD exports."""
        self.remove(name, mode, only="nbd")

    def query(self) -> list[dict[str, Any]]:
        """Every export as a BlockExportInfo, the newest first."""
        return [export.info() for export in reversed(self._exports.values())]

    def of_type(self, kind: str) -> list[Export]:
        """The exports of one type, oldest first."""
        return [export for export in self._exports.values() if export.type_name == kind]

    def finish(self, export: Export) -> None:
        """The last client of an export that shuts down has left: let go of its node and tell."""
        with self._layer.control:
            if export.in_use or self._exports.get(export.id) is not export:
                return
            del self._exports[export.id]
            export.release()
            try:
                export.backend.remove()
            except (OSError, QobraError):
                pass  # a node that could not be flushed when nobody used it any more; it is closed all the same
            for call in export.when_gone:
                call()
            self._layer.emit("BLOCK_EXPORT_DELETED", {"id": export.id})

    # The NBD server ---------------------------------------------------------------------------------------------------

    def start_nbd_server(
        self,
        address: dict[str, Any],
        *,
        tls_creds: str | None = None,
        tls_authz: str | None = None,
        max_connections: int = 0,
    ) -> NbdServer:
        """nbd-server-start: listen on ``address`` (a SocketAddress). Raises QobraError."""
        from qobra.block.export.nbd.server import NbdServer

        if self.nbd_server is not None:
            raise QobraError("NBD server already running")
        server = NbdServer(self._layer, tls_creds=tls_creds, tls_authz=tls_authz, max_connections=max_connections)
        server.listen(address, self._layer.find_fd)
        self.nbd_server = server
        return server

    def stop_nbd_server(self, *, required: bool = False) -> None:
        """nbd-server-stop: disconnect everybody and drop all NBD exports.

        Does nothing without a server, or raises QobraError where it is ``required``.
        """
        self._stop_nbd_server(required=required, keep_sockets=False)

    def _stop_nbd_server(self, *, required: bool, keep_sockets: bool) -> None:
        server, self.nbd_server = self.nbd_server, None
        if server is not None:
            server.close(keep_sockets=keep_sockets)
        elif required:
            raise QobraError("NBD server not running")
        self._end(self.of_type("nbd"))

    def close(self) -> None:
        """End the server and every export. As QEMU does, it leaves its sockets in the file system."""
        self._stop_nbd_server(required=False, keep_sockets=True)
        self._end(list(self._exports.values()))

    def _make(self, kind: type[Export], options: dict[str, Any], node: BlockNode, writable: bool) -> Export:
        export = kind(self._layer, options, node, writable)
        try:
            export.start()
        except BaseException:
            export.release()
            export.backend.remove()
            raise
        self._exports[export.id] = export
        return export

    def _end(self, exports: list[Export]) -> None:
        """Shut ``exports`` down and see them gone before this returns."""
        for export in exports:
            if not export.shutting_down:
                export.request_shutdown()
        for export in exports:
            export.wait_idle()
            self.finish(export)
