"""What devices with sound have: the backend that they play to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.audio.audiodev import Voice
from qobra.errors import QobraError
from qobra.object.property import Property

if TYPE_CHECKING:
    from qobra.machine.machine import Machine


class AudiodevProperty(Property):
    """The backend, by id. Without one, nobody hears the card."""

    expected = "string"

    def write(self, instance: Any, value: Any, *, keyval: bool = False) -> None:
        if isinstance(value, str) and instance.tree.machine.audiodevs.find(value) is None:
            raise QobraError(f"Property '{instance.type_name}.{self.name}' can't find value '{value}'")
        super().write(instance, value, keyval=keyval)

    def check(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self.mismatch()
        return value

    def show(self, value: Any) -> Any:
        return value or ""


def open_voice(machine: Machine, id: str | None) -> Voice:
    """A voice at the backend ``id``. Raises QobraError."""
    backend = machine.audiodevs.find(id) if id is not None else None
    return backend.open_voice() if backend is not None else Voice()


def audiodev_property() -> AudiodevProperty:
    """The property ``audiodev`` of a card."""
    return AudiodevProperty("str", None, description="ID of an audiodev to use as a backend")
