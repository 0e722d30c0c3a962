"""``convert --bitmaps``: carry the persistent bitmaps of an image over to another."""

from __future__ import annotations

from qobra.block import bitmap_changes as changes
from qobra.cli._tool.report import Program, ToolError
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.node import BlockNode
    from qobra.model import BlockDirtyBitmapAdd


def check_bitmaps(program: Program, source: BlockNode, *, skip_broken: bool) -> None:
    """Refuse inconsistent bitmaps before anything is written, unless they are to be left out. Raises ToolError."""
    for name, bitmap in reversed(list(source.bitmaps.items())):
        if bitmap.inconsistent and not skip_broken:
            hint = f"Try --skip-broken-bitmaps, or use '{program.name} bitmap --remove' to delete it"
            raise ToolError(f"Cannot copy inconsistent bitmap '{name}'\n{hint}")


def copy_bitmaps(program: Program, source: BlockNode, target: BlockNode, *, skip_broken: bool) -> None:
    """Add each persistent bitmap of ``source`` to ``target`` with what it says. Raises ToolError."""
    layer = target.layer
    # The newest first, so that they end up stored in the order in which the source has them.
    for name, bitmap in reversed(list(source.bitmaps.items())):
        if not bitmap.persistent:
            continue
        if bitmap.inconsistent:
            if skip_broken:
                program.warning(f"Skipping inconsistent bitmap '{name}'")
            continue
        order: BlockDirtyBitmapAdd = {
            "node": target.node_name,
            "name": name,
            "granularity": bitmap.granularity,
            "persistent": True,
            "disabled": True,
        }
        try:
            changes.add_bitmap(layer, order).settle()
        except QobraError as error:
            raise ToolError(f"Failed to create bitmap {name}: {error}")
        try:
            changes.merge_bitmaps(layer, target.node_name, name, [{"node": source.node_name, "name": name}]).settle()
            if bitmap.enabled:
                changes.enable_bitmap(layer, target.node_name, name).settle()
        except QobraError as error:
            changes.remove_bitmap(layer, target.node_name, name).settle()
            raise ToolError(f"Failed to populate bitmap {name}: {error}")
