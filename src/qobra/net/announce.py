"""announce-self: packets by which bridges learn where a card is (RARP, RFC 903), several times, ever more slowly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from qobra.control import Control

_MILLISECOND = 1_000_000


class Card(Protocol):
    """What is announced."""

    address: bytes

    def transmit(self, packet: bytes) -> None: ...

    def announce(self) -> None: ...


def packet(address: bytes) -> bytes:
    """A broadcast that asks for the protocol address of ``address``."""
    body = b"\xff" * 6 + address + b"\x80\x35" + b"\0\1\x08\0\x06\x04\0\3"
    return (body + address + bytes(4) + address + bytes(4)).ljust(60, b"\0")


class Announcer:
    """The announcements that are under way, by their id; a new one of the same id takes the place of the old."""

    def __init__(self, control: Control, cards: Callable[[], list[Any]]) -> None:
        self._control = control
        self._cards = cards
        self._running: dict[str, int] = {}
        self._count = 0

    def start(self, parameters: dict[str, Any]) -> None:
        """AnnounceParameters of the reference. The first round is at once."""
        id = parameters.get("id", "")
        self._count += 1
        self._running[id] = self._count
        self._round(id, self._count, parameters, 0)

    def _round(self, id: str, number: int, parameters: dict[str, Any], done: int) -> None:
        if self._running.get(id) != number:
            return
        wanted = parameters.get("interfaces")
        for card, names in self._cards():
            if wanted is None or names & set(wanted):
                card.transmit(packet(card.address))
                card.announce()
        done += 1
        if done >= parameters["rounds"]:
            del self._running[id]
            return
        delay = min(parameters["initial"] + parameters["step"] * (done - 1), parameters["max"])
        self._control.call_later(delay * _MILLISECOND, lambda: self._round(id, number, parameters, done))
