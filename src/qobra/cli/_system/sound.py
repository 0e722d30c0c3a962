"""``-audiodev`` and ``-audio``: the backends of sound, and a card with a backend of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.cli._options import structure, tree
from qobra.errors import QobraError
from qobra.machine.plug import add_device

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

_ID = "audiodev0"
_CARDS = {"ac97": "Intel 82801AA AC97 Audio", "hda": "Intel HD Audio"}
_WAYS = ("help", "?")


def cards_text() -> str:
    """The models of ``-audio``, for people."""
    lines = (f"{name:<11} {what}\n" for name, what in _CARDS.items())
    return "Valid sound card names (comma separated):\n" + "".join(lines)


def asks_for_cards(value: str) -> bool:
    """Whether ``-audio`` only asks what there is."""
    return any(part in value.split(",") for part in ("help", *(f"model={way}" for way in _WAYS)))


class Sound:
    """What is made of the options, backends first."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._card: tuple[str, str] | None = None

    def add_backend(self, value: str) -> None:
        """``-audiodev``. Raises QobraError."""
        self._machine.audiodevs.create(structure(value, "Audiodev", "driver"))

    def add_card(self, value: str) -> None:
        """``-audio [driver=]DRIVER,model=CARD``: the backend now, the card with :meth:`plug`. Raises QobraError."""
        from qobra.qapi.contract import contract

        options, keyval = tree(value, "driver")
        model = options.pop("model", None)
        if not isinstance(model, str):
            raise QobraError("Parameter 'model' is missing")
        if self._card is not None:
            raise QobraError("only one -audio option is allowed")
        if model not in _CARDS:
            raise QobraError(f"Unknown sound card name `{model}'", hint=cards_text().rstrip("\n"))
        options.setdefault("id", _ID)
        self._machine.audiodevs.create(contract().check("Audiodev", options, keyval=keyval))
        self._card = model, options["id"]

    def plug(self) -> None:
        """The card of ``-audio``. Raises QobraError."""
        if self._card is None:
            return
        model, audiodev = self._card
        board = self._machine.board
        assert board is not None
        if model == "ac97":
            add_device(self._machine, {"driver": "AC97", "audiodev": audiodev}, keyval=True)
            return
        controller = add_device(self._machine, {"driver": "intel-hda"}, keyval=True)
        (link,) = controller.buses()
        codec = {"driver": "hda-duplex", "bus": link.bus_name, "audiodev": audiodev}
        add_device(self._machine, codec, keyval=True)
