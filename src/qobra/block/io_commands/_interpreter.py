"""Run lines of qemu-io's language on a backend."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qobra.block.node import BlockNode
from qobra.block.query import without_implicit
from qobra.errors import QobraError, strerror
from qobra.getopt import UsageError, parse
from qobra.units import INT64_MAX, NotANumber, OutOfRange, integer, io_size_text, parse_size

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend

MAX_REQUEST = 2147483136
"""Largest request in bytes, as QEMU has it."""
UNLIMITED = -1
SECTOR = 512


class Failed(Exception):
    """A command that did not succeed; ``text`` (if any) goes where results go."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.text = text


class Finished(Exception):
    """There is no more to do; the command has succeeded."""


class Misused(Exception):
    """Arguments that cannot be: the command's usage is printed."""


class Options(dict[str, str]):
    """The options of a line, the last of each."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, int] = {}
        """The values of those whose value is a number."""


def _ignore_option(_option: str, _value: str) -> None:
    pass


class Command:
    """A command of the language. ``run(interpreter, arguments)`` raises Failed, Misused, QobraError or OSError."""

    def __init__(
        self,
        run: Callable[[Interpreter, list[str]], None],
        name: str,
        alias: str,
        least: int,
        most: int,
        usage: str,
        summary: str,
        details: str,
        needs_file: bool,
        writes: bool,
    ) -> None:
        self.run = run
        self.name = name
        self.alias = alias
        self.least = least
        self.most = most
        self.usage = usage
        self.summary = summary
        self.details = details
        self.needs_file = needs_file
        self.writes = writes

    def usage_line(self, called: str = "") -> str:
        """``read [-q] off len -- what it does``."""
        return f"{called or self.name} {self.usage}{' ' if self.usage else ''}-- {self.summary}"


commands: dict[str, Command] = {}

_OF_PROGRAMS = ("open", "close", "quit")


def io_command(
    name: str,
    usage: str,
    summary: str,
    *,
    alias: str = "",
    least: int = 0,
    most: int = UNLIMITED,
    details: str = "",
    needs_file: bool = True,
    writes: bool = False,
) -> Callable[[Callable[[Interpreter, list[str]], None]], Callable[[Interpreter, list[str]], None]]:
    """Register a command, with the number of words that may follow it."""

    def decorate(run: Callable[[Interpreter, list[str]], None]) -> Callable[[Interpreter, list[str]], None]:
        command = Command(run, name, alias, least, most, usage, summary, details, needs_file, writes)
        commands[name] = command
        if alias:
            commands[alias] = command
        return run

    return decorate


def load_commands() -> dict[str, Command]:
    """Every command by name and alias."""
    from qobra.block.io_commands import asynchronous, debug, images, process, read, write

    del asynchronous, debug, images, process, read, write
    return commands


class Interpreter:
    """Runs lines. ``out`` takes text of results, ``complain`` one error without a newline.

    ``open_file`` and ``close_file`` serve the commands of those names, where the caller has them; without them there is
    no ``quit`` either. Refusals and details of formats have ways of their own, :attr:`refuse` and :attr:`detail`: a
    monitor shows them to its user, and the rest on the terminal of the program.
    """

    def __init__(
        self,
        backend: BlockBackend | None,
        out: Callable[[str], Any],
        complain: Callable[[str], Any],
        *,
        program: str = "qemu-io",
        open_file: Callable[[list[str]], BlockBackend] | None = None,
        close_file: Callable[[], None] | None = None,
    ) -> None:
        self.backend = backend
        self.out = out
        self.complain = complain
        self.program = program
        self.open_file = open_file
        self.close_file = close_file
        self.quit = False
        self.pending: list[Any] = []
        """Asynchronous requests that have not been reported; see :mod:`.asynchronous`."""
        self.ended: Callable[[], None] = _ignore
        """Called in a request's thread when an asynchronous request has ended."""
        self.refuse: Callable[[str], Any] = lambda text: complain(f"{program}: {text}")
        self.detail: Callable[[str], Any] = out
        self.commands = load_commands()
        if open_file is None:
            self.commands = {key: each for key, each in self.commands.items() if each.name not in _OF_PROGRAMS}

    def run(self, line: str) -> bool:
        """Run one line; False if it failed."""
        words = line.split(" ")
        words = [word for word in words if word]
        if not words:
            return True
        command = self.commands.get(words[0])
        if command is None:
            self.complain(f'command "{words[0]}" not found')
            return False
        try:
            self._run(command, words)
            return True
        except Finished:
            return True
        except Misused:
            self.out(command.usage_line() + "\n")
        except Failed as failure:
            if failure.text:
                self.out(failure.text + "\n")
        except QobraError as error:
            self.refuse(str(error))
        except OSError as error:
            self.refuse(strerror(error))
        return False

    def _run(self, command: Command, words: list[str]) -> None:
        count = len(words) - 1
        if command.needs_file and self.backend is None:
            self.complain("no file open, try 'help open'")
            raise Failed
        if count < command.least or (command.most != UNLIMITED and count > command.most):
            if command.most == UNLIMITED:
                wanted = f"at least {command.least} arguments"
            elif command.least == command.most:
                wanted = f"{command.least} arguments"
            else:
                wanted = f"between {command.least} and {command.most} arguments"
            self.complain(f"bad argument count {count} to {words[0]}, expected {wanted}")
            raise Failed
        if command.writes and self.root.node is not None and self.root.node.read_only:
            raise QobraError("Block node is read-only")
        command.run(self, words)

    @property
    def node(self) -> BlockNode:
        """The node that commands work on, below filters that the user has not put there."""
        return without_implicit(self.root.inserted())

    @property
    def root(self) -> BlockBackend:
        """The backend that commands work on."""
        assert self.backend is not None
        return self.backend

    # -- arguments --------------------------------------------------------------------------------------------

    def options(
        self, words: list[str], short: str, *, sizes: str = "", check: Callable[[str, str], None] = _ignore_option
    ) -> tuple[Options, list[str]]:
        """Options and operands of ``words``, whose first is the command.

        The values of ``sizes`` are offsets or lengths, that of ``-P`` is a byte, and ``check`` looks at others; the
        first mistake is told. Raises Misused, Failed, or what ``check`` raises.
        """
        options = Options()

        def take(option: str, value: str) -> None:
            options[option] = value
            if option == "P":
                options.numbers[option] = self.pattern(value)
            elif option in sizes:
                options.numbers[option] = self.number(value)
            else:
                check(option, value)

        try:
            _options, operands = parse(words[1:], short, raw_texts=True, met=take)
        except UsageError as error:
            self.complain(f"{words[0]}: {error}")
            raise Misused
        return options, operands

    def number(self, text: str, *, shown: str | None = None) -> int:
        """An offset or a length. Raises Failed, which shows ``text`` or what QEMU shows in its place."""
        try:
            value = parse_size(text, self.warn)
        except NotANumber:
            raise Failed(f"Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {shown or text}")
        except OutOfRange:
            value = INT64_MAX + 1
        if value > INT64_MAX:
            raise Failed(f"Parsing error: argument too large -- {shown or text}")
        return value

    def warn(self, text: str) -> None:
        """Complain of what is done all the same."""
        self.complain(f"{self.program}: warning: {text}")

    def pattern(self, text: str) -> int:
        """A byte. Raises Failed."""
        value = integer(text)
        if value is None or not 0 <= value <= 255:
            raise Failed(f"{text} is not a valid pattern byte")
        return value

    # -- requests ---------------------------------------------------------------------------------------------

    def read(self, offset: int, view: memoryview, *, counted: bool = False) -> None:
        """Fill ``view``; a file ends with a whole sector. Raises OSError or QobraError."""
        inside = max(0, min(len(view), self.node.length - offset))
        if inside < len(view) and offset + len(view) <= -(-self.node.length // SECTOR) * SECTOR:
            view[inside:] = bytes(len(view) - inside)
            view = view[:inside]
        self.root.read_into(offset, view, counted=counted)

    # -- results ----------------------------------------------------------------------------------------------

    def report(
        self, verb: str, start: float, end: float, offset: int, count: int, total: int, *, terse: bool = False
    ) -> None:
        """What a request did and how fast: times in seconds, sizes in bytes."""
        seconds = max(end - start, 1e-9)
        if terse:
            self.out(f"{total},1,{fixed_time(seconds)},{total / seconds:.3f},{1 / seconds:.3f}\n")
        else:
            self.out(
                f"{verb} {total}/{count} bytes at offset {offset}\n"
                f"{io_size_text(total)}, 1 ops; {short_time(seconds)} "
                f"({io_size_text(total / seconds)}/sec and {1 / seconds:.4f} ops/sec)\n"
            )

    def dump(self, data: memoryview, offset: int) -> None:
        """A hexadecimal dump of ``data``, which lies at ``offset``."""
        lines = []
        for start in range(0, len(data), 16):
            row = bytes(data[start : start + 16])
            text = "".join(chr(byte) if chr(byte).isascii() and chr(byte).isalnum() else "." for byte in row)
            lines.append(f"{offset + start:08x}:  {''.join(f'{byte:02x} ' for byte in row)} {text}\n")
        self.out("".join(lines))


def _ignore() -> None:
    pass


def short_time(seconds: float) -> str:
    """``00.12 sec``, with minutes and hours where there are any."""
    if seconds >= 60:
        return fixed_time(seconds)
    return f"{int(seconds):02d}.{int(seconds * 100) % 100:02d} sec"


def fixed_time(seconds: float) -> str:
    """``0:00:00.12``."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}.{int(seconds * 100) % 100:02d}"


def now() -> float:
    """The clock by which requests are timed, in seconds."""
    return time.perf_counter()


def why(error: OSError | QobraError) -> str:
    """The reason of a failed request, worded as the C library does."""
    import os

    from qobra.errors import errno_of

    return os.strerror(errno_of(error))
