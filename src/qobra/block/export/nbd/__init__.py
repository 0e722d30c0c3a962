"""The ``nbd`` export: a node under a name in the NBD server."""

from __future__ import annotations

import errno
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.export.export import Export, kinds
from qobra.errors import QobraError
from qobra.nbd import protocol as p
from qobra.nbd.export_info import BlockSizes, ExportInfo

if TYPE_CHECKING:
    from qobra.block.bitmap import DirtyBitmap
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode

SECTOR = 512
PREFERRED_BLOCK = 4096

CONTEXT_ID_ALLOCATION = 0
CONTEXT_ID_DEPTH = 1
CONTEXT_ID_BITMAPS = 2
"""The id of the first bitmap's context; the others follow it."""


@kinds.register("nbd")
class NbdExport(Export):
    """A node that NBD clients of the server see as the export ``name``."""

    type_name = "nbd"

    def __init__(self, layer: BlockLayer, options: dict[str, Any], node: BlockNode, writable: bool) -> None:
        super().__init__(layer, options, node, writable)
        self.name: str = options.get("name", options["node-name"])
        self.description: str = options.get("description", "")
        self.allocation_depth: bool = options.get("allocation-depth", False)
        self.bitmaps: list[DirtyBitmap] = []
        self.asking = allocate_lock()
        """Held by who answers a question for block status."""

    def start(self) -> None:
        server = self.layer.exports.nbd_server
        if server is None:
            raise QobraError("NBD server not running")
        self._server = server
        if len(p.octets(self.name)) > p.MAX_STRING:
            raise QobraError(f"export name '{self.name}' too long")
        if len(p.octets(self.description)) > p.MAX_STRING:
            raise QobraError(f"description '{self.description}' too long")
        if server.lookup(self.name) is not None:
            raise QobraError(f"NBD server already has export named '{self.name}'")
        # Clients are told the size once.
        self.backend.set_permissions(self.backend.perm, permissions.ALL & ~permissions.RESIZE)
        node = self.backend.inserted()
        self.bitmaps = _find_bitmaps(self.layer, node, self.options.get("bitmaps", []), self.writable)
        for bitmap in self.bitmaps:
            bitmap.busy = True
        server.add(self)

    def stop(self) -> None:
        self._server.forget(self)

    def release(self) -> None:
        for bitmap in self.bitmaps:
            bitmap.busy = False

    # What the handshake asks (qobra.nbd.negotiation.ServedExport) -----------------------------------------------------

    def nbd_info(self, structured: bool) -> ExportInfo:
        """The export as the handshake tells it; ``structured`` replies add reads in one piece."""
        flags = p.FLAG_HAS_FLAGS | p.FLAG_SEND_FLUSH | p.FLAG_SEND_FUA | p.FLAG_SEND_CACHE
        if self.writable:
            flags |= p.FLAG_SEND_TRIM | p.FLAG_SEND_WRITE_ZEROES | p.FLAG_SEND_FAST_ZERO
        else:
            flags |= p.FLAG_READ_ONLY
        if self._server.max_connections != 1:
            # All connections share one node and its caches, so a flush on one is a flush of all.
            flags |= p.FLAG_CAN_MULTI_CONN
        if structured:
            flags |= p.FLAG_SEND_DF
        minimum = self.backend.inserted().request_alignment
        sizes = BlockSizes(minimum, max(PREFERRED_BLOCK, minimum), p.MAX_PAYLOAD)
        return ExportInfo(self.name, self.size, flags, self.description, sizes)

    @property
    def size(self) -> int:
        """The length that clients see: whole sectors, of which the last reads as zeroes where the node ends."""
        node = self.backend.inserted()
        rounded = -(-node.length // SECTOR) * SECTOR
        return rounded // node.request_alignment * node.request_alignment

    def contexts(self) -> dict[str, int]:
        """The metadata contexts that clients may select, by name."""
        contexts = {p.CONTEXT_BASE_ALLOCATION: CONTEXT_ID_ALLOCATION}
        if self.allocation_depth:
            contexts[p.CONTEXT_ALLOCATION_DEPTH] = CONTEXT_ID_DEPTH
        for number, bitmap in enumerate(self.bitmaps, CONTEXT_ID_BITMAPS):
            contexts[p.CONTEXT_DIRTY_BITMAP + (bitmap.name or "")] = number
        return contexts


def _find_bitmaps(
    layer: BlockLayer, node: BlockNode, wanted: list[str | dict[str, str]], writable: bool
) -> list[DirtyBitmap]:
    """The bitmaps that an export of ``node`` offers; a plain name is looked for down the backing chain.

    Whoever names the node as well is trusted to know whether that is written to.
    """
    found = []
    for each in wanted:
        bitmap: DirtyBitmap | None = None
        if isinstance(each, dict):
            name = each["name"]
            named = layer.graph.find(each["node"])
            if named is None:
                raise QobraError(f"Node '{each['node']}' not found")
            bitmap = named.bitmaps.get(name)
            if bitmap is None:
                raise QobraError(f"Dirty bitmap '{name}' not found", errno=errno.ENOENT)
        else:
            name = each
            holder: BlockNode | None = node
            while holder is not None and bitmap is None:
                bitmap = holder.bitmaps.get(name)
                holder = holder.backing or holder.filtered
        if bitmap is None:
            raise QobraError(f"Bitmap '{name}' is not found", errno=errno.ENOENT)
        if len(p.CONTEXT_DIRTY_BITMAP + name) > p.MAX_STRING:
            raise QobraError(f"Bitmap name '{name}' is too long for an NBD context")
        bitmap.check(read_only=False)
        if isinstance(each, str) and not writable and bitmap.enabled and not bitmap.node.read_only:
            raise QobraError(f"Enabled bitmap '{name}' incompatible with readonly export", errno=errno.EINVAL)
        found.append(bitmap)
    return found
