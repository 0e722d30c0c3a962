"""What Intel's gigabit cards have in common: registers, statistics, and the way of packets to and from the backend."""

from __future__ import annotations

from qobra.machine.dma import GuestMemory
from qobra.machine.e1000 import receive, regs
from qobra.machine.e1000.phy import Phy
from qobra.machine.nic import Nic
from qobra.machine.pci.device import PciDevice
from qobra.machine.vmstate import Number, VmState, listed, u32

_ADDRESS_VALID = 0x80000000


class GigabitCard(PciDevice, Nic):
    """A card of which ``_registers`` holds what is in them, by 32-bit word, and ``initial`` what a reset puts there."""

    abstract = True
    interrupt_pin = 1
    initial: dict[int, int] = regs.INITIAL
    dma: GuestMemory
    _phy: Phy
    _registers: list[int]
    _port_address = 0

    vmstate = VmState(listed("_registers", kind=Number(4)), u32("_port_address"), partial=True)

    def set_initial(self) -> None:
        """Registers as after a reset, the address in the first filter; what waits is lost."""
        self.drop_waiting()
        self._registers[:] = [0] * len(self._registers)
        for offset, value in self.initial.items():
            self.set_register(offset, value)
        self.set_register(regs.RA, int.from_bytes(self.address[:4], "little"))
        self.set_register(regs.RA + 4, int.from_bytes(self.address[4:], "little") | _ADDRESS_VALID)

    def _show_link(self) -> None:
        up = self._phy.link = self.link_up
        status = self.register(regs.STATUS)
        self.set_register(regs.STATUS, status | regs.STATUS_LINK if up else status & ~regs.STATUS_LINK)

    def link_changed(self) -> None:
        self._show_link()
        self.interrupt(regs.LSC)

    # -- what the rings use

    def register(self, offset: int) -> int:
        """The register at ``offset``."""
        return self._registers[offset >> 2]

    def set_register(self, offset: int, value: int) -> None:
        """Set the register at ``offset``, whatever the driver may write there."""
        self._registers[offset >> 2] = value & 0xFFFFFFFF

    def ring_base(self, low: int) -> int:
        """The address of a ring, in the register at ``low`` and the next one."""
        return self._wide(low) & ~0xF

    def _wide(self, low: int) -> int:
        return self.register(low) | self.register(low + 4) << 32

    def count(self, offset: int, number: int) -> None:
        """A statistic grows; it stays at its highest value."""
        self.set_register(offset, min(self.register(offset) + number, 0xFFFFFFFF))

    def count_wide(self, offset: int, number: int) -> None:
        """The same for one of 64 bits."""
        total = min(self._wide(offset) + number, (1 << 64) - 1)
        self.set_register(offset, total)
        self.set_register(offset + 4, total >> 32)

    def interrupt(self, reasons: int) -> None:
        """Something happened."""
        raise NotImplementedError

    def transmitted(self, ring: int, reasons: int) -> None:
        """All that was in a transmit ring, whose registers are ``ring`` bytes after the first one's, has gone out."""
        raise NotImplementedError

    # -- packets

    def send_packet(self, packet: bytes) -> None:
        """The driver sends a packet."""
        self.count(regs.TPT, 1)
        self.count(regs.GPTC, 1)
        for register in (regs.TOTL, regs.GOTCL):
            self.count_wide(register, len(packet) + 4)
        if packet[0] & 1:
            self.count(regs.BPTC if packet[:6] == b"\xff" * 6 else regs.MPTC, 1)
        if self.register(regs.RCTL) & regs.RX_LOOPBACK:
            self.receive_packet(packet)
        else:
            self.transmit(packet)

    def put_packet(self, packet: bytes) -> bool:
        if self.may_master() and self.register(regs.RCTL) & regs.RX_ENABLED:
            if self.register(regs.RDH) == self.register(regs.RDT):
                return False
            self.put_into_ring(packet)
        return True

    def put_into_ring(self, packet: bytes) -> None:
        """The receiver works, and the ring has a buffer at least: put a packet there, or lose it."""
        receive.receive(self, packet)
