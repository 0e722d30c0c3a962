"""``qobra img tree``: an image's chain, with what each layer holds and adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.block.extents import ABSENT, ZERO, resolve
from qobra.block.query import cow_backing
from qobra.cli._tool.opening import Images, node_of, opening
from qobra.cli._tool.report import Program, usage, visible
from qobra.getopt import parse_command
from qobra.units import size_text

if TYPE_CHECKING:
    from qobra.block.node import BlockNode

HELP = """\
tree [-f FMT | --image-opts] [-U] FILENAME

Draw an image and what it lies on, with the size of each layer, what it takes on the host, what it holds itself, and how
much of what a guest sees comes from it.
"""

STEP = 1 << 30


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    line = parse_command(arguments, "f:U", ("format=|f", "image-opts", "force-share|U"))
    if len(line.operands) != 1:
        raise usage("Expecting one image file name")
    with Images(program) as images:
        node = node_of(images.open(line.operands[0], **opening(line)))
        print("\n".join(draw(node)))
    return 0


def draw(top: BlockNode) -> list[str]:
    """The lines of the picture."""
    seen = _seen(top)
    lines = []
    node: BlockNode | None = top
    depth = 0
    while node is not None:
        actual = node.allocated_size()
        pad = "   " * (depth - 1) + "└─ " if depth else ""
        more = "   " * depth + ("│  " if cow_backing(node) is not None else "   ")
        lines.append(f"{pad}{visible(node.filename)}  [{node.driver}]")
        lines.append(
            f"{more}{size_text(node.length)} virtual, "
            f"{'unknown' if actual is None else size_text(actual)} on the host, {size_text(_held(node))} of data, "
            f"{size_text(seen.get(depth, 0))} of it seen from the top"
        )
        node = cow_backing(node)
        depth += 1
    return lines


def _seen(top: BlockNode) -> dict[int, int]:
    """Bytes that a guest reads from each depth of the chain."""
    seen: dict[int, int] = {}
    for start in range(0, top.length, STEP):
        for run in resolve(top, start, min(STEP, top.length - start), want_zero=True):
            if run.kind not in (ZERO, ABSENT) and run.depth >= 0:
                seen[run.depth] = seen.get(run.depth, 0) + run.length
    return seen


def _held(node: BlockNode) -> int:
    """Bytes of data that a layer holds itself, whether they are seen or not."""
    total = 0
    for start in range(0, node.length, STEP):
        if node.is_transparent:
            runs = resolve(node, start, min(STEP, node.length - start), want_zero=True)
            total += sum(run.length for run in runs if run.kind not in (ZERO, ABSENT))
        else:
            extents = node.map(start, min(STEP, node.length - start))
            total += sum(extent.length for extent in extents if extent.kind not in (ZERO, ABSENT))
    return total
