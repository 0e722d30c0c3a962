"""``ib700``: the watchdog of the iBASE 700 board: one port starts it, one stops it (its manual, chapter 5)."""

from __future__ import annotations

from qobra.machine import watchdog
from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.vmstate import VmState, timer

_STOP, _START = 0x441, 0x443
_SECOND = 10**9


@registry.register("ib700")
class Ib700(IsaDevice):
    """A write to port 0x443 starts it: 0 means 30 seconds, each step 2 less. A write to 0x441 stops it."""

    type_name = "ib700"
    category = "Watchdog"
    description = "iBASE 700"

    vmstate = VmState(timer("_timer"))

    def realize(self) -> None:
        self._timer = self.board.clock.timer(self._expired)
        self.map_ports(_STOP, 1, lambda _o, _w: 0xFF, self._stop)
        self.map_ports(_START, 1, lambda _o, _w: 0xFF, self._start)

    def unrealize(self) -> None:
        self._timer.cancel()
        super().unrealize()

    def reset(self) -> None:
        self._timer.cancel()

    def _start(self, _offset: int, _width: int, value: int) -> None:
        self._timer.set(self.board.clock.now_ns() + (30 - 2 * (value & 15)) * _SECOND)

    def _stop(self, _offset: int, _width: int, _value: int) -> None:
        self._timer.cancel()

    def _expired(self) -> None:
        watchdog.expired(self.machine)
