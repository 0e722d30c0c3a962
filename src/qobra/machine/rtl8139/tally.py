"""The counters that the card writes into memory on demand (section 5.4, DTCCR)."""

from __future__ import annotations

from struct import Struct

from qobra.machine.vmstate import VmState, u64

_FORM = Struct("<QQQIHHIIQQIHH")


class Tally:
    """How many packets went out and came in."""

    vmstate = VmState(u64("_sent", "_received", "_missed", "_broadcasts", "_multicasts"))

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """None yet."""
        self._sent = self._received = self._missed = self._broadcasts = self._multicasts = 0

    def sent(self) -> None:
        """A packet went out."""
        self._sent += 1

    def received(self, broadcast: bool, multicast: bool) -> None:
        """A packet came in."""
        self._received += 1
        self._broadcasts += broadcast
        self._multicasts += multicast

    def missed(self) -> None:
        """There was no room for a packet."""
        self._missed += 1

    def dump(self) -> bytes:
        """The counters as they lie in memory."""
        mine = self._received - self._broadcasts - self._multicasts
        multicasts, missed = self._multicasts & 0xFFFFFFFF, self._missed & 0xFFFF
        return _FORM.pack(self._sent, self._received, 0, 0, missed, 0, 0, 0, mine, self._broadcasts, multicasts, 0, 0)
