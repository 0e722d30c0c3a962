"""Copying for the subcommands: the copy engine, with its failures as errors of the program."""

from __future__ import annotations

from qobra.block.copy.chunk import ChunkCopier, CopyFailed
from qobra.block.copy.engine import copy_ranges, is_local
from qobra.block.copy.in_order import copy_in_order
from qobra.block.copy.moving import copy_moving, is_unpacked
from qobra.block.extents import COMPRESSED, resolve
from qobra.cli._img._target import read_failed, write_failed
from qobra.cli._tool.report import ToolError
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from qobra.block.copy.engine import Progress
    from qobra.block.node import BlockNode

SAMPLE = 64 << 20
DECOMPRESS_HELPERS = 2


def _begins_compressed(source: BlockNode) -> bool:
    """Whether reading means decompressing chunk by chunk, which several threads do better than one."""
    runs = resolve(source, 0, min(SAMPLE, source.length))
    return any(run.flags & COMPRESSED and not is_unpacked(run) for run in runs)


def copy(
    source: BlockNode,
    target: BlockNode,
    ranges: Any = None,
    *,
    salvage: Callable[[int, int], None] | None = None,
    in_order: bool = False,
    failure: Callable[[CopyFailed], ToolError] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    throttle: Callable[[int], None] | None = None,
    **options: Any,
) -> None:
    """Copy ``ranges`` (default: all) by the best way; ``options`` are :class:`ChunkCopier`'s.

    ``salvage(offset, length)`` is called for a chunk that cannot be read, and copies what it can of it. ``in_order``:
    it must go from the beginning to the end, whatever the ends are. ``failure`` makes the error where a command has
    another text for it. ``workers`` pieces are in flight at once (default: as suits the ends). ``progress`` and
    ``throttle`` are :func:`copy_ranges`'. Raises ToolError that says where it failed.
    """
    stopped: list[tuple[int, ToolError]] = []

    def failed(what: CopyFailed, offset: int, length: int) -> bool:
        # This may run in a helper's thread, which has nobody to raise to.
        if salvage is not None and what.is_read:
            try:
                salvage(offset, length)
                return True
            except ToolError as error:
                stopped.append((offset, error))
                return False
        if failure is not None:
            stopped.append((offset, failure(what)))
        else:
            stopped.append((offset, (read_failed if what.is_read else write_failed)(offset, what.error)))
        return False

    copier = ChunkCopier(source, target, **options)
    near = is_local(source) and is_local(target)
    local = in_order or (near and not _begins_compressed(source))
    try:
        if local and not copier.compress and (copier.detect_zeroes or not target.is_transparent):
            if in_order or throttle is not None:
                buffers = {} if workers is None else {"buffers": workers}
                copy_in_order(copier, ranges, progress=progress, throttle=throttle, on_error=failed, **buffers)
            else:
                copy_moving(copier, ranges, progress=progress, on_error=failed, workers=workers)
        else:
            if workers is None and near and not copier.compress:
                workers = DECOMPRESS_HELPERS
            copy_ranges(copier, ranges, helpers=workers, progress=progress, throttle=throttle, on_error=failed)
    except (OSError, QobraError):
        if not stopped:
            raise
    if stopped:
        # Of the pieces in flight any may be the first to fail: what is told must not depend on that.
        raise min(stopped, key=lambda each: each[0])[1]
