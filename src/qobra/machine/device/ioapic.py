"""The I/O APIC of PCs (Intel 82093AA): 24 inputs that become messages to the CPUs."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.irq import Rises
from qobra.machine.memory import Registers
from qobra.machine.qdev import SysBusDevice
from qobra.machine.vmstate import Number, VmState, listed, u8, u32
from qobra.object.property import Int

PINS = 24
BASE = 0xFEC00000
_MASKED, _LEVEL, _REMOTE_IRR, _ACTIVE_LOW = 1 << 16, 1 << 15, 1 << 14, 1 << 13
_READ_ONLY = _REMOTE_IRR | 1 << 12
_LOGICAL = 1 << 11
_MESSAGE_BASE = 0xFEE00000
_DELIVERY = ("fixed", "lowest", "SMI", "...", "NMI", "INIT", "...", "extINT")
"""How a message is taken, by bits 8 to 10 of an entry."""


class IoApicCommon(SysBusDevice):
    """What these controllers have in common, wherever they are modelled."""

    type_name = "ioapic-common"
    interfaces = ("intctrl",)
    abstract = True


@registry.register("ioapic")
class IoApic(IoApicCommon):
    """Redirects each input as its entry says; a message is a store to the CPUs' window of memory."""

    type_name = "ioapic"
    architectures = frozenset(("x86_64",))

    version = Int(0x20, type="uint8")

    vmstate = VmState(u8("apic_id", "selected"), u32("pending"), listed("entries", kind=Number(8)))

    def realize(self) -> None:
        self._mapping = self.board.memory.map(BASE, Registers("ioapic", 0x1000, self._read, self._write, valid=(1, 4)))
        self.add_inputs(self._set_input, PINS)
        self.rises = Rises(PINS)
        self.reset()

    def unrealize(self) -> None:
        self._mapping.remove()

    def reset(self) -> None:
        self.apic_id = 0
        self.selected = 0
        self.pending = 0
        self.entries = [_MASKED] * PINS

    def _set_input(self, number: int, level: int) -> None:
        self.rises.see(number, level)
        # The timer's line 0 is wired to input 2.
        number = 2 if number == 0 else number
        bit = 1 << number
        if self.entries[number] & _LEVEL:
            if level:
                self.pending |= bit
                self._deliver(number)
            else:
                self.pending &= ~bit
        elif level and not self.entries[number] & _MASKED:
            self.pending |= bit
            self._deliver(number)

    def _deliver(self, number: int) -> None:
        entry, bit = self.entries[number], 1 << number
        if not self.pending & bit or entry & _MASKED or (entry & _LEVEL and entry & _REMOTE_IRR):
            return
        if entry & _LEVEL:
            self.entries[number] |= _REMOTE_IRR
        else:
            self.pending &= ~bit
        address = _MESSAGE_BASE | (entry >> 56 & 0xFF) << 12 | (entry >> 11 & 1) << 2
        data = entry & 0xFF | (entry >> 8 & 7) << 8 | (entry >> 15 & 1) << 15 | 1 << 14
        self.board.memory.store(address, 4, data)

    def end_of_interrupt(self, vector: int) -> None:
        """A CPU is done with ``vector``: level inputs that are still high signal again."""
        for number, entry in enumerate(self.entries):
            if entry & 0xFF == vector and entry & _LEVEL and entry & _REMOTE_IRR:
                self.entries[number] &= ~_REMOTE_IRR
                self._deliver(number)

    def describe(self) -> str:
        """The state, an entry a line, for people."""
        chosen = f" (redir[{self.selected - 0x10 >> 1}])" if self.selected >= 0x10 else ""
        first = f"ioapic0: ver={int(self.version):#x} id={self.apic_id:#04x} sel={self.selected:#04x}{chosen}"
        pins = [f"  pin {number:<2} {_describe_entry(entry)}" for number, entry in enumerate(self.entries)]
        waiting = [number for number in range(PINS) if self.pending >> number & 1]
        taken = [number for number, entry in enumerate(self.entries) if entry & _REMOTE_IRR]
        lists = [
            f"{title:<10} " + ("".join(f"{number:<2} " for number in numbers) or "(none)")
            for title, numbers in (("  IRR", waiting), ("  Remote IRR", taken))
        ]
        return "\n".join((first, *pins, *lists, ""))

    def _read(self, offset: int, width: int) -> int:
        offset &= 0xFF
        if offset == 0x00:
            return self.selected
        if offset != 0x10 or width != 4:
            return 0
        if self.selected in (0, 2):
            return self.apic_id << 24
        if self.selected == 1:
            return int(self.version) | (PINS - 1) << 16
        index = self.selected - 0x10
        if 0 <= index < 2 * PINS:
            return self.entries[index // 2] >> 32 * (index & 1) & 0xFFFFFFFF
        return 0

    def _write(self, offset: int, width: int, value: int) -> None:
        offset &= 0xFF
        if offset == 0x00:
            self.selected = value & 0xFF
        elif offset == 0x10 and width == 4:
            self._write_selected(value)
        elif offset == 0x40 and self.version >= 0x20:
            self.end_of_interrupt(value & 0xFF)

    def _write_selected(self, value: int) -> None:
        if self.selected == 0:
            self.apic_id = value >> 24 & 0x0F
            return
        index = self.selected - 0x10
        if not 0 <= index < 2 * PINS:
            return
        number, high = divmod(index, 2)
        entry = self.entries[number]
        if high:
            entry = entry & 0xFFFFFFFF | (value & 0xFFFFFFFF) << 32
        else:
            entry = entry & ~0xFFFFFFFF | value & ~_READ_ONLY & 0xFFFFFFFF | entry & _READ_ONLY
        if not entry & _LEVEL:
            entry &= ~_REMOTE_IRR
        self.entries[number] = entry
        self._deliver(number)


def _describe_entry(entry: int) -> str:
    destination = entry >> 56 if entry & _LOGICAL else entry >> 56 & 0x0F
    words = (
        "active-lo" if entry & _ACTIVE_LOW else "active-hi",
        f"{'level' if entry & _LEVEL else 'edge':<5}",
        f"{'masked' if entry & _MASKED else '':<6}",
        f"{_DELIVERY[entry >> 8 & 7]:<6}",
        "logical" if entry & _LOGICAL else "physical",
    )
    return f"{entry:#018x} dest={destination:x} vec={entry & 0xFF:<3} {' '.join(words)}"
