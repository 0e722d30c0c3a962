"""Commands of dirty bitmaps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.block import bitmap_changes as changes
from qobra.qmp.registry import command

if TYPE_CHECKING:
    from qobra.machine.machine import Machine
    from qobra.model import (
        BlockDirtyBitmap,
        BlockDirtyBitmapAdd,
        BlockDirtyBitmapMerge,
        BlockDirtyBitmapSha256,
    )


@command("block-dirty-bitmap-add")
def block_dirty_bitmap_add(machine: Machine, args: BlockDirtyBitmapAdd) -> None:
    changes.add_bitmap(machine.block, args).settle()


@command("block-dirty-bitmap-remove")
def block_dirty_bitmap_remove(machine: Machine, args: BlockDirtyBitmap) -> None:
    changes.remove_bitmap(machine.block, args["node"], args["name"]).settle()


@command("block-dirty-bitmap-clear")
def block_dirty_bitmap_clear(machine: Machine, args: BlockDirtyBitmap) -> None:
    changes.clear_bitmap(machine.block, args["node"], args["name"]).settle()


@command("block-dirty-bitmap-enable")
def block_dirty_bitmap_enable(machine: Machine, args: BlockDirtyBitmap) -> None:
    changes.enable_bitmap(machine.block, args["node"], args["name"]).settle()


@command("block-dirty-bitmap-disable")
def block_dirty_bitmap_disable(machine: Machine, args: BlockDirtyBitmap) -> None:
    changes.disable_bitmap(machine.block, args["node"], args["name"]).settle()


@command("block-dirty-bitmap-merge")
def block_dirty_bitmap_merge(machine: Machine, args: BlockDirtyBitmapMerge) -> None:
    changes.merge_bitmaps(machine.block, args["node"], args["target"], args["bitmaps"]).settle()


@command("x-debug-block-dirty-bitmap-sha256")
def x_debug_block_dirty_bitmap_sha256(machine: Machine, args: BlockDirtyBitmap) -> BlockDirtyBitmapSha256:
    return {"sha256": changes.find_bitmap(machine.block, args["node"], args["name"]).sha256()}
