"""``qobra img map --plot FILE.svg``: a picture of where an image's data lies."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from qobra.block.query import cow_backing
from qobra.cli._img._pieces import disk_size
from qobra.cli._img.map import walk
from qobra.cli._tool.opening import Images, node_of, opening
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.errors import strerror
from qobra.getopt import parse_command
from qobra.units import size_text

if TYPE_CHECKING:
    from qobra.block.node import BlockNode

HELP = """\
map --plot FILE.svg [-f FMT | --image-opts] [-U] FILENAME

Draw where the data of an image lies: a bar for each layer of the chain, from the beginning of the disk to its end, the
darker the more of a place is data. (Without --plot, 'map' is qemu-img's.)
"""

COLUMNS = 1024
ROW_HEIGHT = 44
BAR_HEIGHT = 22
MARGIN = 16
COLOURS = ("#2563eb", "#16a34a", "#d97706", "#9333ea", "#dc2626", "#0891b2")


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    line = parse_command(arguments, "f:U", ("format=|f", "image-opts", "force-share|U", "plot="))
    plot = line.value("plot", "")
    if len(line.operands) != 1:
        raise usage("Expecting one image file name")
    if not plot.endswith(".svg") and not plot.startswith("/dev/"):
        # Names that change places would cost somebody a disk.
        raise usage(f"'{plot}' does not end in .svg, which is all that is drawn")
    with Images(program) as images:
        node = node_of(images.open(line.operands[0], **opening(line)))
        text = picture(node)
    try:
        with open(plot, "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise ToolError(f"Could not write '{plot}': {strerror(error)}")
    return 0


def picture(top: BlockNode) -> str:
    """The picture as SVG."""
    size = max(disk_size(top), 1)
    names = []
    node: BlockNode | None = top
    while node is not None:
        names.append(node.filename)
        node = cow_backing(node)
    filled = _filled(top, size, len(names))
    height = MARGIN + len(names) * ROW_HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS + 2 * MARGIN} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for row, name in enumerate(names):
        top_edge = MARGIN + row * ROW_HEIGHT
        held = sum(filled[row])
        colour = COLOURS[row % len(COLOURS)]
        parts.append(
            f'<text x="{MARGIN}" y="{top_edge + 10}" fill="#111827">{escape(name)}  '
            f"({size_text(int(held))} of data)</text>"
        )
        parts.append(f'<rect x="{MARGIN}" y="{top_edge + 16}" width="{COLUMNS}" height="{BAR_HEIGHT}" fill="#e5e7eb"/>')
        parts += _bars(filled[row], size / COLUMNS, top_edge + 16, colour)
    parts.append(f'<text x="{MARGIN}" y="{height - MARGIN}" fill="#6b7280">0</text>')
    parts.append(
        f'<text x="{MARGIN + COLUMNS}" y="{height - MARGIN}" fill="#6b7280" text-anchor="end">{size_text(size)}</text>'
    )
    parts.append("</svg>\n")
    return "\n".join(parts)


def _filled(top: BlockNode, size: int, layers: int) -> list[list[float]]:
    """Bytes of data in each column of each layer."""
    filled = [[0.0] * COLUMNS for _ in range(layers)]
    width = size / COLUMNS
    for entry in walk(top, 0, disk_size(top)):
        if not entry.data or entry.zero or entry.depth >= layers:
            continue
        start, end = float(entry.start), entry.start + entry.length
        column = min(COLUMNS - 1, int(start / width))
        while start < end and column < COLUMNS:
            edge = min(end, (column + 1) * width) if column < COLUMNS - 1 else end
            filled[entry.depth][column] += edge - start
            start = edge
            column += 1
    return filled


def _bars(columns: list[float], width: float, y: int, colour: str) -> list[str]:
    """Columns of the same shade drawn as one rectangle."""
    shades = [round(10 * min(1.0, filled / width)) or (1 if filled else 0) for filled in columns]
    bars = []
    start = 0
    for column in range(1, COLUMNS + 1):
        if column == COLUMNS or shades[column] != shades[start]:
            if shades[start]:
                bars.append(
                    f'<rect x="{MARGIN + start}" y="{y}" width="{column - start}" height="{BAR_HEIGHT}" '
                    f'fill="{colour}" fill-opacity="{shades[start] / 10}"/>'
                )
            start = column
    return bars
