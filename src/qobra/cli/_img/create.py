"""``create``: make an image."""

from __future__ import annotations

import sys

from qobra.cli._tool.opening import Images, command_line
from qobra.cli._tool.process import end_in_order
from qobra.cli._tool.report import Program, ToolError, flush_output, usage
from qobra.errors import QobraError, strerror
from qobra.option_list import option_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.getopt import CommandLine

HELP = """\
create [-q] [-f FMT] [-b BACKING [-F BACKING_FMT]] [-u] [-o OPTIONS] [--object DEF] FILENAME [SIZE]

Make an image of SIZE bytes (suffixes k, M, G, T, P, E). With a backing file SIZE may be left out: it is then as large
as that.

  -f FMT          the format (raw)
  -b BACKING      the image that the new one lies on, as seen from the new one's directory; -F says its format
  -u              do not look at the backing file; SIZE is needed then
  -o OPTIONS      options of the format, name=value,...; '-o help' lists them
  -q              say nothing
  --object DEF    create an object first, as a secret
"""


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    line, images = command_line(program, arguments, "F:b:f:qo:u", met=look_at_options)
    operands = line.operands
    texts = line.values("o")
    with images:
        filename = operands[0] if operands else None
        if filename is None and not any(wants_help(text) for text in texts):
            raise usage("Expecting image file name")
        size = None
        if len(operands) > 1:
            size = program.number("image size", operands[1])
        if len(operands) > 2:
            raise usage(f"Unexpected argument: {operands[2]}")
        if any(wants_help(text) for text in texts):
            return print_options(program, line.value("f", "raw"), filename)
        assert filename is not None
        create(program, images, line, filename, size)
    return 0


def wants_help(text: str) -> bool:
    """Whether ``-o`` asks for the list of options."""
    return any(part in ("help", "?") for part in text.split(","))


def check_option_list(text: str) -> None:
    """See that ``-o`` texts can be put together: no comma is alone at the beginning or the end. Raises ToolError."""
    trailing = len(text) - len(text.rstrip(","))
    if not text or (text.startswith(",") and not text.startswith(",,")) or trailing % 2:
        raise ToolError(f"Invalid option list: {text}")


def look_at_options(option: str, value: str) -> None:
    """For :func:`command_line`: what ``-o`` has must be such a list. Raises ToolError."""
    if option == "o":
        check_option_list(value)


def creation_pairs(texts: list[str]) -> list[tuple[str, str]]:
    """``name=value`` of all ``-o`` together."""
    return [pair for text in texts for pair in option_pairs(text)]


def print_options(program: Program, fmt: str, filename: str | None) -> int:
    """``-o help``."""
    from qobra.block.creation._image import known_options
    from qobra.block.creation._options import listed

    try:
        known = known_options(fmt, filename)
    except QobraError as error:
        raise ToolError(str(error))
    print("Supported options:" if filename is not None else f"Supported {fmt} options:")
    print("\n".join(listed(known)))
    if filename is None:
        print("\nThe protocol level may support further options.")
        print("Specify the target filename to include those options.")
    return 0


def create(program: Program, images: Images, line: CommandLine, filename: str, size: int | None) -> None:
    """Check the order, say what is about to be made, and make it. Raises ToolError."""
    from qobra.block.creation._image import BackingError, plan

    try:
        creation = plan(
            images.layer,
            filename,
            line.value("f", "raw"),
            creation_pairs(line.values("o")),
            size=size,
            backing_file=line.optional("b"),
            backing_format=line.optional("F"),
            unsafe=line.has("u"),
        )
        if not line.has("q"):
            print(creation.message)
            flush_output()
        end_in_order()
        creation.run(images.layer)
    except BackingError as error:
        program.error(f"{filename}: {error.desc}")
        sys.stderr.write(error.hint or "")
        sys.stderr.flush()
        raise ToolError("")
    except QobraError as error:
        raise ToolError(f"{filename}: {error}")
    except OSError as error:
        raise ToolError(f"{filename}: {strerror(error)}")
