"""HMP, the monitor for people: commands by line, with typed arguments, answers as text.

A command registers itself with :func:`hmp_command`. ``args`` describes its arguments as ``name:type`` joined with
commas, a ``?`` after the type making one optional:

====  =====================================================
s     a word, or text in double quotes
F, B  the same: a file's name, a block device's name
S     the rest of the line
O     the rest of the line, which may be nothing: ``key=value,...`` options
i, l  a number, as an expression; ``i`` one of 32 bits without a sign; ``i.`` such a one after a dot, or nothing
/     a :class:`~qobra.qmp.hmp_arguments.Format`, if a slash is there
M     such a number of mebibytes; as bytes
o     a size: a number of mebibytes, or with a suffix; as bytes
b     ``on`` or ``off``
-x    the flag ``-x``; ``-xs`` takes a word after it
====  =====================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from qobra.errors import QobraError
from qobra.qmp import registry
from qobra.qmp.hmp_arguments import Arguments, BadArguments

if TYPE_CHECKING:
    from qobra.machine.cpu import Cpu
    from qobra.machine.machine import Machine

Handler = Callable[..., str | None]
_H = TypeVar("_H", bound=Callable[..., Any])


class HmpMonitor:
    """One monitor, as far as its commands change it: the CPU that it looks at, what was typed before.

    ``take_fd`` gives the file descriptor that came with the latest line, or None.
    """

    def __init__(self, take_fd: Callable[[], int | None] = lambda: None, cpu_index: int = 0) -> None:
        self.take_fd = take_fd
        self.cpu_index = cpu_index
        self.history: list[str] = []


class HmpCommand:
    """One command, under all its names (``quit|q``); ``info`` commands have ``info `` before theirs."""

    def __init__(
        self,
        names: str,
        handler: Handler,
        args: str,
        params: str,
        help: str,
        needs: str | None,
        with_monitor: bool,
    ) -> None:
        self.names = names
        self.handler = handler
        self.params = params
        self.help = help
        self.needs = needs
        self.with_monitor = with_monitor
        self.arguments = [tuple(each.split(":", 1)) for each in args.split(",") if each]

    @property
    def own_names(self) -> str:
        """The names without the table that they are in."""
        return self.names.removeprefix("info ")

    def usage(self) -> str:
        """The line that ``help`` prints."""
        return f"{self.names} {self.params} -- {self.help}\n"


_commands: dict[str, HmpCommand] = {}
_loaded = False


def hmp_command(
    names: str,
    *,
    args: str = "",
    params: str = "",
    help: str,
    needs: str | None = None,
    with_monitor: bool = False,
) -> Callable[[_H], _H]:
    """Decorator: the function ``handler(machine, arguments)`` serves the command ``names`` and returns its output.

    ``params`` shows the arguments to people. ``needs`` is a capability without which there is no such command. With
    ``with_monitor`` the handler's third argument is the :class:`HmpMonitor`.
    """

    def decorate(handler: _H) -> _H:
        entry = HmpCommand(names, handler, args, params, help, needs, with_monitor)
        table = "info " if names.startswith("info ") else ""
        for name in entry.own_names.split("|"):
            _commands[table + name] = entry
        return handler

    return decorate


def commands(machine: Machine) -> dict[str, HmpCommand]:
    """The commands that ``machine`` serves, by each of their names."""
    global _loaded
    if not _loaded:
        registry.commands()
        _loaded = True
    return {
        name: entry
        for name, entry in sorted(_commands.items())
        if entry.needs is None or entry.needs in machine.capabilities
    }


def execute(machine: Machine, line: str, monitor: HmpMonitor | None = None) -> str:
    """Run ``line`` in the strand and return what it prints, lines ending as on a terminal.

    A machine that could not be set up carries nothing out: its program is about to end.
    """
    try:
        with machine.control:
            if machine.setting_up:
                return ""
            output = _run(machine, line.strip(), monitor or HmpMonitor())
    except QobraError as error:
        output = f"Error: {error}\n"
    return output.replace("\r\n", "\n").replace("\n", "\r\n")


def _run(machine: Machine, line: str, monitor: HmpMonitor) -> str:
    if not line:
        return ""
    table = commands(machine)
    word, rest = _first_word(line)
    if word == "info" and not rest.strip():
        return help_text(machine, "info")
    if word == "info":
        word, rest = _first_word(rest.strip())
        word = f"info {word}"
    entry = table.get(word)
    if entry is None:
        return f"unknown command: '{word}'\n"
    try:
        arguments = Arguments(rest, machine, partial(_register, machine, monitor)).parse(entry)
    except BadArguments as error:
        return f'{error}\nTry "help {word}" for more information\n'
    return entry.handler(machine, arguments, *([monitor] if entry.with_monitor else [])) or ""


def _first_word(text: str) -> tuple[str, str]:
    # A format may follow a name at once: x/4xw.
    end = next((i for i, character in enumerate(text) if character.isspace() or character == "/"), len(text))
    return text[:end], text[end:]


def _register(machine: Machine, monitor: HmpMonitor, name: str) -> int | None:
    from qobra.machine.registers import named

    cpu = current_cpu(machine, monitor)
    return None if cpu is None else named(cpu).get(name)


def current_cpu(machine: Machine, monitor: HmpMonitor) -> Cpu | None:
    """The CPU that ``monitor`` looks at, if there is one."""
    cpus = machine.board.cpus if machine.board is not None else []
    return next((cpu for cpu in cpus if cpu.index == monitor.cpu_index), cpus[0] if cpus else None)


def help_text(machine: Machine, topic: str = "") -> str:
    """What ``help TOPIC`` prints."""
    table = commands(machine)
    topic = " ".join(topic.split())
    if topic and topic not in table and topic != "info":
        return f"unknown command: '{topic if topic.startswith('info ') else topic.split()[0]}'\n"
    if topic and topic != "info":
        return table[topic].usage()
    lines = {}
    for name, entry in table.items():
        if name.startswith("info ") == (topic == "info"):
            lines[entry.names] = entry.usage()
    if not topic:
        lines["info"] = "info [subcommand] -- how things stand; alone, what can be asked for\n"
    return "".join(lines[name] for name in sorted(lines))
