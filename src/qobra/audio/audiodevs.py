"""The audio backends of a machine, by id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qobra.audio.audiodev import Audiodev, check_direction, registry
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.machine.machine import Machine


def kinds_text() -> str:
    """The kinds of backends, for people."""
    return "Available audio drivers:\n" + "".join(f"{name}\n" for name in sorted(registry.names()))


class Audiodevs:
    """The owner of a machine's audio backends."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._backends: dict[str, Audiodev] = {}

    def __iter__(self) -> Iterator[Audiodev]:
        return iter(tuple(self._backends.values()))

    def find(self, id: str) -> Audiodev | None:
        """The backend ``id``."""
        return self._backends.get(id)

    def create(self, options: dict[str, Any]) -> Audiodev:
        """Add the backend that ``options``, an Audiodev of the contract, describe. Raises QobraError."""
        cls = registry.find(options["driver"])
        if cls is None:
            raise QobraError(f"Audio driver '{options['driver']}' is not available", hint=kinds_text().rstrip("\n"))
        if options["id"] in self._backends:
            raise QobraError(f"Duplicate ID '{options['id']}' for audiodev")
        for direction in ("in", "out"):
            check_direction(options.get(direction, {}))
        backend = self._backends[options["id"]] = cls(self._machine, options)
        return backend

    def close(self) -> None:
        """Close all of them."""
        for backend in self:
            backend.close()
        self._backends.clear()
