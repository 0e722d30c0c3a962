"""``commit``: put what an image holds into the image that it lies on."""

from __future__ import annotations

import errno

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.cache_modes import CACHE_MODES
from qobra.block.copy.ranges import allocated_above
from qobra.block.copy.writeback import Writeback
from qobra.block.job.chain import backing_of, find_by_name, set_read_only, skip_filters
from qobra.block.node import BlockNode
from qobra.cli._img._copying import copy
from qobra.cli._img._target import reason
from qobra.cli._img._throttle import Throttle
from qobra.cli._tool.opening import Images, command_line, node_of, opening
from qobra.cli._tool.process import collect_garbage
from qobra.cli._tool.progress import Progress
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.errors import QobraError, strerror

HELP = """\
commit [-f FMT | --image-opts] [-t CACHE] [-b BASE] [-r RATE] [-d] [-p] [-q] [--object DEF] FILENAME

Put what an image holds into its backing file, or, with those between, into BASE further down. Without -b and -d the
image is empty afterwards.

  -d       leave the image as it is
  -r RATE  copy no more than RATE bytes a second
"""


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    rate = 0

    def look(option: str, value: str) -> None:
        nonlocal rate
        if option == "r":
            rate = program.number("rate limit", value)

    line, images = command_line(program, arguments, "f:t:b:r:dpq", ("image-opts",), look)
    base_name = line.optional("b")
    # With a base further down, what lies between would have to be emptied too.
    drop = line.has("d") or base_name is not None
    cache = line.value("t", "writeback")
    quiet = line.has("q")
    with images:
        if len(line.operands) != 1:
            raise usage("Expecting one image file name")
        if cache not in CACHE_MODES:
            raise ToolError(f"Invalid cache option: {cache}")
        backend = images.open(
            line.operands[0], **opening(line), writable=True, cache=cache, options={"discard": "unmap"}
        )
        with program.progress(line.has("p") and not quiet) as progress:
            top = node_of(backend)
            base = _find_base(top, base_name, line.operands[0])
            collect_garbage()
            _commit(images, top, base, progress, Throttle(rate) if rate else None)
            if not drop:
                _flush(base)  # before what it now holds is given up above
                _empty(top)
            images.close()
            progress.finish()
        if not quiet:
            print("Image committed.")
    return 0


def _find_base(top: BlockNode, name: str | None, filename: str) -> BlockNode:
    below = backing_of(top)
    if name is None:
        if below is None:
            raise ToolError("Image does not have a backing file")
        return below
    base = find_by_name(top, name)
    if base is None:
        raise ToolError(f"Did not find '{name}' in the backing chain of '{filename}'")
    return base


def _commit(images: Images, top: BlockNode, base: BlockNode, progress: Progress, throttle: Throttle | None) -> None:
    layer = images.layer
    root = BlockBackend(
        layer,
        perm=permissions.CONSISTENT_READ | permissions.WRITE | permissions.RESIZE,
        description="commit",
    )
    try:
        set_read_only(layer, base, False)
        root.insert(base)
        base.discard_unmap = True  # what is zero above is to be a hole below
        if base.length < top.length:
            base.truncate(top.length)
    except QobraError as error:
        raise ToolError(str(error))
    except OSError as error:
        raise ToolError(strerror(error))

    progress.start(top.length)
    writeback = Writeback(base)

    def copied(length: int) -> None:
        progress.add(length)
        writeback.note(length)

    try:
        copy(
            top,
            base,
            allocated_above(top, base),
            progress=copied,
            throttle=throttle.wait if throttle is not None else None,
            failure=lambda failed: ToolError(f"Block job failed: {reason(failed.error)}"),
        )
    finally:
        writeback.close()


def _flush(base: BlockNode) -> None:
    try:
        base.flush()
    except (OSError, QobraError) as error:
        raise ToolError(f"Block job failed: {reason(error)}")


def _empty(top: BlockNode) -> None:
    """Nothing of the image is needed any more; a format that cannot give it up keeps it."""
    node = skip_filters(top)
    try:
        if node.make_empty():
            node.flush()
    except (OSError, QobraError) as error:
        if error.errno != errno.ENOTSUP:
            raise ToolError(f"Failed to empty {node.filename}: {reason(error)}")
