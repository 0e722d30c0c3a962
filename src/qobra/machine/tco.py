"""The watchdog of the ICH9's system management logic, TCO (Intel ICH9 data sheet, section 13.9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine import watchdog
from qobra.machine.memory import Registers
from qobra.machine.vmstate import Field, Number, VmState, raw, timer, u8

if TYPE_CHECKING:
    from qobra.machine.board import Board

SIZE = 0x20
TICK_NS = 600_000_000
_RELOAD, _STATUS1, _STATUS2, _CONTROL1, _CONTROL2, _TIMER = 0x00, 0x04, 0x06, 0x08, 0x0A, 0x12
_TIMED_OUT, _SECOND_TIME_OUT, _BOOT_FAILED = 1 << 3, 1 << 1, 1 << 2
_HALTED, _LOCK = 1 << 11, 1 << 12
_TICKS = 0x3FF
# Registers of one byte, which hold what was written.
_PLAIN = {0x02: 1, 0x03: 1, 0x0C: 1, 0x0D: 1, 0x0E: 1, 0x10: 1}
_CLEARED = {_STATUS1: 0x1E88, _STATUS2: 0x001F}
_WRITABLE = {_CONTROL1: 0x0300 | _HALTED | _LOCK, _CONTROL2: 0x003E}
_DEFAULTS = {_CONTROL2: 0x0008, 0x10: 0x03, _TIMER: 0x0004}


class Tco:
    """Counts down twice: the first end is told, the second is what the watchdog's action is for if ``may_reboot``."""

    vmstate = VmState(raw("_registers"), timer("_timer"), u8("_ends", maximum=1), Field("_left", Number(2)))

    def __init__(self, board: Board, may_reboot: Callable[[], bool]) -> None:
        self._board = board
        self._may_reboot = may_reboot
        self._timer = board.clock.timer(self._ended)
        self._registers = bytearray(SIZE)
        self.registers = Registers("sm-tco", SIZE, self._read, self._write, valid=(1, 4), impl=(1, 2))
        self.reset()

    def reset(self) -> None:
        """As after power-on."""
        self._timer.cancel()
        self._registers[:] = bytes(SIZE)
        for offset, value in _DEFAULTS.items():
            self._put(offset, value)
        self._ends = 0
        self._left = 0
        """Ticks when it was halted."""

    def close(self) -> None:
        """Stop for good."""
        self._timer.cancel()

    def _get(self, offset: int) -> int:
        return self._registers[offset] | self._registers[offset + 1] << 8

    def _put(self, offset: int, value: int) -> None:
        self._registers[offset : offset + 2] = value.to_bytes(2, "little")

    # -- the timer

    def _ticks_left(self) -> int:
        deadline = self._timer.deadline_ns
        if deadline is None:
            return self._left
        return max(0, -(-(deadline - self._board.clock.now_ns()) // TICK_NS))

    def _run(self, ticks: int) -> None:
        self._left = ticks
        if ticks > 1 and not self._get(_CONTROL1) & _HALTED:
            self._timer.set(self._board.clock.now_ns() + ticks * TICK_NS)
        else:
            self._timer.cancel()

    def _halt(self) -> None:
        self._left = self._ticks_left()
        self._timer.cancel()

    def _ended(self) -> None:
        self._put(_STATUS1, self._get(_STATUS1) | _TIMED_OUT)
        self._ends += 1
        if self._ends == 2:
            self._ends = 0
            self._put(_STATUS2, self._get(_STATUS2) | _SECOND_TIME_OUT | _BOOT_FAILED)
            if self._may_reboot():
                self._left = 0
                watchdog.expired(self._board.machine)
                return
        self._run(self._get(_TIMER) & _TICKS)

    # -- registers

    def _read(self, offset: int, width: int) -> int:
        if offset == _RELOAD:
            return self._ticks_left()
        return int.from_bytes(self._registers[offset : offset + width], "little")

    def _write(self, offset: int, width: int, value: int) -> None:
        if offset in _PLAIN:
            self._registers[offset] = value & 0xFF
            if width == 2 and offset + 1 in _PLAIN:
                self._registers[offset + 1] = value >> 8 & 0xFF
        elif width == 1:
            return  # the others are words
        elif offset == _RELOAD:
            self._ends = 0
            self._run(self._get(_TIMER) & _TICKS)
        elif offset == _TIMER:
            self._put(_TIMER, value & _TICKS)
        elif offset in _CLEARED:
            self._put(offset, self._get(offset) & ~(value & _CLEARED[offset]) & 0xFFFF)
        elif offset in _WRITABLE:
            before = self._get(offset)
            # Once locked, it stays so until the next reset.
            self._put(offset, value & _WRITABLE[offset] | (before & _LOCK if offset == _CONTROL1 else 0))
            if offset == _CONTROL1 and (before ^ value) & _HALTED:
                if value & _HALTED:
                    self._halt()
                else:
                    self._run(self._left)
