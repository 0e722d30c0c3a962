"""The timer of PCs: Intel 8254, three counters at 1.193182 MHz; the first interrupts."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.vclock import DeviceTimer
from qobra.machine.vmstate import Field, Maybe, Number, VmState, flag, i64, parts, timer, u8, u32
from qobra.object.property import Int

FREQUENCY = 1193182
_SECOND = 10**9


class Counter:
    """One counter: what was programmed, and when."""

    vmstate = VmState(
        Field("count", Number(4, minimum=1, maximum=0x10000)),
        Field("latched", Maybe(Number(4))),
        u8("latched_bytes", "access", "read_state", "write_state"),
        Field("status", Maybe(Number(1))),
        u8("mode", maximum=5),
        flag("bcd", "gate"),
        u32("write_latch"),
        i64("loaded_ns"),
    )

    def __init__(self) -> None:
        self.count = 0x10000
        self.latched: int | None = None
        self.latched_bytes = 0
        self.status: int | None = None
        self.access = 0
        """Which bytes the ports take: low, high, or both in turn; 0 before the first control word is low."""
        self.mode = 3
        self.bcd = False
        self.gate = True
        self.read_state = self.write_state = 0
        self.write_latch = 0
        self.loaded_ns = 0

    def ticks(self, now_ns: int) -> int:
        """Ticks since the counter was loaded."""
        return (now_ns - self.loaded_ns) * FREQUENCY // _SECOND

    def value(self, now_ns: int) -> int:
        """What the counter shows."""
        ticks = self.ticks(now_ns)
        if self.mode in (0, 1, 4, 5):
            return (self.count - ticks) & 0xFFFF
        if self.mode == 3:
            return self.count - 2 * ticks % self.count
        return self.count - ticks % self.count

    def output(self, now_ns: int) -> int:
        """The level of the output pin."""
        ticks = self.ticks(now_ns)
        if self.mode == 0:
            return int(ticks >= self.count)
        if self.mode == 1:
            return int(ticks < self.count)
        if self.mode == 2:
            return int(ticks % self.count == 0 and ticks != 0)
        if self.mode == 3:
            return int(ticks % self.count < (self.count + 1) // 2)
        return int(ticks == self.count)

    def next_change(self, now_ns: int) -> int | None:
        """When the output changes next, in nanoseconds, or None if it does not."""
        ticks = self.ticks(now_ns)
        if self.mode in (0, 1):
            at = self.count
            if ticks >= at:
                return None
        elif self.mode == 2:
            base = ticks // self.count * self.count
            at = base + 1 if ticks and ticks == base else base + self.count
        elif self.mode == 3:
            base, half = ticks // self.count * self.count, (self.count + 1) // 2
            at = base + half if ticks - base < half else base + self.count
        else:
            at = self.count if ticks < self.count else self.count + 1
            if ticks > self.count:
                return None
        # Rounded up, so that the tick has come by then.
        return self.loaded_ns + -(-at * _SECOND // FREQUENCY)


@registry.register("isa-pit")
class Pit(IsaDevice):
    """Three counters at ports 0x40 to 0x43."""

    type_name = "isa-pit"
    ancestors = {"pit-common": ()}
    pluggable = False

    iobase = Int(0xFFFFFFFF, type="uint32")

    vmstate = VmState(parts("counters"), timer("_timer"), flag("_interrupts"))

    def realize(self) -> None:
        self.map_ports(self.iobase, 4, self._read, self._write, name="pit")
        (self.output,) = self.add_outputs(1)
        self._timer: DeviceTimer = self.board.clock.timer(self._tick)
        self.counters = [Counter() for _ in range(3)]
        self._interrupts = True
        self.add_inputs(lambda _number, level: self.set_interrupts(bool(level)), 1)

    def unrealize(self) -> None:
        self._timer.cancel()
        super().unrealize()

    def reset(self) -> None:
        self._timer.cancel()
        now = self.board.clock.now_ns()
        self.counters = [Counter() for _ in range(3)]
        self.counters[2].gate = False
        self._interrupts = True
        for counter in self.counters:
            counter.loaded_ns = now
        self._arm()  # the output is not looked at before it changes

    def speaker_output(self) -> int:
        """The level of the third counter, which drives the speaker."""
        return self.counters[2].output(self.board.clock.now_ns())

    def set_interrupts(self, on: bool) -> None:
        """Let the first counter interrupt, or leave that to the timer that takes its place."""
        if on != self._interrupts:
            self._interrupts = on
            self._tick()

    def set_speaker_gate(self, gate: bool) -> None:
        """Let the third counter run."""
        counter = self.counters[2]
        if gate and not counter.gate and counter.mode in (1, 2, 3, 5):
            counter.loaded_ns = self.board.clock.now_ns()
        counter.gate = gate

    def _arm(self) -> None:
        deadline = self.counters[0].next_change(self.board.clock.now_ns())
        if deadline is None or not self._interrupts:
            self._timer.cancel()
        else:
            self._timer.set(deadline)

    def _tick(self) -> None:
        if self._interrupts:
            self.output.set(self.counters[0].output(self.board.clock.now_ns()))
        self._arm()

    def _write(self, offset: int, _width: int, value: int) -> None:
        now = self.board.clock.now_ns()
        if offset == 3:
            self._control(value, now)
            return
        counter = self.counters[offset]
        if counter.access < 2:
            self._load(offset, value, now)
        elif counter.access == 2:
            self._load(offset, value << 8, now)
        elif counter.write_state == 0:
            counter.write_latch = value
            counter.write_state = 1
        else:
            counter.write_state = 0
            self._load(offset, counter.write_latch | value << 8, now)

    def _control(self, value: int, now: int) -> None:
        number = value >> 6
        if number == 3:
            for i, counter in enumerate(self.counters):
                if value & 2 << i:
                    if not value & 0x20:
                        self._latch(counter, now)
                    if not value & 0x10 and counter.status is None:
                        counter.status = (
                            counter.output(now) << 7 | counter.access << 4 | counter.mode << 1 | int(counter.bcd)
                        )
            return
        counter = self.counters[number]
        access = value >> 4 & 3
        if access == 0:
            self._latch(counter, now)
            return
        counter.access = access
        counter.read_state = counter.write_state = 0
        mode = value >> 1 & 7
        counter.mode = mode - 4 if mode > 5 else mode
        counter.bcd = bool(value & 1)
        if number == 0:
            self._tick()

    def _latch(self, counter: Counter, now: int) -> None:
        if counter.latched is None and counter.access:
            counter.latched = counter.value(now)
            counter.latched_bytes = 2 if counter.access == 3 else 1

    def _load(self, number: int, value: int, now: int) -> None:
        counter = self.counters[number]
        counter.count = value or 0x10000
        counter.loaded_ns = now
        if number == 0:
            self._tick()

    def _read(self, offset: int, _width: int) -> int:
        if offset == 3:
            return 0
        counter = self.counters[offset]
        if counter.status is not None:
            status, counter.status = counter.status, None
            return status
        if counter.latched is not None:
            value = counter.latched
            if counter.access == 2 or (counter.latched_bytes == 1 and counter.access == 3):
                value >>= 8
            counter.latched_bytes -= 1
            if counter.latched_bytes <= 0:
                counter.latched = None
            return value & 0xFF
        value = counter.value(self.board.clock.now_ns())
        if counter.access < 2:
            return value & 0xFF
        if counter.access == 2:
            return value >> 8 & 0xFF
        counter.read_state ^= 1
        return value & 0xFF if counter.read_state else value >> 8 & 0xFF
