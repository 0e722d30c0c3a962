"""How a session gives way to guests.

A client that asks again as soon as it has its reply keeps a processor busy, half with its own work and half with
ours. Where there are few of them, those who wait for their disks pay for that. So while exports and devices serve
requests, a client that asks without pause is held: the session waits before it serves the next command, and reads no
more of them meanwhile.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.slots import Flight

INTERVAL_NS = 4_000_000
"""While guests are at work, a client gets one command served in this time, in the long run."""
BURST = 16
"""So many commands are never held: those of a client that has asked for nothing for a while."""
LOOK_NS = 10_000_000
"""How often to look whether guests are at work."""
_RECENT_NS = 10 * LOOK_NS
"""What guests did since a look longer ago says nothing about now."""


class Pace:
    """Tells a session how long to wait before it serves a command. Not thread-safe.

    A client saves up for ``BURST`` commands, and then for one more in each interval. Guests are at work where they have
    had as many batches of requests served as there were intervals; while they are not, nobody is held.
    """

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._free_ns = 0
        """From when on a command is not held."""
        self._at_work = False
        self._served = 0
        self._looked_ns = 0

    def delay_ns(self, now_ns: int) -> int:
        """How long a command that is about to be served at ``now_ns`` is to wait, at most ``INTERVAL_NS``."""
        free_ns = max(self._free_ns, now_ns - (BURST - 1) * INTERVAL_NS)
        if free_ns > now_ns and not self._guests_are_at_work(now_ns):
            free_ns = now_ns - (BURST - 1) * INTERVAL_NS
        self._free_ns = free_ns + INTERVAL_NS
        return max(free_ns - now_ns, 0)

    def _guests_are_at_work(self, now_ns: int) -> bool:
        elapsed_ns = now_ns - self._looked_ns
        if elapsed_ns >= LOOK_NS:
            served = self._flight.served
            self._at_work = elapsed_ns <= _RECENT_NS and (served - self._served) * INTERVAL_NS >= elapsed_ns
            self._served = served
            self._looked_ns = now_ns
        return self._at_work
