"""Changes of named bitmaps that can be undone: what the bitmap commands and the transaction's actions have in common.

Each function makes its change at once and returns what commits or undoes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from qobra.block.bitmap import DEFAULT_GRANULARITY, DirtyBitmap, check_granularity
from qobra.block.contracts import BitmapStore
from qobra.block.transaction.change import Change
from qobra.errors import DEVICE_NOT_FOUND, QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer
    from qobra.model import BlockDirtyBitmap, BlockDirtyBitmapAdd


def find_bitmap(layer: BlockLayer, node_name: str, name: str) -> DirtyBitmap:
    """The bitmap ``name`` of the node or device. Raises QobraError (DeviceNotFound where there is no such node)."""
    try:
        node = layer.find_device_or_node(node_name)
    except QobraError:
        raise QobraError(f"Node '{node_name}' not found", DEVICE_NOT_FOUND)
    bitmap = node.bitmaps.get(name)
    if bitmap is None:
        raise QobraError(f"Dirty bitmap '{name}' not found")
    return bitmap


def add_bitmap(layer: BlockLayer, args: BlockDirtyBitmapAdd) -> Change:
    """Make the bitmap that ``args`` (BlockDirtyBitmapAdd) describe."""
    name = args["name"]
    if not name:
        raise QobraError("Bitmap name cannot be empty")
    node = layer.find_device_or_node(args["node"], DEVICE_NOT_FOUND)
    granularity = args.get("granularity", DEFAULT_GRANULARITY)
    check_granularity(granularity)
    persistent = args.get("persistent", False)
    if persistent:
        if not isinstance(node, BitmapStore):
            raise QobraError(
                f"Can't store persistent bitmaps to {layer.device_or_node_name(node)}: Operation not supported"
            )
        node.check_new_bitmap(name, granularity)
    bitmap = DirtyBitmap(node, name, granularity, enabled=not args.get("disabled", False), persistent=persistent)
    return Change(undo=bitmap.remove)


def remove_bitmap(layer: BlockLayer, node_name: str, name: str) -> Change:
    """Take the bitmap away when committed; until then it is busy and cannot be used.

    It leaves its image at once, since what is committed before may turn that read-only. Where it stays after all, it is
    stored anew with the others.
    """
    bitmap = find_bitmap(layer, node_name, name)
    bitmap.check(inconsistent=False)
    if bitmap.persistent and isinstance(bitmap.node, BitmapStore):
        bitmap.node.remove_stored_bitmap(name)
    bitmap.busy = bitmap.moving = True

    def undo() -> None:
        bitmap.busy = bitmap.moving = False

    return Change(undo, bitmap.remove)


def clear_bitmap(layer: BlockLayer, node_name: str, name: str) -> Change:
    """Make the bitmap clean."""
    bitmap = find_bitmap(layer, node_name, name)
    bitmap.check()
    old = bitmap.clear_all()
    return Change(undo=lambda: bitmap.add_back(old))


def enable_bitmap(layer: BlockLayer, node_name: str, name: str) -> Change:
    """Let the bitmap record writes."""
    bitmap = find_bitmap(layer, node_name, name)
    bitmap.check(read_only=False)
    was_enabled = bitmap.enabled
    bitmap.enable()
    return Change() if was_enabled else Change(undo=bitmap.disable)


def disable_bitmap(layer: BlockLayer, node_name: str, name: str) -> Change:
    """Let the bitmap record no more writes."""
    bitmap = find_bitmap(layer, node_name, name)
    bitmap.check(read_only=False)
    was_enabled = bitmap.enabled
    bitmap.disable()
    return Change(undo=bitmap.enable) if was_enabled else Change()


def merge_bitmaps(layer: BlockLayer, node_name: str, target: str, sources: Sequence[str | BlockDirtyBitmap]) -> Change:
    """Add to ``target`` what the ``sources`` hold: names of bitmaps of the same node, or ``node`` and ``name``."""
    bitmap = find_bitmap(layer, node_name, target)
    total = DirtyBitmap(bitmap.node, None, bitmap.granularity, enabled=False, length=bitmap.length)
    for source in sources:
        if isinstance(source, str):
            other = find_bitmap(layer, node_name, source)
        else:
            other = find_bitmap(layer, source["node"], source["name"])
        bitmap.check()
        other.check(read_only=False)
        total.merge(other)
    before = bitmap.snapshot()
    bitmap.merge(total)
    return Change(undo=lambda: bitmap.put_back(before))
