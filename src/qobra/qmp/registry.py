"""The commands that are implemented: handlers by name, found by importing what is needed of :mod:`qobra.command`.

A handler is called inside the control strand with the machine and its arguments, already checked against the contract,
and returns what the contract says (None for nothing). A command is served, and so advertised, exactly where
its handler exists and the machine has what the handler ``needs``.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from qobra.machine.machine import Machine

    Handler = Callable[..., Any]
    _H = TypeVar("_H", bound=Handler)


class Command:
    """A handler and how to call it."""

    __slots__ = ("handler", "name", "needs", "older", "with_session")

    def __init__(self, name: str, handler: Handler, needs: str | None, with_session: bool) -> None:
        self.name = name
        self.handler = handler
        self.needs = needs
        self.with_session = with_session
        self.older: tuple[Callable[[dict[str, Any]], bool], Handler] | None = None

    def served_by(self, machine: Machine) -> bool:
        """Whether ``machine`` has what the command needs."""
        return self.needs is None or self.needs in machine.capabilities


_commands: dict[str, Command] = {}
_events: dict[str, str | None] = {}
_loaded = False


def command(name: str, *, needs: str | None = None, with_session: bool = False) -> Callable[[_H], _H]:
    """Decorator: the function serves the command ``name`` of the contract.

    ``needs`` is a capability of the machine (``board``) without which the command does not exist. The handler is
    called as ``handler(machine, arguments)``, and with the session (None where the call does not come from a QMP
    client) as a third argument if ``with_session``.
    """

    def decorate(handler: _H) -> _H:
        _commands[name] = Command(name, handler, needs, with_session)
        return handler

    return decorate


def older_form(name: str, matches: Callable[[dict[str, Any]], bool]) -> Callable[[_H], _H]:
    """Decorator: the function serves calls of ``name`` whose arguments ``matches`` knows for those of an older QEMU.

    It gets the arguments as they came, and has to check them itself.
    """

    def decorate(handler: _H) -> _H:
        _commands[name].older = matches, handler
        return handler

    return decorate


def events(*names: str, needs: str | None = None) -> None:
    """Say that the events ``names`` are emitted, by machines with the capability ``needs`` only if that is given."""
    _events.update(dict.fromkeys(names, needs))


def find(machine: Machine, name: str) -> Command | None:
    """The command ``name`` as ``machine`` serves it, or None."""
    found = _commands.get(name)
    if found is None and not _loaded:
        _load(name)
        found = _commands.get(name)
    return found if found is not None and found.served_by(machine) else None


def served(machine: Machine) -> dict[str, Command]:
    """Every command that ``machine`` serves, by name, sorted."""
    from qobra.qapi.contract import contract

    known = contract().commands
    return {name: item for name, item in sorted(commands().items()) if name in known and item.served_by(machine)}


def served_names(machine: Machine) -> list[str]:
    """The names of what is :func:`served`, found without the handlers."""
    from qobra.qapi.contract import contract

    needs = {name: item.needs for name, item in _commands.items()} if _loaded else _handlers().needs()
    known = contract().commands
    return sorted(
        name for name, need in needs.items() if name in known and (need is None or need in machine.capabilities)
    )


def served_events(machine: Machine) -> list[str]:
    """Every event that ``machine`` may emit, sorted."""
    commands()
    return sorted(name for name, needs in _events.items() if needs is None or needs in machine.capabilities)


def capabilities() -> frozenset[str]:
    """Everything that a command or an event needs of a machine."""
    needs = {item.needs for item in commands().values()} | set(_events.values())
    return frozenset(need for need in needs if need is not None)


def commands() -> dict[str, Command]:
    """Every command there is, of whatever machine."""
    global _loaded
    if not _loaded:
        _handlers().load_all()
        _loaded = True
    return _commands


def _load(name: str) -> None:
    """Import the handler of the command ``name``, or all of them if it is not known where it is."""
    if not _handlers().load(name):
        commands()


def _handlers() -> Any:
    """The one import that points up: the handlers stand above the protocol that carries their calls."""
    __import__("qobra.command")
    return sys.modules["qobra.command"]
