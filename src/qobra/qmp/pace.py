"""How a session gives way to guests.

A client that asks again as soon as it has its reply keeps a processor busy, half with its own work and half with
ours. Where there are few of them, those who wait for their disks pay for that. So while exports and devices serve
requests, a client that asks without pause is held: the session waits before it serves the next command, and reads no
more of them meanwhile.

What a client may have is a share of a processor's time, not a number of commands: on a slow machine, or with long
commands, it gets fewer. What came in one packet takes less than what is asked one by one, so it gets more of that.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.slots import Flight

SHARE = 8
"""While guests are at work, a client gets one in so many parts of a processor, in the long run."""
ALONE = 4
WAKE_NS = 200_000
"""A command that had to be waited for costs so many times its own time, and this: somebody was woken, and so is the
client, which works as well, and both take a processor from whoever has it."""
SAVINGS_NS = 250_000_000
"""So much time of a processor a client may use at once that has asked for little for a while."""
LEAST_HOLD_NS, MOST_HOLD_NS = 4_000_000, 50_000_000
"""A client is held for so long at a time: more often would cost more than it spares, longer is noticed."""
_MOST_COST_NS = MOST_HOLD_NS // SHARE
"""What a command costs at most, however long it took."""
LOOK_NS = 10_000_000
"""How often to look whether guests are at work."""
AT_WORK_NS = 4_000_000
"""They are if a batch of requests is served in each such time."""
_RECENT_NS = 10 * LOOK_NS
"""What guests did since a look longer ago says nothing about now."""


class Pace:
    """Tells a session how long to wait before it serves a command. Not thread-safe.

    A client saves up while it asks for little. While guests are not at work nobody is held, but who asks without pause
    then saves nothing, so that it is held as soon as they are.
    """

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._free_ns = 0
        """From when on a command is not held."""
        self._at_work = False
        self._served = 0
        self._looked_ns = 0

    def delay_ns(self, now_ns: int, spent_ns: int, *, alone: bool) -> int:
        """How long a command that is about to be served at ``now_ns`` is to wait: nothing, or ``LEAST_HOLD_NS`` to
        ``MOST_HOLD_NS``.

        ``spent_ns`` of a processor's time went into the one before it; ``alone``: this one had to be waited for.
        """
        cost_ns = min(spent_ns * ALONE + WAKE_NS if alone else spent_ns, _MOST_COST_NS)
        free_ns = max(self._free_ns, now_ns - SAVINGS_NS * SHARE) + cost_ns * SHARE
        if free_ns > now_ns and not self._guests_are_at_work(now_ns):
            free_ns = now_ns
        self._free_ns = free_ns
        delay_ns = free_ns - now_ns
        return min(delay_ns, MOST_HOLD_NS) if delay_ns >= LEAST_HOLD_NS else 0

    def _guests_are_at_work(self, now_ns: int) -> bool:
        elapsed_ns = now_ns - self._looked_ns
        if elapsed_ns >= LOOK_NS:
            served = self._flight.served
            self._at_work = elapsed_ns <= _RECENT_NS and (served - self._served) * AT_WORK_NS >= elapsed_ns
            self._served = served
            self._looked_ns = now_ns
        return self._at_work
