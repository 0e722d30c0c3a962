"""The platform-level interrupt controller of RISC-V boards (RISC-V PLIC specification 1.0)."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.irq import Line
from qobra.machine.memory import Registers
from qobra.machine.qdev import SysBusDevice
from qobra.machine.vmstate import Field, Number, VmState, listed
from qobra.object.property import Int, String

_PENDING, _ENABLE, _CONTEXT = 0x1000, 0x2000, 0x200000
_ENABLE_STRIDE, _CONTEXT_STRIDE = 0x80, 0x1000
EXTERNAL = {"M": 11, "S": 9, "U": 8}


@registry.register("riscv.sifive.plic")
class Plic(SysBusDevice):
    """Sources with priorities, contexts (a mode of a hart) with enables and a threshold.

    ``hart_config`` lists the modes of each hart from ``hartid_base`` on, such as ``MS,MS``.
    """

    type_name = "riscv.sifive.plic"
    architectures = frozenset(("riscv64",))

    hart_config = String(type="str")
    hartid_base = Int(0, type="uint32")
    num_sources = Int(0, type="uint32")
    num_priorities = Int(0, type="uint32")
    base = 0
    size = 0x600000

    vmstate = VmState(
        Field("_levels", Number(128)),
        Field("_pending", Number(128)),
        Field("_claimed", Number(128)),
        listed("_priority", "_threshold", kind=Number(4)),
        listed("_enabled", kind=Number(128)),
    )

    def realize(self) -> None:
        self._contexts: list[Line] = []
        for hart, modes in enumerate((self.hart_config or "").split(","), self.hartid_base):
            for mode in modes:
                self._contexts.append(self.board.cpus[hart].gpio_in[None][EXTERNAL[mode]])
        self._words = (self.num_sources + 31) // 32
        self.add_inputs(self._set_input, self.num_sources)
        self._clear()
        region = Registers("riscv.sifive.plic", self.size, self._read, self._write, valid=(4, 4))
        self._mapping = self.board.memory.map(self.base, region)

    def unrealize(self) -> None:
        self._mapping.remove()

    def reset(self) -> None:
        self._clear()
        self._update()

    def _clear(self) -> None:
        self._levels = self._pending = self._claimed = 0
        self._priority = [0] * self.num_sources
        self._enabled = [0] * len(self._contexts)
        self._threshold = [0] * len(self._contexts)

    def _set_input(self, number: int, level: int) -> None:
        # The gateway holds a source back from its claim to its completion; what it let through stays until a claim.
        if level:
            self._levels |= 1 << number
            if not self._claimed >> number & 1:
                self._pending |= 1 << number
        else:
            self._levels &= ~(1 << number)
        self._update()

    def _best(self, context: int) -> int:
        # The pending source of the highest priority above the threshold, the lowest number among equals; 0: none.
        waiting = self._pending & ~self._claimed & self._enabled[context]
        best, best_priority = 0, self._threshold[context]
        while waiting:
            number = (waiting & -waiting).bit_length() - 1
            waiting &= waiting - 1
            if self._priority[number] > best_priority:
                best, best_priority = number, self._priority[number]
        return best

    def _update(self) -> None:
        for context, line in enumerate(self._contexts):
            line.set(1 if self._best(context) else 0)

    def _claim(self, context: int) -> int:
        number = self._best(context)
        if number:
            self._pending &= ~(1 << number)
            self._claimed |= 1 << number
            self._update()
        return number

    def _complete(self, context: int, number: int) -> None:
        if number < self.num_sources and self._enabled[context] >> number & 1:
            self._claimed &= ~(1 << number)
            if self._levels >> number & 1:
                self._pending |= 1 << number
            self._update()

    def _read(self, offset: int, _width: int) -> int:
        if offset < 4 * self.num_sources:
            return self._priority[offset // 4]
        if _PENDING <= offset < _PENDING + 4 * self._words:
            return self._pending >> 8 * (offset - _PENDING) & 0xFFFFFFFF
        context, position = divmod(offset - _ENABLE, _ENABLE_STRIDE)
        if 0 <= context < len(self._contexts):
            return self._enabled[context] >> 8 * position & 0xFFFFFFFF if position < 4 * self._words else 0
        context, position = divmod(offset - _CONTEXT, _CONTEXT_STRIDE)
        if 0 <= context < len(self._contexts):
            if position == 0:
                return self._threshold[context]
            if position == 4:
                return self._claim(context)
        return 0

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset < 4 * self.num_sources:
            # Priorities are as many bits wide as the number of priorities needs.
            if offset:
                self._priority[offset // 4] = value % (self.num_priorities + 1)
        elif _ENABLE <= offset < _ENABLE + _ENABLE_STRIDE * len(self._contexts):
            context, position = divmod(offset - _ENABLE, _ENABLE_STRIDE)
            if position < 4 * self._words:
                mask = 0xFFFFFFFF << 8 * position
                self._enabled[context] = self._enabled[context] & ~mask | value << 8 * position
        else:
            context, position = divmod(offset - _CONTEXT, _CONTEXT_STRIDE)
            if not 0 <= context < len(self._contexts):
                return
            if position == 0:
                self._threshold[context] = value % (self.num_priorities + 1)
            elif position == 4:
                self._complete(context, value)
                return
        self._update()
