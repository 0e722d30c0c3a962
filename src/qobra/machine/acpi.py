"""The fixed registers of ACPI (specification 6.4, section 4.8): events, control, timer, general-purpose events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.irq import Line
from qobra.machine.memory import Registers
from qobra.machine.qdev import Device
from qobra.machine.vmstate import VmState, raw, timer, u16, u64
from qobra.object.property import Int

if TYPE_CHECKING:
    from qobra.machine.board import Board

TIMER_FREQUENCY = 3579545
_SECOND = 10**9
_TIMER, _BUS_MASTER, _GLOBAL_LOCK, _POWER_BUTTON, _RTC, _WAKE = 1 << 0, 1 << 4, 1 << 5, 1 << 8, 1 << 10, 1 << 15
_SCI_ENABLE, _SLEEP_ENABLE = 1 << 0, 1 << 13
_S3, _S4 = 1, 2


class SleepStates(Device):
    """What a device with the ACPI registers is told of sleep: what guests are not to know, how S4 is written."""

    abstract = True

    disable_s3 = Int(0, type="uint8", name="disable_s3")
    disable_s4 = Int(0, type="uint8", name="disable_s4")
    s4_val = Int(_S4, type="uint8", name="s4_val")

    def sleep_kinds(self) -> dict[int, int]:
        """What a guest writes to go to sleep, by the state (3: to memory, 4: to disk, 5: off)."""
        kinds = {} if self.disable_s3 else {3: _S3}
        return kinds | ({} if self.disable_s4 else {4: self.s4_val}) | {5: 0}

    def sleep_bits(self) -> bytes:
        """The same for the firmware: of each state, whether it is there, and how it is written."""
        s3, s4 = (0 if off else 0x80 for off in (self.disable_s3, self.disable_s4))
        return bytes((0x80, 0, 0, s3 | _S3, s4 | self.s4_val & 0x7F, 0x80))


class AcpiRegisters:
    """PM1 event and control blocks, the power management timer, and one block of general-purpose events.

    ``sci`` is the system control interrupt.
    """

    vmstate = VmState(
        raw("gpe_status", "gpe_enable"),
        u16("status", "enable", "control"),
        u64("_overflow_seen"),
        timer("_overflow"),
    )

    def __init__(self, board: Board, sci: Line, gpe_length: int, *, to_disk: int = _S4) -> None:
        self._to_disk = to_disk
        self._board = board
        self._sci = sci
        self._overflow = board.clock.timer(self._timer_overflow)
        self.gpe_status = bytearray(gpe_length // 2)
        self.gpe_enable = bytearray(gpe_length // 2)
        self.status = self.enable = self.control = 0
        self.events = Registers("acpi-evt", 4, self._read_events, self._write_events, valid=(1, 2), impl=(1, 2))
        self.controls = Registers("acpi-cnt", 2, self._read_control, self._write_control, valid=(1, 2), impl=(2, 2))
        self.timer = Registers("acpi-tmr", 4, self._read_timer, lambda _o, _w, _v: None, valid=(1, 4), impl=(4, 4))
        self.general = Registers("acpi-gpe0", gpe_length, self._read_gpe, self._write_gpe, valid=(1, 8), impl=(1, 1))
        board.machine.run_state.on_powerdown(self._power_button)
        board.machine.run_state.on_wakeup(self._woken)

    def reset(self) -> None:
        """As after power-on."""
        self.status = self.enable = self.control = 0
        self.gpe_status[:] = bytes(len(self.gpe_status))
        self.gpe_enable[:] = bytes(len(self.gpe_enable))
        self._overflow.cancel()
        self.update()

    def close(self) -> None:
        """Stop the timer."""
        self._overflow.cancel()

    def raise_gpe(self, number: int) -> None:
        """A general-purpose event happened."""
        self.gpe_status[number // 8] |= 1 << number % 8
        self.update()

    def set_sci_enabled(self, enabled: bool) -> None:
        """Firmware hands events over to the operating system, or takes them back."""
        self.control = self.control & ~_SCI_ENABLE | (_SCI_ENABLE if enabled else 0)
        self.update()

    def update(self) -> None:
        """Drive the interrupt: any enabled event that has happened."""
        fixed = self._status_now() & self.enable & (_RTC | _POWER_BUTTON | _GLOBAL_LOCK | _TIMER)
        general = any(s & e for s, e in zip(self.gpe_status, self.gpe_enable, strict=True))
        self._sci.set(1 if fixed or general else 0)
        if self.enable & _TIMER and not self._status_now() & _TIMER:
            self._overflow.set(self._next_overflow_ns())
        else:
            self._overflow.cancel()

    # -- events

    def _ticks(self) -> int:
        return self._board.clock.now_ns() * TIMER_FREQUENCY // _SECOND

    def _next_overflow_ns(self) -> int:
        ticks = (self._ticks() & ~0x7FFFFF) + 0x800000
        return -(-ticks * _SECOND // TIMER_FREQUENCY)

    _overflow_seen = 0

    def _status_now(self) -> int:
        if self._ticks() >> 23 != self._overflow_seen:
            return self.status | _TIMER
        return self.status

    def _timer_overflow(self) -> None:
        self.update()

    def _power_button(self) -> None:
        if self.enable & _POWER_BUTTON:
            self.status |= _POWER_BUTTON
            self.update()

    def _woken(self, reason: str) -> None:
        self.status |= _WAKE
        if reason == "rtc":
            self.status |= _RTC
        self.update()

    def _read_events(self, offset: int, width: int) -> int:
        value = self._status_now() | self.enable << 16
        return value >> 8 * offset

    def _write_events(self, offset: int, width: int, value: int) -> None:
        if offset == 0:
            if value & _TIMER:
                self._overflow_seen = self._ticks() >> 23
            self.status &= ~value
        elif offset == 2:
            self.enable = value & 0xFFFF
        self.update()

    def _read_control(self, _offset: int, _width: int) -> int:
        return self.control

    def _write_control(self, _offset: int, _width: int, value: int) -> None:
        self.control = value & ~_SLEEP_ENABLE & 0xFFFF
        if not value & _SLEEP_ENABLE:
            return
        state = self._board.machine.run_state
        kind = value >> 10 & 7
        if kind == 0:
            state.request_shutdown("guest-shutdown")
        elif kind == _S3:
            state.request_suspend()
        elif kind == self._to_disk:
            self._board.machine.events.emit("SUSPEND_DISK")
            state.request_shutdown("guest-shutdown")

    def _read_timer(self, _offset: int, _width: int) -> int:
        return self._ticks() & 0xFFFFFF

    def _read_gpe(self, offset: int, _width: int) -> int:
        half = len(self.gpe_status)
        return self.gpe_status[offset] if offset < half else self.gpe_enable[offset - half]

    def _write_gpe(self, offset: int, _width: int, value: int) -> None:
        half = len(self.gpe_status)
        if offset < half:
            self.gpe_status[offset] &= ~value & 0xFF
        else:
            self.gpe_enable[offset - half] = value & 0xFF
        self.update()
