"""What every audio backend is: a place for the sound of any number of voices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

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
        self.listeners: list[Listener] = []
        """Who else hears what is played."""

    def open_voice(self) -> Voice:
        """A voice of a card. Raises QobraError where the backend cannot take sound."""
        return _HeardVoice(self, self.make_voice())

    def make_voice(self) -> Voice:
        """The backend's own part of it."""
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


class Listener(Protocol):
    """What hears the voices of a backend, each by what tells it from the others."""

    def play(self, who: object, data: bytes, form: Form, volumes: tuple[float, float]) -> None: ...
    def pause(self, who: object) -> None: ...


class _HeardVoice(Voice):
    """A voice of a backend with its listeners."""

    def __init__(self, owner: Audiodev, inner: Voice) -> None:
        self._owner = owner
        self._inner = inner

    def play(self, data: bytes, form: Form, volumes: tuple[float, float]) -> None:
        self._inner.play(data, form, volumes)
        for each in self._owner.listeners:
            each.play(self, data, form, volumes)

    def pause(self) -> None:
        self._inner.pause()
        for each in self._owner.listeners:
            each.pause(self)

    def close(self) -> None:
        self.pause()
        self._inner.close()


def check_direction(settings: dict[str, Any]) -> None:
    """Raises QobraError where settings of playback or recording do not go together."""
    if settings.get("fixed-settings", True) is False and {"frequency", "channels", "format"} & settings.keys():
        raise QobraError("You can't use frequency, channels or format with fixed-settings=off")
    if settings.get("mixing-engine", True) is False and settings.get("fixed-settings") is True:
        raise QobraError("You can't use fixed-settings without mixeng")
