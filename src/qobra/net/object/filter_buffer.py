"""``filter-buffer``: packets wait until the end of an interval, and then go on together."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.net.filter import NetFilter
from qobra.object.property import Int
from qobra.object.types import registry

if TYPE_CHECKING:
    from qobra.control import Timer
    from qobra.net.netdev import Direction, Netdev

_PACKETS_MAX = 10_000
_US = 1_000


def _set_interval(filter: FilterBuffer, value: int) -> None:
    if not value:
        raise QobraError("Property 'filter-buffer.interval' requires a positive value")
    filter.values["interval"] = value


@registry.register("filter-buffer")
class FilterBuffer(NetFilter):
    """Holds packets back for up to ``interval`` microseconds; more than 10,000 are not kept."""

    type_name = "filter-buffer"
    user_creatable = True
    required = ("netdev", "interval")

    _timer: Timer | None = None

    interval = Int(0, type="uint32", set=_set_interval)

    def setup(self) -> None:
        self._waiting: deque[tuple[bytes, Direction]] = deque(maxlen=_PACKETS_MAX)
        if self.on:
            self._arm()

    def _arm(self) -> None:
        self._timer = self.machine.control.call_later(self.interval * _US, self._elapsed)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _elapsed(self) -> None:
        self._release(self.backend)
        self._arm()

    def _release(self, backend: Netdev | None) -> None:
        while self._waiting and backend is not None:
            packet, direction = self._waiting.popleft()
            backend.pass_on(packet, direction, self)

    def status_changed(self) -> None:
        if self.on:
            self._arm()
        else:
            self._disarm()
            self._release(self.backend)

    def let_go(self, backend: Netdev) -> None:
        self._disarm()
        self._release(backend)

    def takes(self, packet: bytes, direction: Direction) -> bool:
        self._waiting.append((packet, direction))
        return True
