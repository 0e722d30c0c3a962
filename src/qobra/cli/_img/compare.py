"""``compare``: whether two images show a guest the same bytes."""

from __future__ import annotations

from qobra.block.cache_modes import CACHE_MODES
from qobra.cli._img._differences import Side, SideError, candidates, first_of
from qobra.cli._img._pieces import Pieces, disk_size
from qobra.cli._img._target import reason
from qobra.cli._img.map import Entry, walk
from qobra.cli._tool.opening import command_line, node_of
from qobra.cli._tool.progress import Progress
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.node import BlockNode

HELP = """\
compare [-f FMT] [-F FMT] [--image-opts] [-T CACHE] [-p] [-q] [-s] [-U] [--object DEF] FILENAME1 FILENAME2

Say whether two images have the same contents. The larger of two is the same if what it has more is zeroes.
Exit status: 0 the same, 1 different, 2 an image cannot be opened, 3 the map of one cannot be read, 4 its data.

  -f FMT, -F FMT  the formats of the first and the second image
  -s              strict: sizes, and what is allocated, must be the same too
  -T CACHE        cache mode of both
  -p              show progress
"""

DIFFERENT, OPEN_FAILED, MAP_FAILED, READ_FAILED = 1, 2, 3, 4


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    try:
        line, images = command_line(program, arguments, "f:F:T:pqsU", ("image-opts", "force-share|U"))
    except ToolError as error:
        error.status = error.status and OPEN_FAILED
        raise
    operands = line.operands
    cache = line.value("T", "writeback")
    strict, quiet = line.has("s"), line.has("q")
    with images:
        if len(operands) != 2:
            raise usage("Expecting two image file names")
        if cache not in CACHE_MODES:
            raise ToolError(f"Invalid source cache option: {cache}", status=OPEN_FAILED)
        nodes = []
        for filename, fmt in zip(operands, (line.optional("f"), line.optional("F")), strict=True):
            try:
                backend = images.open(
                    filename, fmt=fmt, image_opts=line.has("image-opts"), cache=cache, force_share=line.has("U")
                )
            except ToolError as error:
                raise ToolError(error.text, status=OPEN_FAILED)
            nodes.append(node_of(backend))
        with program.progress(line.has("p") and not quiet) as progress:
            warn = (lambda _text: None) if quiet else print
            difference = Comparison(nodes[0], nodes[1], operands, strict, progress, warn).run()
            if not quiet:
                print(difference or "Images are identical.")
        return DIFFERENT if difference else 0


class Comparison:
    """Two images, walked side by side."""

    def __init__(
        self,
        first: BlockNode,
        second: BlockNode,
        names: list[str],
        strict: bool,
        progress: Progress,
        warn: Callable[[str], object],
    ) -> None:
        self._nodes = (first, second)
        self._sides = [
            Side(Pieces(node.layer, [(node, 0, disk_size(node))]), name)
            for node, name in zip((first, second), names, strict=True)
        ]
        self._strict = strict
        self._progress = progress
        self._warn = warn

    def run(self) -> str:
        """Compare: where the images differ, or "". Raises ToolError where an image cannot be read."""
        try:
            return self._run()
        except SideError as error:
            name = error.side.name
            if error.is_map:
                raise ToolError(f"Error while reading the map of '{name}': {reason(error.error)}", status=MAP_FAILED)
            raise ToolError(
                f"Error while reading offset {error.offset} of {name}: {reason(error.error)}", status=READ_FAILED
            )

    def _run(self) -> str:
        lengths = [side.node.length for side in self._sides]
        common, total = min(lengths), max(lengths)
        self._progress.start(total)
        if self._strict and common != total:
            return "Strict mode: Image size mismatch!"
        status = self._first_status_difference(common) if self._strict else -1
        offset = self._first_difference(common if status < 0 else status)
        if offset >= 0:
            return f"Content mismatch at offset {offset}!"
        if status >= 0:
            return f"Strict mode: Offset {status} block status mismatch!"
        if common == total:
            return ""
        self._warn("Warning: Image size mismatch!")
        longer = self._sides[0 if lengths[0] > lengths[1] else 1]
        rest = Side(Pieces(longer.node.layer, [(None, 0, total)]), longer.name)
        offset = self._first_difference(total, common, longer, rest)
        return f"Content mismatch at offset {offset}!" if offset >= 0 else ""

    def _first_difference(self, end: int, start: int = 0, one: Side | None = None, two: Side | None = None) -> int:
        """The first sector that differs below ``end``, in bytes, or -1. Raises SideError."""
        one, two = one or self._sides[0], two or self._sides[1]
        for done, offset in first_of(one, two, candidates(one, two, start, end - start)):
            if offset >= 0:
                return offset
            self._progress.to(done)
        return -1

    def _first_status_difference(self, end: int) -> int:
        """Where one image has something allocated that the other has not, or -1."""
        streams = [walk(node, 0, end) for node in self._nodes]
        try:
            entries: list[Entry | None] = [next(stream, None) for stream in streams]
            while entries[0] is not None and entries[1] is not None:
                one, two = entries[0], entries[1]
                start = max(one.start, two.start)
                stops = (one.start + one.length, two.start + two.length)
                if _status(one, stops[0] == end) != _status(two, stops[1] == end):
                    return start
                if stops[0] <= stops[1]:
                    entries[0] = next(streams[0], None)
                if stops[1] <= stops[0]:
                    entries[1] = next(streams[1], None)
        except (OSError, QobraError) as error:
            raise ToolError(f"Error while reading the map of the images: {reason(error)}", status=MAP_FAILED)
        return -1


def _status(entry: Entry, at_end: bool) -> tuple[bool, bool, bool, bool, bool]:
    return entry.present, entry.zero, entry.data, entry.offset is not None, at_end
