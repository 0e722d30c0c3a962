"""The clock and CMOS memory of PCs: Motorola MC146818."""

from __future__ import annotations

import time

from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.vmstate import Field, Maybe, Number, VmState, i64, raw, timer, u8
from qobra.object.property import Enum, Int, Property

_SECOND = 10**9
_SECONDS, _SECONDS_ALARM, _MINUTES, _MINUTES_ALARM, _HOURS, _HOURS_ALARM = range(6)
_DAY_OF_WEEK, _DAY, _MONTH, _YEAR = 6, 7, 8, 9
_A, _B, _C, _D = 10, 11, 12, 13
_CENTURY = 0x32
_UIP = 0x80
_B_SET, _B_PIE, _B_AIE, _B_UIE, _B_BINARY, _B_24H = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
_C_IRQ, _C_PF, _C_AF, _C_UF = 0x80, 0x40, 0x20, 0x10
_UPDATE_NS = 8 * _SECOND // 32768  # how long before the second the update-in-progress bit rises
_DIVIDER_RUNNING = 0x20
_ANY = 0xC0
_WRAP = 1 << 64  # nanoseconds: from the year 1677 to 2262
_MADE_UP_AT_ONCE = 20  # ticks that come at acknowledgements between two that come by time


def _days(year: int, month: int, day: int) -> int:
    # Days since the epoch of a date that need not be one. Years begin with March, so that leap days come last.
    year, month = (year - 1, month + 9) if month < 3 else (year, month - 3)
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 719469


def _signed(ns: int) -> int:
    return (ns + _WRAP // 2) % _WRAP - _WRAP // 2


@registry.register("mc146818rtc")
class Rtc(IsaDevice):
    """Index at port 0x70, data at 0x71. The time follows the host's or the guest's clock, as ``-rtc`` says."""

    type_name = "mc146818rtc"
    interfaces = ("acpi-dev-aml-interface",)
    pluggable = False

    base_year = Int(1980, type="int32", name="base_year")
    iobase = Int(0x70, type="uint16")
    irq = Int(8, type="uint8")
    lost_tick_policy = Enum("LostTickPolicy", ("discard", "delay", "merge", "slew"), "discard", name="lost_tick_policy")
    date = Property("struct tm", None, get=lambda self: self.date_info(), writable=False, show_default=False)

    vmstate = VmState(
        raw("cmos"),
        u8("_index", maximum=127),
        i64("_base_ns", "_host_difference", "_lost_ticks"),
        Field("_frozen", Maybe(Number(8, signed=True))),
        timer("_update_timer", "_periodic_timer"),
    )

    def realize(self) -> None:
        self.map_ports(self.iobase, 2, self._read, self._write, name="rtc")
        self.output = self.line(self.irq)
        self.add_outputs(1)[0].connect(self.output)
        self.cmos = bytearray(128)
        self.cmos[_A] = 0x26
        self.cmos[_B] = _B_24H
        self.cmos[_D] = 0x80
        self._index = 0
        now = self.board.rtc_base_ns()
        self._base_ns = now - self.board.clock.now_ns()
        self._host_difference = now - int(self.machine.clock.time_ns())
        self._frozen: int | None = None
        self._update_timer = self.board.clock.timer(self._second_passed)
        self._periodic_timer = self.board.clock.timer(self._period_passed)
        self._lost_ticks = self._made_up = 0
        self._show_time()
        self._uses_update_timer()

    def unrealize(self) -> None:
        self._update_timer.cancel()
        self._periodic_timer.cancel()
        super().unrealize()

    def reset(self) -> None:
        self.cmos[_B] &= ~(_B_PIE | _B_AIE | 0x08)
        self.cmos[_C] &= ~(_C_UF | _C_IRQ | _C_PF | _C_AF)
        self._periodic_timer.cancel()
        self._lost_ticks = 0
        self._uses_update_timer()
        self.output.set(0)

    # -- time

    def _now_ns(self) -> int:
        # Whole nanoseconds since the epoch, on the guest's idea of it, as a counter of 64 bits has them.
        if self._frozen is not None:
            now = self._frozen
        elif self.board.rtc_host and not self.board.clock.driven:
            now = int(self.machine.clock.time_ns()) + self._host_difference
        else:
            now = self._base_ns + self.board.clock.now_ns()
        return _signed(now)

    def _now_seconds(self) -> int:
        # Whole seconds on this side of the epoch.
        now = self._now_ns()
        return now // _SECOND if now >= 0 else -(-now // _SECOND)

    def _set_now(self, ns: int) -> None:
        difference = ns - self._now_ns()
        self._base_ns = _signed(self._base_ns + difference)
        self._host_difference = _signed(self._host_difference + difference)

    def date_info(self) -> dict[str, int]:
        """The guest's time, broken down as C does."""
        now = time.gmtime(self._now_seconds())
        return {
            "tm_year": now.tm_year - 1900,
            "tm_mon": now.tm_mon - 1,
            "tm_mday": now.tm_mday,
            "tm_hour": now.tm_hour,
            "tm_min": now.tm_min,
            "tm_sec": now.tm_sec,
        }

    def _show_time(self) -> None:
        if self.cmos[_B] & _B_SET or self._stopped:
            return
        now = time.gmtime(self._now_seconds())
        hour = now.tm_hour
        if not self.cmos[_B] & _B_24H:
            half = self._encode(hour % 12 or 12)
            self.cmos[_HOURS] = half | (0x80 if hour >= 12 else 0)
        else:
            self.cmos[_HOURS] = self._encode(hour)
        self.cmos[_SECONDS] = self._encode(now.tm_sec)
        self.cmos[_MINUTES] = self._encode(now.tm_min)
        self.cmos[_DAY_OF_WEEK] = self._encode((now.tm_wday + 1) % 7 + 1)
        self.cmos[_DAY] = self._encode(now.tm_mday)
        self.cmos[_MONTH] = self._encode(now.tm_mon)
        year = now.tm_year - self.base_year
        self.cmos[_YEAR] = self._encode(year % 100)
        self.cmos[_CENTURY] = self._encode(year // 100)

    def _take_time(self) -> None:
        # The registers become the time; what no clock shows carries over into the next unit.
        day = _days(
            self._decode(self.cmos[_YEAR]) + self.base_year + self._decode(self.cmos[_CENTURY]) * 100,
            self._decode(self.cmos[_MONTH]),
            self._decode(self.cmos[_DAY]),
        )
        hour = 24 * day + self._decode_hour(self.cmos[_HOURS])
        minute = 60 * hour + self._decode(self.cmos[_MINUTES])
        self._set_now((60 * minute + self._decode(self.cmos[_SECONDS])) * _SECOND)
        # Whole seconds of both: the date that was set has no fraction yet.
        offset = self._now_seconds() - self.board.rtc_base_ns() // _SECOND
        self.machine.events.emit("RTC_CHANGE", {"offset": offset, "qom-path": self.path()})

    @property
    def _stopped(self) -> bool:
        return self.cmos[_A] & 0x70 > 0x20 or self._frozen is not None

    def _encode(self, value: int) -> int:
        return value if self.cmos[_B] & _B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        if value & _ANY == _ANY:
            return -1
        return value if self.cmos[_B] & _B_BINARY else (value >> 4) * 10 + (value & 0x0F)

    def _decode_hour(self, value: int) -> int:
        hour = self._decode(value & 0x7F)
        if self.cmos[_B] & _B_24H:
            return hour
        return hour % 12 + (12 if value & 0x80 else 0)

    # -- interrupts

    def _raise(self, flag: int, enable: int) -> None:
        self.cmos[_C] |= flag
        if self.cmos[_B] & enable:
            self.cmos[_C] |= _C_IRQ
            self.output.set(1)

    def _uses_update_timer(self) -> None:
        # The next second matters only while someone would hear of it.
        if self.cmos[_B] & _B_SET or (self.cmos[_C] & _C_UF and self.cmos[_C] & _C_AF):
            self._update_timer.cancel()
            return
        now = self._now_ns()
        self._update_timer.set(self.board.clock.now_ns() + _SECOND - now % _SECOND)

    def _second_passed(self) -> None:
        self._show_time()
        self._raise(_C_UF, _B_UIE)
        alarm = (self.cmos[_SECONDS_ALARM], self.cmos[_MINUTES_ALARM], self.cmos[_HOURS_ALARM])
        here = (self.cmos[_SECONDS], self.cmos[_MINUTES], self.cmos[_HOURS])
        if all(a & _ANY == _ANY or a == h for a, h in zip(alarm, here, strict=True)):
            self._raise(_C_AF, _B_AIE)
        self._uses_update_timer()

    def _period_ns(self) -> int | None:
        rate = self.cmos[_A] & 0x0F
        if not rate or not self.cmos[_B] & _B_PIE:
            return None
        if rate <= 2:
            rate += 7
        return (1 << (rate - 1)) * _SECOND // 32768

    def _last_period_ns(self) -> int:
        # When the running period began; now if there is none.
        period, deadline = self._period_ns(), self._periodic_timer.deadline_ns
        return self.board.clock.now_ns() if period is None or deadline is None else deadline - period

    def _arm_periodic(self, start_ns: int) -> None:
        # A period that is changed goes on from where the old one began.
        period = self._period_ns()
        if period is None:
            self._lost_ticks = 0
            self._periodic_timer.cancel()
        else:
            self._periodic_timer.set(max(start_ns + period, self.board.clock.now_ns()))

    def _period_passed(self) -> None:
        self._arm_periodic(self.board.clock.now_ns())
        self._made_up = 0
        if self.lost_tick_policy == "slew" and self.cmos[_C] & _C_PF:
            self._lost_ticks += 1  # nobody has taken the one before
        self._raise(_C_PF, _B_PIE)

    def _make_up(self) -> None:
        # A guest that counts ticks gets those that it lost when it is ready for more.
        if self._lost_ticks and self._made_up < _MADE_UP_AT_ONCE:
            self._lost_ticks -= 1
            self._made_up += 1
            self._raise(_C_PF, _B_PIE)

    # -- registers

    def _read(self, offset: int, _width: int) -> int:
        if offset == 0:
            return 0xFF
        index = self._index
        if index <= _YEAR or index in (_CENTURY, 0x37):
            self._show_time()
            if index == 0x37:
                index = _CENTURY
        elif index == _A:
            left = _SECOND - self._now_ns() % _SECOND
            updating = not self.cmos[_B] & _B_SET and not self._stopped and left <= _UPDATE_NS
            return self.cmos[_A] & ~_UIP | (_UIP if updating else 0)
        elif index == _C:
            value = self.cmos[_C]
            self.output.set(0)
            self.cmos[_C] = 0
            if value & (_C_UF | _C_AF):
                self._uses_update_timer()
            self._make_up()
            return value
        return self.cmos[index]

    def _write(self, offset: int, _width: int, value: int) -> None:
        value &= 0xFF
        if offset == 0:
            self._index = value & 0x7F
            return
        index = _CENTURY if self._index == 0x37 else self._index
        if index in (_SECONDS_ALARM, _MINUTES_ALARM, _HOURS_ALARM):
            self.cmos[index] = value
            self._uses_update_timer()
        elif index <= _YEAR or index == _CENTURY:
            if index <= _YEAR:
                self._show_time()
            self.cmos[index] = value
            if not self.cmos[_B] & _B_SET and not self._stopped:
                self._take_time()
                self._uses_update_timer()
        elif index == _A:
            self._write_a(value)
        elif index == _B:
            self._write_b(value)
        elif index not in (_C, _D):
            self.cmos[index] = value

    def _write_a(self, value: int) -> None:
        start_ns = self._last_period_ns()
        running = self.cmos[_A] & 0x60 != 0x60
        if value & 0x60 == 0x60 and running:
            self._show_time()
            self._frozen = self._now_ns()
        elif self._frozen is not None and value & 0x70 <= _DIVIDER_RUNNING:
            # The first second after the divider starts is half a second away.
            self._frozen = None
            self._take_time()
            self._set_now(self._now_ns() // _SECOND * _SECOND + _SECOND // 2)
        self.cmos[_A] = value & ~_UIP | self.cmos[_A] & _UIP
        self._uses_update_timer()
        self._arm_periodic(start_ns)

    def _write_b(self, value: int) -> None:
        start_ns = self._last_period_ns()
        old = self.cmos[_B]
        if value & _B_SET:
            self._show_time()
            self.cmos[_A] &= ~_UIP
            value &= ~_B_UIE
        elif old & _B_SET and not self._stopped:
            self._take_time()  # in the form that it had so far
        # An event that is there already interrupts when it is enabled.
        if value & self.cmos[_C] & (_C_PF | _C_AF | _C_UF):
            self.cmos[_C] |= _C_IRQ
            self.output.set(1)
        else:
            self.cmos[_C] &= ~_C_IRQ
            self.output.set(0)
        self.cmos[_B] = value
        self._uses_update_timer()
        self._arm_periodic(start_ns)
