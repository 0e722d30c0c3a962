"""The TPM back ends of a machine, by id: at most one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.object.tree import check_identifier
from qobra.tpm.tpm import Tpm, registry

if TYPE_CHECKING:
    from qobra.machine.machine import Machine


def kinds_text() -> str:
    """The kinds of back ends, for people."""
    lines = (f"{name:>12}   {registry.load_all()[name].description}\n" for name in kinds())
    return "Supported TPM types (choose only one):\n" + "".join(lines)


def kinds() -> list[str]:
    """The kinds of back ends, in the order of the contract's enumeration."""
    return sorted(registry.names(), reverse=True)


class Tpms:
    """The owner of a machine's TPM back ends."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._backends: dict[str, Tpm] = {}

    def __iter__(self) -> Iterator[Tpm]:
        return iter(tuple(self._backends.values()))

    def create(self, options: dict[str, str]) -> Tpm:
        """Open the back end that ``options`` (``id``, ``type`` and those of its kind) describe. Raises QobraError."""
        if self._backends:
            raise QobraError("Only one TPM is allowed.")
        options = dict(options)
        id, kind = options.pop("id", None), options.pop("type", None)
        if id is None:
            raise QobraError("Parameter 'id' is missing")
        check_identifier(id)
        if kind is None:
            raise QobraError("Parameter 'type' is missing", hint=kinds_text().rstrip("\n"))
        cls = registry.find(kind)
        if cls is None:
            raise QobraError("Parameter 'type' expects a TPM backend type", hint=kinds_text().rstrip("\n"))
        for name in options:
            if name not in cls.parameters:
                raise QobraError(f"Invalid parameter '{name}'")
        backend = cls(self._machine, id, options)
        try:
            backend.open()
        except QobraError:
            backend.close()
            raise
        self._backends[id] = backend
        return backend

    def find(self, id: str) -> Tpm | None:
        """The back end of that id."""
        return self._backends.get(id)

    def take(self, type_name: str, model: str, id: str | None) -> Tpm:
        """The back end ``id`` for a device of the type, which shows itself as ``model``. Raises QobraError."""
        if not id:
            raise QobraError("'tpmdev' property is required")
        backend = self._backends.get(id)
        if backend is None:
            raise QobraError(f"Property '{type_name}.tpmdev' can't find value '{id}'")
        if backend.model is not None:
            raise QobraError(f"TPM backend '{id}' is already initialized")
        backend.model = model
        return backend

    def describe(self) -> list[dict[str, Any]]:
        """TPMInfo of each that serves a device."""
        return [
            {"id": each.id, "model": each.model, "options": {"type": each.kind, "data": each.describe()}}
            for each in self
            if each.model is not None
        ]

    def close(self) -> None:
        """Let all TPMs go."""
        for backend in self:
            backend.close()
        self._backends.clear()
