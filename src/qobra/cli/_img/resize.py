"""``resize``: give an image another size."""

from __future__ import annotations

from qobra.cli._img._pieces import disk_size
from qobra.cli._tool.opening import command_line, node_of, opening
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.errors import QobraError, strerror
from qobra.getopt import HelpWanted
from qobra.units import INT64_MAX, NotANumber, OutOfRange, not_a_size, parse_size

HELP = """\
resize [-f FMT | --image-opts] [--preallocation MODE] [-q] [--shrink] [--object DEF] FILENAME [+|-]SIZE

Give an image another size, or with + or - so much more or less than it has.

  --preallocation MODE  how to reserve what is added (off, metadata, falloc, full)
  --shrink              agree to lose what lies past the new end
"""

MODES = ("off", "metadata", "falloc", "full")


def _look(option: str, value: str) -> None:
    if option == "preallocation" and value not in MODES:
        raise ToolError(f"Invalid preallocation mode '{value}'")


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    # The size is taken off first, because -1G would read as an option. So there is no help in QEMU's.
    if program.people and arguments in (["-h"], ["--help"]):
        raise HelpWanted
    if len(arguments) < 2:
        raise usage("Not enough arguments")
    *arguments, size_text = arguments
    line, images = command_line(program, arguments, "f:q", ("image-opts", "preallocation=", "shrink"), _look)
    preallocation = line.value("preallocation", "off")
    with images:
        if len(line.operands) != 1:
            raise usage("Expecting image file name and size")
        sign = size_text[:1] if size_text[:1] in ("+", "-") else ""
        amount = _size(program, size_text[len(sign) :])
        backend = images.open(line.operands[0], **opening(line), writable=True, resize=True)
        node = node_of(backend)
        current = disk_size(node)
        if amount > INT64_MAX:
            raise ToolError("New image size must be positive")
        total = current + amount if sign == "+" else current - amount if sign == "-" else amount
        if not 0 < total <= INT64_MAX:
            raise ToolError("New image size must be positive")
        if total <= current and preallocation != "off":
            raise ToolError("Preallocation can only be used for growing images")
        if total < current and not line.has("shrink"):
            program.error("Use the --shrink option to perform a shrink operation.")
            program.warning(
                "Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an "
                "operation, make sure there is no important data there."
            )
            return 1
        try:
            node.truncate(total, preallocation=preallocation)
        except OSError as error:
            raise ToolError(strerror(error))
        except QobraError as error:
            raise ToolError(str(error))
        if not line.has("q"):
            print("Image resized.")
    return 0


def _size(program: Program, text: str) -> int:
    try:
        return parse_size(text, program.warning)
    except NotANumber:
        raise ToolError(str(not_a_size("size")))
    except OutOfRange:
        raise ToolError(f"Value '{text}' is out of range for parameter 'size'")
