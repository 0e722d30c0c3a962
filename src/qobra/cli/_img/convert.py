"""``convert``: copy images into a new one, or into one that is there, of another format or with other options."""

from __future__ import annotations

from qobra.block.cache_modes import CACHE_MODES
from qobra.cli._img._convert import Conversion
from qobra.cli._img._snapshot_param import SnapshotParam
from qobra.cli._img.create import check_option_list, creation_pairs, print_options, wants_help
from qobra.cli._tool.opening import command_line
from qobra.cli._tool.report import Program, ToolError
from qobra.units import integer

HELP = """\
convert [-f FMT | --image-opts] [-T CACHE] [-O OUTPUT_FMT] [-t CACHE] [-o OPTIONS] [-B BACKING [-F BACKING_FMT]]
        [-l SNAPSHOT] [-c] [-S SIZE] [-n] [--target-image-opts] [--target-is-zero] [--bitmaps [--skip-broken-bitmaps]]
        [--salvage] [--resume] [-C] [-W] [-m N] [-r RATE] [-p] [-q] [-U] [--object DEF]
        FILENAME [FILENAME2 ...] OUTPUT

Copy an image, or several one after another, into OUTPUT. Zeroes become holes.

  -f FMT, -O FMT        formats of the inputs and of the output (raw)
  -o OPTIONS            options of the new image, name=value,...; '-o help' lists them
  -B BACKING, -F FMT    let the new image lie on BACKING, and copy what differs from it
  -l SNAPSHOT           copy that snapshot: an id or a name, or snapshot.id=ID,snapshot.name=NAME
  -c                    compress the output
  --compression-level N of zlib (1 to 9; 6 gives about QEMU's sizes) or zstd (1 to 22), larger is smaller and slower
  -S SIZE               bytes in a row that must be zero to become a hole (4k); 0 writes everything out
  -n                    OUTPUT is there already; --target-is-zero says that it holds zeroes
  --target-image-opts   OUTPUT is a list of options
  --bitmaps             copy the persistent bitmaps too; --skip-broken-bitmaps leaves out inconsistent ones
  --salvage             go on where the input cannot be read, with zeroes in its place
  --resume              keep a journal (OUTPUT.resume), and go on with a copy that was killed (Qobra's own)
  -C                    let the host copy from file to file, without looking for zeroes
  -m N, -W              work on N pieces at once (as suits the ends); write them as they come, out of order
  -r RATE               copy no more than RATE bytes a second
  -t CACHE, -T CACHE    cache modes of the output (unsafe) and of the inputs
  -p, -q                show progress; say nothing
"""

MAX_SPARSE = 16 << 20


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    order = Order(program)
    line, images = command_line(
        program,
        arguments,
        "f:O:B:CcF:o:l:S:pt:T:qnm:WUr:",
        (
            "source-format=|f", "target-format=|O", "image-opts", "force-share|U", "target-image-opts",
            "salvage", "target-is-zero", "bitmaps", "skip-broken-bitmaps",
            "resume", "compression-level=",
        ),
        lambda option, value: _take(program, order, option, value),
    )  # fmt: skip
    operands = line.operands
    with images:
        _check(order, operands)
        if any(wants_help(text) for text in order.options):
            return print_options(program, order.output_format, operands[-1] if operands else None)
        if len(operands) < 2:
            raise ToolError("Must specify image file name")
        if order.source_cache not in CACHE_MODES:
            raise ToolError(f"Invalid source cache option: {order.source_cache}")
        Conversion(program, images, order, operands[:-1], operands[-1]).run()
    return 0


class Order:
    """What the command line asks for."""

    def __init__(self, program: Program) -> None:
        self.fmt: str | None = None
        self.output_format = "raw"
        self.output_format_given = False
        self.backing: str | None = None
        self.backing_format: str | None = None
        self.options: list[str] = []
        self.snapshot = SnapshotParam(program)
        self.compress = False
        self.level: int | None = None
        self.copy_range = False
        self.min_sparse = 4096
        self.min_sparse_given = False
        self.create = True
        self.target_is_zero = False
        self.bitmaps = False
        self.skip_broken_bitmaps = False
        self.salvage = False
        self.resume = False
        self.rate = 0
        self.workers: int | None = None
        self.progress = False
        self.quiet = False
        self.force_share = False
        self.image_opts = False
        self.target_image_opts = False
        self.cache = "unsafe"
        self.source_cache = "writeback"

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """``name=value`` of the target's options."""
        return creation_pairs(self.options)


_FLAGS = {
    "c": "compress",
    "C": "copy_range",
    "p": "progress",
    "q": "quiet",
    "U": "force_share",
    "image-opts": "image_opts",
    "target-image-opts": "target_image_opts",
    "salvage": "salvage",
    "target-is-zero": "target_is_zero",
    "bitmaps": "bitmaps",
    "skip-broken-bitmaps": "skip_broken_bitmaps",
    "resume": "resume",
}
_TEXTS = {
    "f": "fmt",
    "B": "backing",
    "F": "backing_format",
    "t": "cache",
    "T": "source_cache",
}


def _take(program: Program, order: Order, option: str, value: str) -> None:
    """Put one option into ``order``. Raises ToolError."""
    if option in _FLAGS:
        setattr(order, _FLAGS[option], True)
    elif option in _TEXTS:
        setattr(order, _TEXTS[option], value)
    elif option == "O":
        order.output_format, order.output_format_given = value, True
    elif option == "l":
        order.snapshot.take(value)
    elif option == "n":
        order.create = False
    elif option == "o":
        check_option_list(value)
        order.options.append(value)
    elif option == "S":
        size = program.number("buffer size for sparse output", value)
        if size % 512 or size > MAX_SPARSE:
            raise ToolError(
                "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to "
                f"{MAX_SPARSE}. Select 0 to disable sparse detection (fully allocates output)."
            )
        order.min_sparse, order.min_sparse_given = size, True
    elif option == "m":
        workers = integer(value)
        if workers is None or not 1 <= workers <= 16:
            raise ToolError("Invalid number of coroutines. Allowed number of coroutines is between 1 and 16")
        order.workers = workers
    elif option == "W":
        pass  # pieces are written out of order where that is quicker, whether it is asked for or not
    elif option == "compression-level":
        order.level = program.number("compression level", value, 1, 22)
    elif option == "r":
        order.rate = program.number("rate limit", value)


def _check(order: Order, operands: list[str]) -> None:
    """Refuse what cannot go together. Raises ToolError."""
    if order.skip_broken_bitmaps and not order.bitmaps:
        raise ToolError("Use of --skip-broken-bitmaps requires --bitmaps")
    if order.level is not None and not order.compress:
        raise ToolError("--compression-level has no effect without -c")
    if order.compress and order.copy_range:
        raise ToolError("Cannot enable copy offloading when -c is used")
    if order.min_sparse_given and order.copy_range:
        raise ToolError("Cannot enable copy offloading when -S is used")
    if order.salvage and order.copy_range:
        raise ToolError("Cannot use copy offloading in salvaging mode")
    if order.options and not order.create and not any(wants_help(text) for text in order.options):
        raise ToolError("-o has no effect when skipping image creation")
    if order.target_image_opts and order.create:
        raise ToolError("--target-image-opts requires use of -n flag")
    if order.target_is_zero and order.create:
        raise ToolError("--target-is-zero requires use of -n flag")
    if order.resume and (order.compress or not order.create or order.copy_range or not order.min_sparse):
        raise ToolError("A copy with -c, -n, -C or -S 0 cannot be resumed")
