"""The interrupt controller of the PC/AT: one of two 8259As (Intel datasheet 231468-003)."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.irq import Rises
from qobra.machine.isa import IsaDevice
from qobra.machine.vmstate import VmState, flag, u8
from qobra.object.property import Bool, Int


class PicCommon(IsaDevice):
    """What these controllers have in common, wherever they are modelled."""

    type_name = "pic-common"
    interfaces = ("intctrl",)
    abstract = True


@registry.register("isa-i8259")
class I8259(PicCommon):
    """Eight inputs; ``output`` goes to the CPU, or to the other controller."""

    type_name = "isa-i8259"
    pluggable = False

    iobase = Int(0xFFFFFFFF, type="uint32")
    elcr_addr = Int(0xFFFFFFFF, type="uint32", name="elcr_addr")
    elcr_mask = Int(0xFF, type="uint8", name="elcr_mask")
    master = Bool(False)

    vmstate = VmState(
        u8("elcr", "requests", "mask", "service", "base", "_last"),
        u8("priority_add", maximum=7),
        u8("_init_state", maximum=3),
        flag("_read_service", "_poll", "_special_mask", "_auto_eoi", "_rotate_on_auto", "_nested"),
        flag("_needs_icw4", "_single"),
    )

    def realize(self) -> None:
        self.map_ports(self.iobase, 2, self._read, self._write, name="pic")
        self.map_ports(self.elcr_addr, 1, lambda _o, _w: self.elcr, self._write_elcr, name="elcr")
        self.add_inputs(self._set_input, 8)
        (self.output,) = self.add_outputs(1)
        self.elcr = 0
        self.rises = Rises(8)
        self._clear()

    def reset(self) -> None:
        self.elcr = 0
        self._clear()

    def _clear(self) -> None:
        self.requests = self.mask = self.service = 0
        self.priority_add = self.base = 0
        self._read_service = self._poll = self._special_mask = False
        self._auto_eoi = self._rotate_on_auto = self._nested = self._needs_icw4 = False
        self._single = False
        self._init_state = 0
        self._last = 0
        self._update()

    # -- inputs and the decision

    def _set_input(self, number: int, level: int) -> None:
        self.rises.see(number, level)
        bit = 1 << number
        if self.elcr & bit:
            if level:
                self.requests |= bit
                self._last |= bit
            else:
                self.requests &= ~bit
                self._last &= ~bit
        elif level:
            if not self._last & bit:
                self.requests |= bit
            self._last |= bit
        else:
            self._last &= ~bit
        self._update()

    def _priority(self, bits: int) -> int:
        # 0 is highest; 8: none.
        if not bits:
            return 8
        priority = 0
        while not bits & 1 << ((priority + self.priority_add) & 7):
            priority += 1
        return priority

    def pending(self) -> int:
        """The input that would interrupt now, or -1."""
        priority = self._priority(self.requests & ~self.mask)
        if priority == 8:
            return -1
        service = self.service & ~self.mask if self._special_mask else self.service
        if self._nested and self.master:
            service &= ~(1 << 2)
        if priority < self._priority(service):
            return (priority + self.priority_add) & 7
        return -1

    def _update(self) -> None:
        self.output.set(1 if self.pending() >= 0 else 0)

    def acknowledge(self) -> int:
        """The CPU takes the interrupt: the number of the input, 7 for one that has gone again."""
        number = self.pending()
        if number < 0:
            return 7
        bit = 1 << number
        if self._auto_eoi:
            if self._rotate_on_auto:
                self.priority_add = (number + 1) & 7
        else:
            self.service |= bit
        if not self.elcr & bit:
            self.requests &= ~bit
        self._update()
        return number

    def describe(self) -> str:
        """The state in a line, for people."""
        numbers = f"irr={self.requests:02x} imr={self.mask:02x} isr={self.service:02x} hprio={self.priority_add}"
        modes = f"rr_sel={self._read_service:d} elcr={self.elcr:02x} fnm={self._nested:d}"
        return f"pic{not self.master:d}: {numbers} irq_base={self.base:02x} {modes}\n"

    # -- registers

    def _read(self, offset: int, _width: int) -> int:
        if self._poll:
            self._poll = False
            number = self.pending()
            if number >= 0:
                self.acknowledge()
                return number | 0x80
            return 0
        if offset == 0:
            return self.service if self._read_service else self.requests
        return self.mask

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset == 0:
            self._write_command(value & 0xFF)
        else:
            self._write_data(value & 0xFF)

    def _write_command(self, value: int) -> None:
        if value & 0x10:
            self._clear()
            self._init_state = 1
            self._needs_icw4 = bool(value & 1)
            self._single = bool(value & 2)
        elif value & 0x08:
            if value & 0x04:
                self._poll = True
            if value & 0x02:
                self._read_service = bool(value & 1)
            if value & 0x40:
                self._special_mask = bool(value & 0x20)
        else:
            self._end_of_interrupt(value)

    def _end_of_interrupt(self, value: int) -> None:
        command = value >> 5
        if command in (0, 4):
            self._rotate_on_auto = command == 4
        elif command in (1, 5):
            priority = self._priority(self.service)
            if priority != 8:
                number = (priority + self.priority_add) & 7
                self.service &= ~(1 << number)
                if command == 5:
                    self.priority_add = (number + 1) & 7
                self._update()
        elif command == 3:
            self.service &= ~(1 << (value & 7))
            self._update()
        elif command == 6:
            self.priority_add = (value + 1) & 7
            self._update()
        elif command == 7:
            number = value & 7
            self.service &= ~(1 << number)
            self.priority_add = (number + 1) & 7
            self._update()

    def _write_data(self, value: int) -> None:
        if self._init_state == 0:
            self.mask = value
            self._update()
        elif self._init_state == 1:
            self.base = value & 0xF8
            self._init_state = (3 if self._needs_icw4 else 0) if self._single else 2
        elif self._init_state == 2:
            self._init_state = 3 if self._needs_icw4 else 0
        else:
            self._nested = bool(value & 0x10)
            self._auto_eoi = bool(value & 0x02)
            self._init_state = 0

    def _write_elcr(self, _offset: int, _width: int, value: int) -> None:
        self.elcr = value & self.elcr_mask
