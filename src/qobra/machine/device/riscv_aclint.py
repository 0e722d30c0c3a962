"""The core-local interruptor of RISC-V boards: software interrupts and the timer of each hart (RISC-V ACLINT 1.0)."""

from __future__ import annotations

from typing import Any

from qobra.machine.devices import registry
from qobra.machine.irq import Line
from qobra.machine.memory import Registers
from qobra.machine.qdev import SysBusDevice
from qobra.machine.vclock import DeviceTimer
from qobra.machine.vmstate import Field, Number, Timers, VmState, listed
from qobra.object.property import Int

SUPERVISOR_SOFTWARE, SOFTWARE, TIMER = 1, 3, 7
SWI_SIZE = 0x4000
_SECOND = 10**9
MTIME, TIMER_SIZE = 0x7FF8, 0x8000
"""The counter comes after the comparators of as many harts as there may be."""


@registry.register("riscv.aclint.swi")
class AclintSwi(SysBusDevice):
    """Software interrupts: a word for each hart from ``hartid_base`` on, whose lowest bit is the line.

    Those for supervisors (``sswi``) only ask: the hart itself takes the interrupt back, and the words read as zero.
    """

    type_name = "riscv.aclint.swi"
    architectures = frozenset(("riscv64",))

    hartid_base = Int(0, type="uint32")
    num_harts = Int(1, type="uint32")
    sswi = Int(0, type="uint32")
    base = 0

    vmstate = VmState(listed("_levels", kind=Number(1, maximum=1)))

    def realize(self) -> None:
        self._levels = [0] * self.num_harts
        region = Registers("riscv.aclint.swi", SWI_SIZE, self._read, self._write, valid=(4, 4))
        self._mapping = self.board.memory.map(self.base, region)

    def unrealize(self) -> None:
        self._mapping.remove()

    def reset(self) -> None:
        if not self.sswi:
            for number in range(len(self._levels)):
                self._set(number, 0)

    def _read(self, offset: int, _width: int) -> int:
        number = offset // 4
        return self._levels[number] if number < len(self._levels) else 0

    def _write(self, offset: int, _width: int, value: int) -> None:
        number = offset // 4
        if number >= len(self._levels):
            return
        if not self.sswi:
            self._set(number, value & 1)
        elif value & 1:
            self._input(number, SUPERVISOR_SOFTWARE).set(1)

    def _set(self, number: int, level: int) -> None:
        self._levels[number] = level
        self._input(number, SOFTWARE).set(level)

    def _input(self, number: int, kind: int) -> Line:
        line: Line = self.board.cpus[self.hartid_base + number].gpio_in[None][kind]
        return line


@registry.register("riscv.aclint.mtimer")
class AclintTimer(SysBusDevice):
    """The machine timer: one counter for all, a comparator for each hart from ``hartid_base`` on."""

    type_name = "riscv.aclint.mtimer"
    architectures = frozenset(("riscv64",))

    hartid_base = Int(0, type="uint32")
    num_harts = Int(1, type="uint32")
    timecmp_base = Int(0, type="uint32")
    time_base = Int(MTIME, type="uint32")
    aperture_size = Int(TIMER_SIZE, type="uint32")
    timebase_freq = Int(0, type="uint32")
    base = 0

    vmstate = VmState(
        listed("_compare", kind=Number(8)), Field("_delta", Number(16, signed=True)), Field("_timers", Timers())
    )

    def realize(self) -> None:
        self._compare = [0] * self.num_harts
        self._delta = 0
        clock = self.board.clock
        self._timers: list[DeviceTimer] = [clock.timer(self._expire(n)) for n in range(self.num_harts)]
        region = Registers(
            "riscv.aclint.mtimer", self.aperture_size, self._read, self._write, valid=(4, 8), impl=(4, 8)
        )
        self._mapping = self.board.memory.map(self.base, region)

    def unrealize(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._mapping.remove()

    def reset(self) -> None:
        self._delta = -self._raw_ticks()
        for number in range(len(self._compare)):
            self._set_compare(number, 0)  # which is over at once

    def _expire(self, number: int) -> Any:
        return lambda: self._drive(number, 1)

    def _drive(self, number: int, level: int) -> None:
        self.board.cpus[self.hartid_base + number].gpio_in[None][TIMER].set(level)

    def _raw_ticks(self) -> int:
        return int(self.board.clock.now_ns() * self.timebase_freq // _SECOND)

    def _ticks(self) -> int:
        return (self._raw_ticks() + self._delta) & ((1 << 64) - 1)

    def _set_compare(self, number: int, value: int) -> None:
        self._compare[number] = value
        now = self._ticks()
        if value <= now:
            self._timers[number].cancel()
            self._drive(number, 1)
            return
        self._drive(number, 0)
        wait_ns = -(-(value - now) * _SECOND // self.timebase_freq)
        self._timers[number].set(self.board.clock.now_ns() + wait_ns)

    def _read(self, offset: int, width: int) -> int:
        value = self._ticks() if offset & ~7 == self.time_base else self._read_compare(offset)
        if width == 8:
            return value
        return value >> 32 if offset & 4 else value & 0xFFFFFFFF

    def _read_compare(self, offset: int) -> int:
        number = (offset - self.timecmp_base) // 8
        return self._compare[number] if 0 <= number < len(self._compare) else 0

    def _write(self, offset: int, width: int, value: int) -> None:
        if offset & ~7 == self.time_base:
            now = self._ticks()
            self._delta += _merged(now, offset, width, value) - now
            for number, compare in enumerate(self._compare):
                self._set_compare(number, compare)
            return
        number = (offset - self.timecmp_base) // 8
        if 0 <= number < len(self._compare):
            self._set_compare(number, _merged(self._compare[number], offset, width, value))


def _merged(old: int, offset: int, width: int, value: int) -> int:
    if width == 8:
        return value
    if offset & 4:
        return old & 0xFFFFFFFF | value << 32
    return old & ~0xFFFFFFFF | value
