"""``dd``: copy a part of an image to a new one, with dd's operands."""

from __future__ import annotations

from qobra.block.copy.chunk import CopyFailed
from qobra.cli._img._copying import copy
from qobra.cli._img._pieces import Pieces, disk_size
from qobra.cli._img._target import Guard, check_format, create_target, open_target, reason, refuse_source
from qobra.cli._tool.opening import command_line, node_of, opening
from qobra.cli._tool.report import Program, ToolError
from qobra.units import INT64_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.node import BlockNode

HELP = """\
dd [--image-opts] [-U] [-f FMT] [-O OUTPUT_FMT] [--object DEF] [bs=SIZE] [count=N] [skip=N] if=INPUT of=OUTPUT

Copy an image, or what lies between its first 'skip' and its first N blocks of SIZE bytes (512), to OUTPUT, which is
made anew.
"""

_NAMES = ("bs", "count", "if", "of", "skip")


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    line, images = command_line(program, arguments, "f:O:U", ("image-opts", "force-share|U"))
    output_format = line.value("O", "raw")
    with images:
        given: dict[str, str] = {}
        numbers = {"bs": 512, "count": -1, "skip": 0}
        for operand in line.operands:
            name, equals, value = operand.partition("=")
            if not equals or name not in _NAMES:
                raise ToolError(f"unrecognized operand {name}")
            given[name] = value
            if name == "bs":
                numbers["bs"] = program.number("bs", value, 1, (1 << 31) - 1)
            elif name in numbers:
                numbers[name] = program.number(name, value)
        if "if" not in given or "of" not in given:
            raise ToolError("Must specify both input and output files")
        source = node_of(images.open(given["if"], **opening(line)))
        check_format(output_format, given["of"], unknown="Unknown file format")
        start, end = numbers["skip"] * numbers["bs"], disk_size(source)
        if 0 <= numbers["count"] <= INT64_MAX // numbers["bs"]:
            # QEMU counts from the beginning of the image, what is skipped included.
            end = min(end, numbers["count"] * numbers["bs"])
        length = max(0, end - start)
        refuse_source([source], given["of"], "error while creating output image")
        failure = "error while creating output image"
        with Guard(images, given["of"]) as guard:
            create_target(images, given["of"], output_format, [], {"size": length}, failure, guard)
            if start > end:
                program.error(f"{given['if']}: cannot skip to specified offset")
            target = node_of(open_target(images, given["of"], output_format, "writeback"))
            pieces = Pieces(images.layer, [(source, start, length)])
            copy_all(pieces, target)
            images.close()
    return 0


def copy_all(source: BlockNode, target: BlockNode) -> None:
    """Copy all of ``source`` to a new ``target``. Raises ToolError."""
    copy(source, target, detect_zeroes=4096, target_is_zero=target.has_zero_init(), failure=_failed)


def _failed(failed: CopyFailed) -> ToolError:
    side = "reading from input" if failed.is_read else "writing to output"
    return ToolError(f"error while {side} image file: {reason(failed.error)}")
