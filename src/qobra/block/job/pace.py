"""How a job without a speed limit gives way to guests."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.slots import Flight

SHARE = 24
"""While guests do I/O, a job has one of so many parts of a processor's time."""
LONGEST_NS = 50_000_000
"""Most that it rests at a time: then it looks again whether guests still do any."""


class Pace:
    """Tells a job how long to rest between two pieces of its work. Not thread-safe.

    What a job takes from a guest is processor time, so that is what is shared out: for what it spent since it last
    asked, a job rests ``share - 1`` times as long, if a guest had a request served meanwhile. So it always goes on,
    if at a part of its speed; a guest that asks for little holds it up just as rarely; and beside guests that are idle
    it is as fast as it can be.
    """

    def __init__(self, flight: Flight) -> None:
        self.share = SHARE
        """See above; 1: it gives way to nobody."""
        self.gives_way = False
        """Whether guests were at work when it was last asked."""
        self._flight = flight
        self._served = flight.served

    def delay_ns(self, spent_ns: int) -> int:
        """How long to rest, for the processor time that was spent since the last call."""
        served = self._flight.served
        self.gives_way = self.share > 1 and (served != self._served or self._flight.is_serving)
        self._served = served
        if not self.gives_way:
            return 0
        return min((self.share - 1) * spent_ns, LONGEST_NS)
