"""``compare``: whether two images show a guest the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.block.extents import COMPUTED, DATA, Run, resolve
from qobra.block.node import is_zero
from qobra.cli._img._pieces import Pieces, disk_size
from qobra.cli._img.map import Entry, walk
from qobra.getopt import parse_command
from qobra.block.cache_modes import CACHE_MODES
from qobra.cli._tool.opening import Images, node_of
from qobra.cli._tool.progress import Progress
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.errors import QobraError, strerror

if TYPE_CHECKING:
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

SECTOR = 512
BUFFER_SIZE = 512 << 10
STEP = 256 << 20
"""Bytes of both images whose maps are held at a time."""


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    options, operands = parse_command(arguments, "f:F:T:pqsU", ("object=", "image-opts", "force-share|U"))
    formats: list[str | None] = [None, None]
    cache = "writeback"
    image_opts = strict = quiet = force_share = show_progress = False
    with Images(program) as images:
        for option, value in options:
            if option == "f":
                formats[0] = value
            elif option == "F":
                formats[1] = value
            elif option == "T":
                cache = value
            elif option == "p":
                show_progress = True
            elif option == "q":
                quiet = True
            elif option == "s":
                strict = True
            elif option == "U":
                force_share = True
            elif option == "object":
                images.add_object(value)
            elif option == "image-opts":
                image_opts = True
        if len(operands) != 2:
            raise usage("Expecting two image file names")
        images.create_objects()
        if cache not in CACHE_MODES:
            raise ToolError(f"Invalid source cache option: {cache}", status=OPEN_FAILED)
        nodes = []
        for filename, fmt in zip(operands, formats, strict=True):
            try:
                backend = images.open(filename, fmt=fmt, image_opts=image_opts, cache=cache, force_share=force_share)
            except ToolError as error:
                raise ToolError(error.text, status=OPEN_FAILED)
            nodes.append(node_of(backend))
        with Progress(show_progress and not quiet) as progress:
            difference = Comparison(nodes[0], nodes[1], operands, strict, progress).run()
            if difference.warning and not quiet:
                print(difference.warning)
            if not quiet:
                print(difference.text or "Images are identical.")
        return DIFFERENT if difference.text else 0


class Difference:
    """What was found: ``text`` is empty where the images are the same."""

    def __init__(self, text: str = "", warning: str = "") -> None:
        self.text = text
        self.warning = warning


class Comparison:
    """Two images, walked side by side. What lies at the same place of the same file is not read."""

    def __init__(self, first: BlockNode, second: BlockNode, names: list[str], strict: bool, progress: Progress) -> None:
        self._plain = (first, second)
        self._nodes = [Pieces(node.layer, [(node, 0, disk_size(node))]) for node in (first, second)]
        self._names = names
        self._strict = strict
        self._progress = progress
        self._buffers = (bytearray(BUFFER_SIZE), bytearray(BUFFER_SIZE))

    def run(self) -> Difference:
        """Compare. Raises ToolError where an image cannot be read."""
        lengths = [node.length for node in self._nodes]
        common, total = min(lengths), max(lengths)
        self._progress.start(total)
        if self._strict:
            if common != total:
                return Difference("Strict mode: Image size mismatch!")
            offset = self._first_status_difference(common)
            data = self._first_difference(common if offset < 0 else offset)
            if data >= 0:
                return Difference(f"Content mismatch at offset {data}!")
            return Difference(f"Strict mode: Offset {offset} block status mismatch!" if offset >= 0 else "")
        offset = self._first_difference(common)
        if offset >= 0:
            return Difference(f"Content mismatch at offset {offset}!")
        if common == total:
            return Difference()
        warning = "Warning: Image size mismatch!"
        longer = 0 if lengths[0] > lengths[1] else 1
        offset = self._first_data(longer, common, total)
        return Difference(f"Content mismatch at offset {offset}!" if offset >= 0 else "", warning)

    def _first_status_difference(self, end: int) -> int:
        """Where one image has something allocated that the other has not, or -1."""
        streams = [walk(node, 0, end) for node in self._plain]
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
            raise ToolError(f"Error while reading the map of the images: {_reason(error)}", status=MAP_FAILED)
        return -1

    def _first_difference(self, end: int) -> int:
        """The first sector that differs below ``end``, in bytes, or -1."""
        for start in range(0, end, STEP):
            stop = min(end, start + STEP)
            runs = [self._runs(side, start, stop) for side in (0, 1)]
            position = [0, 0]
            while start < stop:
                one, two = runs[0][position[0]], runs[1][position[1]]
                until = min(one.start + one.length, two.start + two.length)
                offset = self._compare(one, two, start, until - start)
                if offset >= 0:
                    return offset
                for side, run in enumerate((one, two)):
                    if run.start + run.length == until:
                        position[side] += 1
                start = until
                self._progress.to(start)
        return -1

    def _first_data(self, side: int, start: int, end: int) -> int:
        for low in range(start, end, STEP):
            for run in self._runs(side, low, min(end, low + STEP)):
                if run.kind in (DATA, COMPUTED):
                    offset = self._find_data(side, run, run.start, run.length)
                    if offset >= 0:
                        return offset
                self._progress.to(run.start + run.length)
        return -1

    def _runs(self, side: int, start: int, stop: int) -> list[Run]:
        try:
            return resolve(self._nodes[side], start, stop - start, want_zero=True)
        except (OSError, QobraError) as error:
            raise ToolError(
                f"Error while reading the map of '{self._names[side]}': {_reason(error)}", status=MAP_FAILED
            )

    def _compare(self, one: Run, two: Run, start: int, length: int) -> int:
        has_data = [run.kind in (DATA, COMPUTED) for run in (one, two)]
        if not any(has_data):
            return -1
        if not all(has_data):
            side = 0 if has_data[0] else 1
            return self._find_data(side, (one, two)[side], start, length)
        if one.leaf is two.leaf and one.offset - one.start == two.offset - two.start:
            return -1  # the very same bytes
        end = start + length
        while start < end:
            size = min(BUFFER_SIZE, end - start)
            first = self._read(0, one, start, size)
            second = self._read(1, two, start, size)
            # bytearray against memoryview is memcmp; between two views, Python goes byte by byte.
            same = self._buffers[0] == second if size == BUFFER_SIZE else first.tobytes() == second
            if not same:
                return start + _first_unequal(first, second)
            start += size
        return -1

    def _find_data(self, side: int, run: Run, start: int, length: int) -> int:
        end = start + length
        while start < end:
            size = min(BUFFER_SIZE, end - start)
            view = self._read(side, run, start, size)
            if not is_zero(view):
                return start + _first_unequal(view, memoryview(bytes(size)))
            start += size
        return -1

    def _read(self, side: int, run: Run, start: int, size: int) -> memoryview:
        view = memoryview(self._buffers[side])[:size]
        assert run.leaf is not None
        try:
            run.leaf.read_into(run.offset + start - run.start, view)
        except (OSError, QobraError) as error:
            raise ToolError(
                f"Error while reading offset {start} of {self._names[side]}: {_reason(error)}", status=READ_FAILED
            )
        return view


def _first_unequal(first: memoryview, second: memoryview) -> int:
    """The sector in which two views that differ begin to."""
    low, high = 0, len(first)
    while high - low > SECTOR:
        middle = low + max(SECTOR, (high - low) // 2 // SECTOR * SECTOR)
        if first[low:middle].tobytes() == second[low:middle].tobytes():
            low = middle
        else:
            high = middle
    return low


def _status(entry: Entry, at_end: bool) -> tuple[bool, bool, bool, bool, bool]:
    return entry.present, entry.zero, entry.data, entry.offset is not None, at_end


def _reason(error: OSError | QobraError) -> str:
    return strerror(error) if isinstance(error, OSError) else str(error)
