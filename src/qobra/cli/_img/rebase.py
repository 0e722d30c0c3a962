"""``rebase``: let an image lie on another backing file."""

from __future__ import annotations

import errno
import os

from qobra.block.cache_modes import CACHE_MODES
from qobra.block.copy.ahead import read_ahead
from qobra.block.copy.chunk import CopyFailed
from qobra.block.copy.ranges import unallocated_above
from qobra.block.copy.writeback import Writeback
from qobra.block.filename import relative_to
from qobra.block.node import drivers
from qobra.cli._img._copying import copy
from qobra.cli._img._differences import Side, SideError, candidates, differences, has_data
from qobra.cli._img._pieces import Pieces
from qobra.cli._img._target import reason
from qobra.cli._tool.opening import Images, command_line, node_of
from qobra.cli._tool.process import collect_garbage
from qobra.cli._tool.progress import Progress
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.block.node import BlockNode

AHEAD = 2
"""Pieces that are read ahead of what is written."""

HELP = """\
rebase -b BACKING [-F BACKING_FMT] [-u] [-f FMT | --image-opts] [-t CACHE] [-T CACHE] [-p] [-q] [-U] [--object DEF]
FILENAME

Let an image lie on BACKING ('' for none) instead of its present backing file. Its contents stay what they are: where
the two backing files differ, the image gets a copy of the old one's data.

  -u  only change the name in the image, without a look at either backing file
"""


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    line, images = command_line(program, arguments, "f:F:b:upt:T:qU", ("image-opts", "force-share|U"))
    operands = line.operands
    backing, backing_format = line.optional("b"), line.optional("F")
    cache, source_cache = line.value("t", "writeback"), line.value("T", "writeback")
    unsafe = line.has("u")
    with images:
        if len(operands) != 1:
            raise usage("Expecting one image file name")
        if not unsafe and backing is None:
            raise usage("Must specify backing file (-b) or use unsafe mode (-u)")
        if cache not in CACHE_MODES:
            raise ToolError(f"Invalid cache option: {cache}")
        if source_cache not in CACHE_MODES:
            raise ToolError(f"Invalid source cache option: {source_cache}")
        backend = images.open(
            operands[0],
            fmt=line.optional("f"),
            image_opts=line.has("image-opts"),
            writable=True,
            cache=cache,
            backing=not unsafe,
        )
        top = node_of(backend)
        if backing_format is not None and drivers.find(backing_format) is None:
            raise ToolError(f"Invalid format name: '{backing_format}'")
        with program.progress(line.has("p") and not line.has("q")) as progress:
            if not unsafe:
                assert backing is not None
                new = _open_new(images, operands[0], backing, backing_format, source_cache, line.has("U"))
                collect_garbage()
                _copy_differences(images, top, new, progress)
            _change(top, backing, backing_format)
            images.close()
            progress.finish()
    return 0


def _open_new(
    images: Images, filename: str, backing: str, fmt: str | None, cache: str, force_share: bool
) -> BlockNode | None:
    """The new backing file, read-only; None where there is to be none."""
    if not backing:
        return None
    try:
        full = relative_to(backing, filename)
    except QobraError as error:
        raise ToolError(f"Could not resolve backing filename: {error}")
    try:
        return node_of(images.open(full, fmt=fmt, cache=cache, force_share=force_share))
    except ToolError as error:
        text = error.text.removeprefix(f"Could not open '{full}': ")
        raise ToolError(f"Could not open new backing file '{backing}': {text}")


def _copy_differences(images: Images, top: BlockNode, new: BlockNode | None, progress: Progress) -> None:
    """Give the image itself what it sees through its old backing file and would not through the new one."""
    old = top.backing
    length = top.length
    progress.start(length)
    if old is None and new is None:
        return
    sides = [
        Side(Pieces(images.layer, [(node, 0, length)]), name, AHEAD + 2)
        for node, name in ((old, "old backing file"), (new, "new backing file"))
    ]
    unit = top.cluster_size() or 65536
    writeback = Writeback(top)

    def done(length: int) -> None:
        progress.add(length)
        writeback.note(length)

    def parts() -> Iterator[tuple[int, int, bool]]:
        """What the two sides may differ in, as (start, end, whether it is whole clusters of zeroes on the new side)."""
        for offset, size in unallocated_above(top, old):
            for start, part, a, b in candidates(sides[0], sides[1], offset, size):
                low = high = end = start + part
                if has_data(a) and not has_data(b):
                    low, high = -(-start // unit) * unit, end if end == length else end // unit * unit
                if low < high:
                    yield start, low, False
                    yield low, high, True
                    yield high, end, False
                else:
                    yield start, end, False

    def pieces() -> Iterator[tuple[int, int, memoryview | None]]:
        for start, end, is_simple in parts():
            if start < end and not is_simple:
                yield from differences(sides[0], sides[1], start, end - start, unit)
                yield end, start - end, None

    try:
        # Where the new side is zero, this is a copy into clusters that the image does not have yet.
        copy(
            sides[0].node,
            top,
            ((start, end - start) for start, end, is_simple in parts() if is_simple),
            detect_zeroes=unit,
            target_is_zero=True,
            progress=done,
            failure=_failed,
        )
        for start, part, view in read_ahead(pieces(), AHEAD):
            if part > 0:
                _write(top, start, part, view)
            else:
                done(-part)
    except SideError as error:
        raise ToolError(f"error while reading from {error.side.name}")
    finally:
        writeback.close()


def _write(top: BlockNode, start: int, size: int, view: memoryview | None) -> None:
    try:
        if view is None:
            top.write_zeroes(start, size)
        else:
            top.write(start, view)
    except (OSError, QobraError) as error:
        raise _write_failed(error)


def _failed(failed: CopyFailed) -> ToolError:
    return ToolError("error while reading from old backing file") if failed.is_read else _write_failed(failed.error)


def _write_failed(error: OSError | QobraError) -> ToolError:
    return ToolError(f"Error while writing to COW image: {reason(error)}")


def _change(top: BlockNode, backing: str | None, fmt: str | None) -> None:
    failed = f"Could not change the backing file to '{'(null)' if backing is None else backing}'"
    if backing and not fmt:
        raise ToolError(f"{failed}: backing format must be specified")
    try:
        if not top.supports_backing:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        top.change_backing_file(backing or "", fmt or "")
    except (OSError, QobraError) as error:
        if error.errno == errno.ENOSPC:
            raise ToolError(f"{failed}: No space left in the file header")
        raise ToolError(f"{failed}: {reason(error)}")
