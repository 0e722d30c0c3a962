"""What daemons share: long options in order of appearance, and option values as structures of the contract."""

from __future__ import annotations

import os
import sys

from qobra.errors import QobraError
from qobra.report import print_text, program, report_error, report_line

__all__ = [
    "Background",
    "Option",
    "fail",
    "json_object",
    "program",
    "say",
    "scan",
    "structure",
    "tree",
    "warn",
    "write_pidfile",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, NoReturn


class Option:
    """A long option, its short form if any, and whether a value follows."""

    __slots__ = ("long", "short", "takes_value")

    def __init__(self, long: str, *, short: str = "", takes_value: bool = True) -> None:
        self.long = long
        self.short = short
        self.takes_value = takes_value


def scan(arguments: Sequence[str], options: Sequence[Option]) -> Iterator[tuple[str, str, str]]:
    """The options in ``arguments`` as (long name, value, as it was typed), as getopt_long reads them.

    ``--`` ends them; what follows is left alone. Raises QobraError in getopt's words.
    """
    position = 0
    while position < len(arguments):
        start = position
        argument = arguments[position]
        position += 1
        if argument == "--":
            return
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            option = _by_long(name, options)
            shown = f"'--{option.long}'"
            if equals and not option.takes_value:
                raise QobraError(f"option {shown} doesn't allow an argument")
        elif argument.startswith("-") and len(argument) > 1:
            letter, value = argument[1], argument[2:]
            found = next((each for each in options if each.short == letter), None)
            if found is None:
                raise QobraError(f"invalid option -- '{letter}'")
            option, equals, shown = found, value, f"-- '{letter}'"
            if value and not option.takes_value:
                raise QobraError(f"invalid option -- '{value[0]}'")
        else:
            raise QobraError(f"{argument}: Unexpected argument")
        if option.takes_value and not equals:
            if position == len(arguments):
                wanted = f"option {shown} requires an argument"
                raise QobraError(wanted if argument.startswith("--") else f"option requires an argument {shown}")
            value = arguments[position]
            position += 1
        yield option.long, value, " ".join(arguments[start:position])


def _by_long(name: str, options: Sequence[Option]) -> Option:
    candidates = [option for option in options if option.long.startswith(name)]
    exact = [option for option in candidates if option.long == name]
    if exact or len(candidates) == 1:
        return (exact or candidates)[0]
    if not candidates:
        raise QobraError(f"unrecognized option '--{name}'")
    possible = " ".join(f"'--{option.long}'" for option in candidates)
    raise QobraError(f"option '--{name}' is ambiguous; possibilities: {possible}")


def structure(text: str, type_name: str, implied_key: str | None = None) -> dict[str, Any]:
    """An option's value, JSON or ``key=value,...``, as a checked ``type_name`` of the contract."""
    from qobra.qapi.contract import contract

    value, keyval = tree(text, implied_key)
    checked: dict[str, Any] = contract().check(type_name, value, keyval=keyval)
    return checked


def tree(text: str, implied_key: str | None = None) -> tuple[dict[str, Any], bool]:
    """An option's value, unchecked, and whether it was ``key=value,...``, whose scalars are strings."""
    if text.startswith("{"):
        return json_object(text), False
    from qobra.qapi.keyval import parse

    return parse(text, implied_key), True


def json_object(text: str) -> dict[str, Any]:
    """The JSON object that ``text`` is, in QMP's grammar."""
    from qobra.json_reader import parse_text

    value = parse_text(text)
    if not isinstance(value, dict):
        raise QobraError("JSON parse error, expecting value")
    return value


def say(text: str) -> None:
    """Print a line for the program's user at once, if there still is one."""
    print_text(f"{text}\n")


def warn(text: str) -> None:
    """Tell the program's user of what may be wrong."""
    report_line(text)


def fail(text: str) -> NoReturn:
    """One line on standard error, and out."""
    report_error(text)
    sys.exit(1)


class Background:
    """The parent's and the child's side of ``--daemonize``.

    The parent waits until the child says that it is up, and has the child's success or failure for exit status.
    """

    def __init__(self) -> None:
        """Fork. Only the child returns; nothing may have been opened, nor any thread started."""
        reader, self._writer = os.pipe()
        if os.fork():
            os.close(self._writer)
            os._exit(0 if os.read(reader, 1) == b"\0" else 1)
        os.close(reader)
        os.setsid()
        # A second fork: the daemon is no session leader and gets no terminal by opening one.
        if os.fork():
            os._exit(0)
        os.umask(0o027)

    def ready(self) -> None:
        """Tell the parent, and let go of its terminal and directory."""
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        os.write(self._writer, b"\0")
        os.close(self._writer)


def write_pidfile(path: str) -> Callable[[], None]:
    """Create (or take over) and lock ``path`` with this process's number in it. The returned call removes it."""
    import fcntl

    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise QobraError.from_os(f"cannot create PID file: Could not create '{path}'", error)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
    except OSError as error:
        os.close(fd)
        raise QobraError.from_os("cannot create PID file: Cannot lock pid file", error)

    absolute = os.path.abspath(path)

    def remove() -> None:
        try:
            os.unlink(absolute)
        except OSError:
            pass

    return remove
