"""The high precision event timer of PCs: a counter of 64 bits and three comparators (IA-PC HPET specification 1.0a)."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.irq import Line
from qobra.machine.memory import Mapping, Registers
from qobra.machine.qdev import SysBusDevice
from qobra.machine.vmstate import VmState, flag, i64, parts, timer, u8, u64
from qobra.object.property import Bool, Int

BASE, SIZE = 0xFED00000, 0x400
LEGACY_TIMER, LEGACY_CLOCK = 0, 1
"""The inputs for what the timer takes the place of: the PIT and the real-time clock."""
TICK_NS = 10
_ALL, _LOW, _HIGH = (1 << 64) - 1, 0xFFFFFFFF, 0xFFFFFFFF00000000
_CAPABILITIES, _PERIOD, _CONFIGURATION, _STATUS, _COUNTER = 0x00, 0x04, 0x10, 0x20, 0xF0
_REVISION, _WIDE, _LEGACY_CAPABLE, _VENDOR = 0x01, 1 << 13, 1 << 15, 0x8086 << 16
_ENABLE, _LEGACY = 0x01, 0x02
_TIMERS, _STRIDE = 0x100, 0x20
_LEVEL, _INTERRUPT, _PERIODIC, _CAN_REPEAT, _IS_WIDE, _SET_VALUE, _NARROW = 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x100
_MESSAGE, _CAN_MESSAGE, _WRITABLE = 0x4000, 0x8000, 0x7F4E
_MIN_TIMERS, _MAX_TIMERS = 3, 32
_FASTEST_TICKS = 1000
"""How often a timer starts over at most, that no guest may keep the host busy."""


class Comparator:
    """One timer: it interrupts when the counter reaches ``comparator``, and every ``period`` ticks from then on."""

    vmstate = VmState(u64("configuration", "comparator", "message", "period"), flag("_wraps"), timer("_timer"))

    def __init__(self, owner: Hpet, number: int) -> None:
        self._owner = owner
        self.number = number
        self._timer = owner.board.clock.timer(self._expired)
        self.configuration = 0
        self.comparator = self.message = self.period = 0
        self._wraps = False

    def reset(self) -> None:
        """As after power-on; where messages go is kept."""
        self.stop()
        self.comparator, self.period, self._wraps = _ALL, 0, False
        self.configuration = _CAN_REPEAT | _IS_WIDE | (_CAN_MESSAGE if self._owner.msi else 0)
        self.configuration |= self._owner.hpet_intcap << 32

    def stop(self) -> None:
        """Interrupt no more."""
        self._timer.cancel()
        self._owner.interrupt(self, False)

    def close(self) -> None:
        """The machine ends."""
        self._timer.cancel()

    @property
    def _narrow(self) -> bool:
        return bool(self.configuration & _NARROW)

    @property
    def enabled(self) -> bool:
        """Whether the timer may interrupt."""
        return bool(self.configuration & _INTERRUPT)

    @property
    def repeats(self) -> bool:
        """Whether the timer starts over by itself."""
        return bool(self.configuration & _PERIODIC)

    @property
    def sends_messages(self) -> bool:
        """Whether an interrupt is a write to memory."""
        return bool(self.configuration & _MESSAGE)

    def start(self) -> None:
        """Wait for the counter to reach the comparator; one of 32 bits that does not repeat interrupts at wraps too."""
        counter = self._owner.counter()
        self._wraps = False
        ticks = self._distance(counter)
        if self._narrow and not self.repeats:
            wrap = (1 << 32) - (counter & _LOW)
            if wrap < ticks:
                ticks, self._wraps = wrap, True
        self._arm(ticks)

    def _distance(self, counter: int) -> int:
        # Ticks to the comparator; one that was passed lately is due now.
        width = 32 if self._narrow else 64
        ticks = (self.comparator - counter) % (1 << width)
        if ticks < 1 << (width - 1):
            return ticks
        return 1 if self._narrow else 0

    def _arm(self, ticks: int) -> None:
        self._timer.set(self._owner.board.clock.now_ns() + ticks * TICK_NS)

    def _expired(self) -> None:
        counter = self._owner.counter()
        if self.repeats and self.period:
            # As many periods on as have passed.
            width = 32 if self._narrow else 64
            behind = (counter - self.comparator) % (1 << width)
            if behind < 1 << (width - 1):
                self.comparator += (behind // self.period + 1) * self.period
                self.comparator %= 1 << width
            self._arm(max(self._distance(counter), _FASTEST_TICKS))
        elif self._wraps:
            self._wraps = False
            self._arm((self.comparator - counter) & _LOW)
        self._owner.interrupt(self, True)

    def read(self, offset: int) -> int:
        """A register of four bytes."""
        value = {0x00: self.configuration, 0x08: self.comparator, 0x10: self.message}.get(offset & ~4, 0)
        return value >> (32 if offset & 4 else 0) & _LOW

    def write(self, offset: int, value: int) -> None:
        """Write a register of four bytes."""
        if offset == 0x00:
            self._configure(value)
        elif offset == 0x08:
            self._compare(value, high=False)
        elif offset == 0x0C:
            self._compare(value, high=True)
        elif offset == 0x10:
            self.message = self.message & _HIGH | value
        elif offset == 0x14:
            self.message = self.message & _LOW | value << 32

    def _configure(self, value: int) -> None:
        old = self.configuration
        if value & ~old & _MESSAGE:
            self._owner.interrupt(self, False)
        self.configuration = old & ~_WRITABLE | value & _WRITABLE
        if self._narrow:
            self.comparator &= _LOW
            self.period &= _LOW
        if self.configuration & ~old & _INTERRUPT and self._owner.running:
            self.start()
        elif old & ~self.configuration & _INTERRUPT:
            self.stop()

    def _compare(self, value: int, *, high: bool) -> None:
        keep, shift = (_LOW, 32) if high else (_HIGH, 0)
        if not self.repeats or self.configuration & _SET_VALUE:
            self.comparator = self.comparator & keep | value << shift
        if self.repeats:
            # A period is less than half of what the counter can tell.
            most = _LOW >> 1 if high or self._narrow else _LOW
            self.period = self.period & keep | (value & most) << shift
        self.configuration &= ~_SET_VALUE
        if self._owner.running:
            self.start()


@registry.register("hpet")
class Hpet(SysBusDevice):
    """The registers at 0xfed00000. In legacy mode, the first two timers have the lines of the PIT and the clock."""

    type_name = "hpet"
    architectures = frozenset(("x86_64",))

    timers = Int(_MIN_TIMERS, type="uint8")
    msi = Bool(False, description="on/off")
    hpet_intcap = Int(0, type="uint32", name="hpet-intcap")
    hpet_offset_saved = Bool(True, name="hpet-offset-saved")

    vmstate = VmState(
        u64("_configuration", "_status", "_counter"),
        i64("_offset"),
        u8("_clock_level", maximum=1),
        parts("_comparators"),
    )

    def realize(self) -> None:
        if not self.hpet_intcap:
            raise QobraError("Hpet.hpet_intcap not initialized")
        self.timers = min(max(self.timers, _MIN_TIMERS), _MAX_TIMERS)
        self.add_inputs(self._legacy_input, 2)
        (self.legacy_off,) = self.add_outputs(1)
        self.lines: list[Line] = self.add_outputs(32, "sysbus-irq")
        self._configuration = self._status = self._offset = self._clock_level = 0
        self._counter = 0
        self._comparators = [Comparator(self, number) for number in range(self.timers)]
        registers = Registers("hpet", SIZE, self._read, self._write, valid=(4, 4), impl=(4, 4))
        self._mapping: Mapping = self.board.memory.map(BASE, registers)

    def unrealize(self) -> None:
        for comparator in self._comparators:
            comparator.close()
        self._mapping.remove()

    def reset(self) -> None:
        for comparator in self._comparators:
            comparator.reset()
        self.legacy_off.set(1)
        self._configuration = self._status = self._counter = self._offset = self._clock_level = 0

    @property
    def block_id(self) -> int:
        """The capabilities, by which firmware and tables name the hardware."""
        timers: int = self.timers
        return _REVISION | _WIDE | _LEGACY_CAPABLE | _VENDOR | (timers - 1) << 8

    @property
    def running(self) -> bool:
        """Whether the counter counts."""
        return bool(self._configuration & _ENABLE)

    @property
    def _legacy(self) -> bool:
        return bool(self._configuration & _LEGACY)

    def counter(self) -> int:
        """The counter's value."""
        if not self.running:
            return self._counter
        now: int = self.board.clock.now_ns() + self._offset
        return (now & _ALL) // TICK_NS

    # -- interrupts

    def interrupt(self, comparator: Comparator, level: bool) -> None:
        """A timer has run out, or its interrupt was seen to."""
        mask = 1 << comparator.number
        line = self._line_of(comparator)
        if not level or not comparator.enabled or not self.running:
            self._status &= ~mask
            if not comparator.sends_messages:
                line.set(0)
        elif comparator.sends_messages:
            self.board.memory.store(comparator.message >> 32, 4, comparator.message & _LOW)
        elif comparator.configuration & _LEVEL:
            self._status |= mask
            line.set(1)
        else:
            self._status &= ~mask
            line.pulse()

    def _line_of(self, comparator: Comparator) -> Line:
        if self._legacy and comparator.number <= 1:
            return self.lines[(0, 8)[comparator.number]]
        return self.lines[comparator.configuration >> 9 & 0x1F]

    def _legacy_input(self, number: int, level: int) -> None:
        if number == LEGACY_CLOCK:
            self._clock_level = int(bool(level))
        if not self._legacy:
            self.lines[(0, 8)[number]].set(level)

    # -- registers

    def _comparator(self, offset: int) -> Comparator | None:
        number = (offset - _TIMERS) // _STRIDE
        return self._comparators[number] if number < self.timers else None

    def _read(self, offset: int, _width: int) -> int:
        if offset >= _TIMERS:
            comparator = self._comparator(offset)
            return comparator.read(offset % _STRIDE) if comparator is not None else 0
        value = {
            _CAPABILITIES: lambda: self.block_id | TICK_NS * 10**6 << 32,
            _CONFIGURATION: lambda: self._configuration,
            _STATUS: lambda: self._status,
            _COUNTER: self.counter,
        }.get(offset & ~4, int)()
        return value >> (32 if offset & 4 else 0) & _LOW

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset >= _TIMERS:
            comparator = self._comparator(offset)
            if comparator is not None:
                comparator.write(offset % _STRIDE, value)
        elif offset == _CONFIGURATION:
            self._configure(value & (_ENABLE | _LEGACY))
        elif offset == _STATUS:
            for comparator in self._comparators:
                if value & self._status & 1 << comparator.number:
                    self.interrupt(comparator, False)
        elif offset == _COUNTER:
            self._counter = self._counter & _HIGH | value
        elif offset == _COUNTER + 4:
            self._counter = self._counter & _LOW | value << 32

    def _configure(self, value: int) -> None:
        old, counter = self._configuration, self.counter()
        self._configuration = value
        if value & ~old & _ENABLE:
            self._offset = counter * TICK_NS - self.board.clock.now_ns()
            for comparator in self._comparators:
                if comparator.enabled and comparator.comparator != _ALL:
                    comparator.start()
        elif old & ~value & _ENABLE:
            self._counter = counter
            for comparator in self._comparators:
                comparator.stop()
        if value & ~old & _LEGACY:
            self.legacy_off.set(0)
            self.lines[0].set(0)
            self.lines[8].set(0)
        elif old & ~value & _LEGACY:
            self.lines[0].set(0)
            self.legacy_off.set(1)
            self.lines[8].set(self._clock_level)
