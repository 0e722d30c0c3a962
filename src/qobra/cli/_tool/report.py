"""What the drop-in programs say: errors in one form, with the name by which the program was called."""

from __future__ import annotations

import os
import sys

from qobra.errors import NUL_IN_NAME, QobraError, is_nul_in_name, strerror
from qobra.getopt import UsageError
from qobra.units import INT64_MAX, NotANumber, OutOfRange, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.cli._tool.progress import Progress


class ToolError(Exception):
    """Ends the command with one error on standard error.

    ``status`` is the exit status; ``hint`` adds the line that points to ``--help``.
    """

    def __init__(self, text: str, *, status: int = 1, hint: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.status = status
        self.hint = hint


class Program:
    """The running program: its name, and where it prints."""

    def __init__(self, name: str, *, people: bool = False) -> None:
        self.name = name
        self.people = people
        """A person is looking: progress may be drawn."""

    def run(self, main: Callable[[], int]) -> int:
        """Run ``main``, and turn what goes wrong into one line and an exit status."""
        try:
            return main()
        except ToolError as error:
            return self.fail(error)
        except UsageError as error:
            return self.fail(usage(str(error)))
        except QobraError as error:
            return self.fail(ToolError(str(error)))
        except BrokenPipeError:
            raise
        except OSError as error:
            return self.fail(ToolError(strerror(error)))
        except MemoryError:
            return self.fail(ToolError("Cannot allocate memory"))
        except Exception as error:
            if is_nul_in_name(error):
                return self.fail(ToolError(NUL_IN_NAME))
            if os.getenv("QOBRA_TRACEBACK"):
                raise
            return self.fail(ToolError(f"internal error: {type(error).__name__}: {error}"))

    def progress(self, wanted: bool) -> Progress:
        """How far a command is: QEMU's line if it is ``wanted``, a bar where people look."""
        if self.people and sys.stderr.isatty():
            wanted = True  # where there can be no bar, a line does
            try:
                from qobra.cli._img_people.progress import RichProgress
            except ModuleNotFoundError:
                pass
            else:
                if os.environ.get("TERM") != "dumb":
                    return RichProgress()
        from qobra.cli._tool.progress import Progress

        return Progress(wanted)

    def error(self, text: str) -> None:
        """Print ``NAME: text`` on standard error.

        As in C, standard output is not waited for: into a pipe or a file it is written when its buffer is.
        """
        sys.stderr.write(f"{self.name}: {text}\n")
        sys.stderr.flush()

    def warning(self, text: str) -> None:
        """Print ``NAME: warning: text`` on standard error."""
        self.error(f"warning: {text}")

    def fail(self, error: ToolError) -> int:
        """Print ``error`` and return its exit status."""
        if error.text:
            self.error(error.text)
        if error.hint:
            sys.stderr.write(f"Try '{self.name} --help' for more information\n")
        return error.status

    def number(self, what: str, text: str, minimum: int = 0, maximum: int = INT64_MAX, *, status: int = 1) -> int:
        """The number that an argument must be. Raises ToolError in QEMU's words."""
        try:
            value = parse_size(text, self.warning)
        except NotANumber:
            raise ToolError(
                f"Invalid {what} specified. You may use k, M, G, T, P or E suffixes for\n"
                f"{self.name}: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.",
                status=status,
            )
        except OutOfRange:
            value = -1
        if not minimum <= value <= maximum:
            raise ToolError(f"Invalid {what} specified. Must be between {minimum} and {maximum}.", status=status)
        return value


def flush_output() -> None:
    """Let standard output catch up; a reader that has gone is the caller's to notice at the end."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass


def usage(text: str) -> ToolError:
    """A command line that cannot be."""
    return ToolError(text, hint=True)


QEMU_VERSION = "7.2.0"
"""The version of QEMU whose command lines and answers these are; scripts look at it to know what they may ask."""


def version_text(program: Program) -> str:
    """What ``--version`` prints."""
    from qobra import __version__

    return f"{program.name} version {QEMU_VERSION} (Qobra {__version__})"
