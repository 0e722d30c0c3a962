"""Which members of the contract's commands scripts have given, and which of those in commands that were carried out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from qobra.qapi.contract import contract
from qobra.qapi.spec import ALTERNATE, ENUM

Place = tuple[str, str]
"""A type and one of its members, or a type and one of its values; a command and "" for the command itself."""


class Coverage:
    """``commands`` are those that are drawn; only drivers in ``drivers`` count as members of options of nodes."""

    def __init__(self, commands: Iterable[str], drivers: Iterable[str]) -> None:
        self._types = contract().types
        self._drivers = frozenset(drivers)
        self._known: set[Place] = set()
        self._given: set[Place] = set()
        self._done: set[Place] = set()
        for command in commands:
            if command in contract().commands:
                self._known.add((command, ""))
                self._learn(contract().commands[command].arg_type)

    def note(self, command: str, arguments: dict[str, Any] | None, *, done: bool) -> None:
        """``command`` was given with ``arguments``; ``done``: it was not refused."""
        if command not in contract().commands:
            return
        places = {(command, ""), *self._places(contract().commands[command].arg_type, arguments or {})}
        self._given |= places
        if done:
            self._done |= places

    def report(self) -> str:
        """How much was reached, and what never was, in a few lines."""
        given, done = self._given & self._known, self._done & self._known
        lines = [f"{len(self._known)} commands, members and values: {len(given)} given, {len(done)} carried out"]
        for what, places in (("never given", self._known - given), ("always refused", given - done)):
            if places:
                lines.append(f"{what}: " + " ".join(".".join(place).rstrip(".") for place in sorted(places)))
        return "\n".join(lines)

    def _learn(self, type_name: str) -> None:
        """All places that values of a type can have."""
        type_name = type_name.strip("[]")
        if type_name not in self._types or any(place[0] == type_name for place in self._known):
            return
        spec = self._types[type_name]
        if spec.kind == ENUM:
            if type_name != "BlockdevDriver":
                self._known |= {(type_name, value) for value in spec.values}
            return
        for member in spec.members:
            self._known.add((type_name, member.name))
            self._learn(member.type)
        for value, branch in spec.branches.items():
            if spec.tag != "driver" or value in self._drivers:
                self._learn(branch)

    def _places(self, type_name: str, value: Any) -> Iterator[Place]:
        if type_name.startswith("["):
            for each in value if isinstance(value, list) else ():
                yield from self._places(type_name[1:-1], each)
            return
        if type_name not in self._types:
            return
        spec = self._types[type_name]
        if spec.kind == ENUM:
            yield type_name, str(value)
        elif spec.kind == ALTERNATE:
            for member in spec.members:
                if isinstance(value, dict) == (member.type in self._types and self._types[member.type].kind != ENUM):
                    yield type_name, member.name
                    yield from self._places(member.type, value)
        elif isinstance(value, dict):
            branch = spec.branches.get(str(value.get(spec.tag, ""))) if spec.tag else None
            for each in (type_name, branch):
                for member in self._types[each].members if each is not None else ():
                    if member.name in value:
                        yield str(each), member.name
                        yield from self._places(member.type, value[member.name])
