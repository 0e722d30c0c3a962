"""The commands that are about the program: ``help``, ``quit``, ``sleep``, ``sigraise``, ``abort``."""

from __future__ import annotations

import os
import signal
import time

from qobra.block.io_commands._interpreter import Command, Failed, Interpreter, io_command
from qobra.errors import strerror
from qobra.units import integer

_SIGRAISE_HELP = """
 raises a signal

 Example:
 'sigraise 15' - raises SIGTERM
"""


@io_command("help", "[command]", "what commands there are, or all about one", alias="?", most=1, needs_file=False)
def show_help(interpreter: Interpreter, words: list[str]) -> None:
    """The list of commands, or one in full."""
    if len(words) > 1:
        command = interpreter.commands.get(words[1])
        if command is None:
            raise Failed(f"command {words[1]} not found")
        interpreter.out(command.usage_line(words[1]) + "\n")
        if command.details:
            interpreter.out(command.details + "\n")
        return
    listed: dict[str, Command] = {command.name: command for command in interpreter.commands.values()}
    interpreter.out("".join(f"{listed[name].usage_line()}\n" for name in sorted(listed)))
    interpreter.out("\nUse 'help commandname' for extended help.\n")


@io_command("quit", "", "leave", alias="q", needs_file=False)
def end(interpreter: Interpreter, words: list[str]) -> None:
    """No more lines."""
    interpreter.quit = True


@io_command("sleep", "", "wait so many milliseconds", least=1, most=1, needs_file=False)
def sleep(interpreter: Interpreter, words: list[str]) -> None:
    """Wait, while requests that were started go on."""
    from qobra.block.io_commands.asynchronous import report_ended

    milliseconds = integer(words[1])
    if milliseconds is None or milliseconds < 0:
        raise Failed(f"{words[1]} is not a valid number")
    time.sleep(milliseconds / 1000)
    report_ended(interpreter)


@io_command(
    "sigraise", "signal", "send the program a signal", least=1, most=1, needs_file=False, details=_SIGRAISE_HELP
)
def sigraise(interpreter: Interpreter, words: list[str]) -> None:
    """Send the process a signal."""
    number = interpreter.number(words[1])
    if number >= signal.NSIG:
        raise Failed(f"signal argument '{words[1]}' is too large to be a valid signal")
    try:
        os.kill(os.getpid(), number)
    except OSError as error:
        raise Failed(f"sigraise failed: {strerror(error)}")


@io_command("abort", "", "end at once, as in a crash", most=0, needs_file=False)
def abort(interpreter: Interpreter, words: list[str]) -> None:
    """Die at once, with nothing written out."""
    os.abort()
