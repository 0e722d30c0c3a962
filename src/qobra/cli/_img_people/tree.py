"""``qobra img tree``: an image's chain, with what each layer holds and adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block.extents import ABSENT, ZERO, resolve
from qobra.block.query import cow_backing
from qobra.cli._img.info import check_output
from qobra.cli._tool.opening import Images, node_of, opening
from qobra.cli._tool.report import Program, usage
from qobra.getopt import parse_command
from qobra.report import visible
from qobra.units import size_text

if TYPE_CHECKING:
    from qobra.block.node import BlockNode

HELP = """\
tree [-f FMT | --image-opts] [-U] [--output human|json] FILENAME

Draw an image and what it lies on, with the size of each layer, what it takes on the host, what it holds itself, and how
much of what a guest sees comes from it.
"""

STEP = 1 << 30


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    line = parse_command(arguments, "f:U", ("format=|f", "image-opts", "force-share|U", "output="))
    if len(line.operands) != 1:
        raise usage("Expecting one image file name")
    is_json = check_output(line)
    with Images(program) as images:
        layers = describe(node_of(images.open(line.operands[0], **opening(line))))
    if is_json:
        from qobra.json_text import dumps

        print(dumps(layers))
    else:
        print("\n".join(draw(layers)))
    return 0


def describe(top: BlockNode) -> list[dict[str, Any]]:
    """The layers, from the top down; sizes in bytes, ``actual-size`` None where it is not known."""
    seen = _seen(top)
    layers: list[dict[str, Any]] = []
    node: BlockNode | None = top
    while node is not None:
        layers.append(
            {
                "filename": node.filename,
                "format": node.driver,
                "virtual-size": node.length,
                "actual-size": node.allocated_size(),
                "data": _held(node),
                "seen": seen.get(len(layers), 0),
            }
        )
        node = cow_backing(node)
    return layers


def draw(layers: list[dict[str, Any]]) -> list[str]:
    """The lines of the picture."""
    lines = []
    for depth, layer in enumerate(layers):
        actual = layer["actual-size"]
        pad = "   " * (depth - 1) + "└─ " if depth else ""
        more = "   " * depth + ("│  " if depth + 1 < len(layers) else "   ")
        lines.append(f"{pad}{visible(layer['filename'])}  [{layer['format']}]")
        lines.append(
            f"{more}{size_text(layer['virtual-size'])} virtual, "
            f"{'unknown' if actual is None else size_text(actual)} on the host, {size_text(layer['data'])} of data, "
            f"{size_text(layer['seen'])} of it seen from the top"
        )
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
