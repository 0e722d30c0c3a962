"""The clock of Android's Goldfish board, which RISC-V boards have: nanoseconds since the epoch, and an alarm."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.irq import Line
from qobra.machine.memory import Registers
from qobra.machine.qdev import SysBusDevice
from qobra.machine.vmstate import VmState, flag, i64, timer, u64
from qobra.object.property import Bool

_TIME_LOW, _TIME_HIGH, _ALARM_LOW, _ALARM_HIGH = 0x00, 0x04, 0x08, 0x0C
_IRQ_ENABLED, _CLEAR_ALARM, _ALARM_STATUS, _CLEAR_INTERRUPT = 0x10, 0x14, 0x18, 0x1C
_SECOND = 10**9


@registry.register("goldfish_rtc")
class GoldfishRtc(SysBusDevice):
    """Reading the low half of the time latches the high half."""

    type_name = "goldfish_rtc"
    architectures = frozenset(("riscv64",))

    big_endian = Bool(False)
    base = 0

    vmstate = VmState(
        i64("_offset"),
        u64("_high", "_alarm", "_alarm_high"),
        flag("_alarm_running", "_pending", "_enabled"),
        timer("_timer"),
    )

    def realize(self) -> None:
        self.irq = Line()
        self._timer = self.board.clock.timer(self._alarm_due)
        region = Registers("goldfish_rtc", 0x24, self._read, self._write, valid=(4, 4))
        self._mapping = self.board.memory.map(self.base, region)
        self._start()

    def _start(self) -> None:
        self._offset = self.board.rtc_base_ns() - self.board.clock.now_ns()
        self._high = 0
        self._alarm = self._alarm_high = 0
        self._alarm_running = self._pending = self._enabled = False

    def unrealize(self) -> None:
        self._timer.cancel()
        self._mapping.remove()

    def reset(self) -> None:
        self._timer.cancel()
        self._start()
        self._update()

    def _now(self) -> int:
        return int(self._offset + self.board.clock.now_ns())

    def _update(self) -> None:
        self.irq.set(1 if self._pending and self._enabled else 0)

    def _alarm_due(self) -> None:
        self._alarm_running = False
        self._pending = True
        self._update()

    def _set_alarm(self) -> None:
        if self._alarm <= self._now():
            self._timer.cancel()
            self._alarm_due()
        else:
            self._alarm_running = True
            self._timer.set(self._alarm - self._offset)

    def _read(self, offset: int, _width: int) -> int:
        if offset == _TIME_LOW:
            now = self._now()
            self._high = now >> 32
            return now & 0xFFFFFFFF
        known = {
            _TIME_HIGH: self._high,
            _ALARM_LOW: self._alarm & 0xFFFFFFFF,
            _ALARM_HIGH: self._alarm >> 32,
            _IRQ_ENABLED: int(self._enabled),
            _ALARM_STATUS: int(self._alarm_running),
        }
        return known.get(offset, 0)

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset in (_TIME_LOW, _TIME_HIGH):
            now = self._now()
            wanted = now & ~0xFFFFFFFF | value if offset == _TIME_LOW else now & 0xFFFFFFFF | value << 32
            self._offset += wanted - now
            offset = self._now() // _SECOND - self.board.rtc_base_ns() // _SECOND
            data = {"offset": offset, "qom-path": self.path()}
            self.machine.events.emit("RTC_CHANGE", data)
        elif offset == _ALARM_LOW:
            self._alarm = self._alarm_high << 32 | value
            self._set_alarm()
        elif offset == _ALARM_HIGH:
            self._alarm_high = value
        elif offset == _IRQ_ENABLED:
            self._enabled = bool(value & 1)
            self._update()
        elif offset == _CLEAR_ALARM:
            self._timer.cancel()
            self._alarm_running = False
        elif offset == _CLEAR_INTERRUPT:
            self._pending = False
            self._update()
