"""The contract at run time: which commands and events there are, and whether values fit their types.

    >>> from qobra.qapi.contract import contract
    >>> contract().check_arguments("job-pause", {"id": "j0"})
    {'id': 'j0'}

Importing this and asking for :func:`contract` costs about a millisecond; checkers are made for the types that are used.
"""

from __future__ import annotations

from qobra.errors import COMMAND_NOT_FOUND, QobraError
from qobra.qapi.checker import Bad, Checkers
from qobra.qapi.spec import Types

TYPE_CHECKING = False
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_NOTHING = "q_empty"


class CommandSpec:
    """A command as the schema declares it.

    ``arg_type`` is an object type (``q_empty`` where there are no arguments), ``ret_type`` a type's name, ``[X]``
    for a list, or "" for a command that returns nothing. ``open_arguments`` lets further arguments through unchecked.
    ``section`` is the schema file that it stands in.
    """

    __slots__ = (
        "allow_preconfig", "arg_type", "deprecated", "features", "name", "oob", "open_arguments", "ret_type", "section",
    )  # fmt: skip

    def __init__(self, name: str, text: str, features: str) -> None:
        self.name = name
        self.section, argument, returned, flags = text.split(" ")
        self.arg_type = _NOTHING if argument == "-" else argument
        self.ret_type = "" if returned == "-" else returned
        self.oob = "o" in flags
        self.allow_preconfig = "p" in flags
        self.deprecated = "d" in flags
        self.open_arguments = "g" in flags
        self.features = features.split()


class EventSpec:
    """An event as the schema declares it; ``arg_type`` is ``q_empty`` where it has no data."""

    __slots__ = ("arg_type", "features", "name", "section")

    def __init__(self, name: str, text: str, features: str) -> None:
        self.name = name
        self.section, argument = text.split(" ")
        self.arg_type = _NOTHING if argument == "-" else argument
        self.features = features.split()


class Contract:
    """Commands, events and types of a schema in compact form (see :mod:`qobra.qapi.tables`)."""

    def __init__(
        self,
        types: Mapping[str, str],
        commands: Mapping[str, str],
        events: Mapping[str, str],
        features: Mapping[str, str],
    ) -> None:
        self.types = Types(types)
        self.features = features
        self.commands = {name: CommandSpec(name, text, features.get(name, "")) for name, text in commands.items()}
        self.events = {name: EventSpec(name, text, features.get(name, "")) for name, text in events.items()}
        self._checkers = Checkers(self.types)

    def check_arguments(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return ``arguments`` if they fit the command; else raise QobraError in QEMU's words."""
        spec = self.commands.get(command)
        if spec is None:
            raise QobraError(f"The command {command} has not been found", COMMAND_NOT_FOUND)
        try:
            if spec.open_arguments:
                self._checkers.visit(spec.arg_type)(arguments)
            else:
                self._checkers.check(spec.arg_type)(arguments)
        except Bad as bad:
            raise bad.error() from None
        return arguments

    def check(self, type_name: str, value: Any, *, path: str = "", keyval: bool = False) -> Any:
        """Return ``value`` if it fits the type (also a built-in one, or ``[X]``); else raise QobraError.

        ``path`` is where the value stands, for the error. With ``keyval`` the scalars of ``value`` are strings, as
        :func:`qobra.qapi.keyval.parse` leaves them, and what is returned is a converted copy.
        """
        try:
            if keyval:
                from qobra.qapi.convert import convert

                return convert(self.types, type_name, value)
            self._checkers.check(type_name)(value)
        except Bad as bad:
            raise bad.error(path, keyval=keyval) from None
        return value


_contract: Contract | None = None


def contract() -> Contract:
    """Qobra's own contract, made once a process."""
    global _contract
    if _contract is None:
        from qobra.model import tables

        _contract = Contract(tables.TYPES, tables.COMMANDS, tables.EVENTS, tables.FEATURES)
    return _contract
