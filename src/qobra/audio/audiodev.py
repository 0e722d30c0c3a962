"""What every audio backend is: a place for the sound of any number of voices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.audio.sound import Form
from qobra.errors import QobraError
from qobra.registry import Registry

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

registry: Registry[type[Audiodev]] = Registry("audio backend", ["qobra.audio.backend"])


class Audiodev:
    """A backend. ``options`` are an Audiodev of the contract."""

    driver = ""

    def __init__(self, machine: Machine, options: dict[str, Any]) -> None:
        self.machine = machine
        self.id: str = options["id"]
        self.options = options

    def open_voice(self) -> Voice:
        """A voice of a card. Raises QobraError where the backend cannot take sound."""
        return Voice()

    def close(self) -> None:
        """Nothing is played any more."""


class Voice:
    """One stream of sound, which nobody hears. Called inside the control strand."""

    def play(self, data: bytes, form: Form, volumes: tuple[float, float]) -> None:
        """Sound of ``form``, whole frames; ``volumes`` are factors of the left and the right side."""

    def pause(self) -> None:
        """There is no more for now."""

    def close(self) -> None:
        """The card is gone."""


def check_direction(settings: dict[str, Any]) -> None:
    """Raises QobraError where settings of playback or recording do not go together."""
    if settings.get("fixed-settings", True) is False and {"frequency", "channels", "format"} & settings.keys():
        raise QobraError("You can't use frequency, channels or format with fixed-settings=off")
    if settings.get("mixing-engine", True) is False and settings.get("fixed-settings") is True:
        raise QobraError("You can't use fixed-settings without mixeng")
