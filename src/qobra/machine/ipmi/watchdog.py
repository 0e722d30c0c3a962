"""A controller's watchdog timer (IPMI 2.0, section 27), and the sensor that tells of it (section 35, table 42-3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.ipmi import bmc as ipmi
from qobra.machine.ipmi.storage import Fault, word
from qobra.machine.vmstate import VmState, flag, timer, u8, u16

if TYPE_CHECKING:
    from qobra.machine.machine import Machine
    from qobra.machine.vclock import VirtualClock

NOT_STARTED = 0x80
_DO_NOT_LOG, _DO_NOT_STOP, _USE = 0x80, 0x40, 0x07
_TICK_NS, _SECOND_NS = 10**8, 10**9
_NOTHING, _RESET, _POWER_DOWN = 0, 1, 2
_NMI, _MESSAGE = 2, 3
_PRE_TIMEOUT_OFFSET = 8
_MAX_USE = 5


class Watchdog:
    """The timer. ``tell(offset, detail)`` notes an event of its sensor, ``warn`` raises the flag before it expires."""

    vmstate = VmState(
        u8("_use", "_actions", "_pre_timeout", "_expired"),
        u16("_count"),
        flag("_initialized", "_running", "_warned"),
        timer("_timer"),
    )

    def __init__(
        self, machine: Machine, clock: VirtualClock, tell: Callable[[int, int], None], warn: Callable[[], None]
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._tell = tell
        self._warn = warn
        self._timer = clock.timer(self._due)
        self._use = self._actions = self._pre_timeout = self._expired = 0
        self._count = 0
        self._initialized = self._running = self._warned = False

    def close(self) -> None:
        """Stop for good."""
        self._timer.cancel()

    def stop(self) -> None:
        """No longer run; it has to be set anew."""
        self._initialized = self._running = self._warned = False
        self._timer.cancel()

    def start(self, _data: bytes) -> bytes:
        """Reset Watchdog Timer: count from the start."""
        if not self._initialized:
            raise Fault(NOT_STARTED)
        self._warned = False
        self._running = bool(self._actions)
        if self._running:
            self._timer.set(self._clock.now_ns() + self._first_ns())
        return b""

    def _first_ns(self) -> int:
        # The interrupt before comes first, if there is one.
        whole = self._count * _TICK_NS
        if self._actions >> 4 & 7:
            whole = max(0, whole - self._pre_timeout * _SECOND_NS)
        return whole

    def set(self, data: bytes) -> bytes:
        """Set Watchdog Timer."""
        use, action, interrupt = data[0] & _USE, data[1] & 7, data[1] >> 4 & 7
        if not 1 <= use <= _MAX_USE or action > _POWER_DOWN or interrupt not in (0, _NMI, _MESSAGE):
            raise Fault(ipmi.INVALID_DATA)
        self._initialized = True
        self._use = data[0] & (_USE | _DO_NOT_LOG)
        self._actions = data[1]
        self._pre_timeout = data[2]
        self._expired &= ~data[3]
        self._count = word(data, 4)
        if self._running and data[0] & _DO_NOT_STOP:
            self.start(b"")
        else:
            self._running = self._warned = False
            self._timer.cancel()
        return b""

    def get(self, _data: bytes) -> bytes:
        """Get Watchdog Timer."""
        left = 0
        if self._running and self._timer.deadline_ns is not None:
            left_ns = self._timer.deadline_ns - self._clock.now_ns()
            if not self._warned:
                left_ns += self._count * _TICK_NS - self._first_ns()
            left = min(max(0, -(-left_ns // _TICK_NS)), 0xFFFF)
        head = bytes((self._use, self._actions, self._pre_timeout, self._expired))
        return head + self._count.to_bytes(2, "little") + left.to_bytes(2, "little")

    def _event(self, offset: int) -> None:
        if not self._use & _DO_NOT_LOG:
            self._tell(offset, (self._actions >> 4 & 7) << 4 | self._use & _USE)

    def _due(self) -> None:
        if not self._running:
            return
        interrupt = self._actions >> 4 & 7
        if interrupt and not self._warned:
            self._warned = True
            if interrupt == _NMI:
                ipmi.interrupt_host(self._machine)
            self._warn()
            self._event(_PRE_TIMEOUT_OFFSET)
            rest = self._count * _TICK_NS - self._first_ns()
            self._timer.set(self._clock.now_ns() + rest)
            return
        self._running = False
        self._expired |= 1 << (self._use & _USE)
        action = self._actions & 7
        self._event(action)
        if action == _RESET:
            ipmi.reset_host(self._machine)
        elif action == _POWER_DOWN:
            ipmi.power_off(self._machine)
