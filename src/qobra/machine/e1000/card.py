"""The card: its registers (chapter 13), interrupts and statistics, between the driver and the backend."""

from __future__ import annotations

from qobra.machine.dma import GuestMemory
from qobra.machine.e1000 import regs
from qobra.machine.e1000.core import GigabitCard
from qobra.machine.e1000.eeprom import Eeprom
from qobra.machine.e1000.phy import Phy
from qobra.machine.e1000.transmit import Transmitter
from qobra.machine.memory import Registers
from qobra.machine.pci import regs as pci
from qobra.machine.vmstate import VmState, part

_MEMORY_SIZE, _PORTS_SIZE = 0x20000, 0x40


class E1000(GigabitCard):
    """What the models have in common.

    Packets go out as the driver puts them into the ring, and come in through the control strand.
    """

    type_name = "e1000-base"
    interfaces = ("conventional-pci-device",)
    abstract = True
    vendor_id = pci.INTEL
    class_id = 0x0200
    default_rom = "efi-e1000.rom"
    revision = 3
    phy_id = 0x0C20

    vmstate = VmState(part("_eeprom", "_phy", "transmitter"))

    def realize(self) -> None:
        self.realize_nic()
        self.dma = GuestMemory(self.board.memory, self.may_master)
        subsystem = (self.subsystem_vendor_id, self.subsystem_id)
        self._eeprom = Eeprom(self.address, self.device_id, subsystem)
        self._phy = Phy(self.phy_id)
        self._registers = [0] * (regs.END // 4)
        self.transmitter = Transmitter(self)
        self._clear()
        self.add_bar(0, Registers("e1000-mmio", _MEMORY_SIZE, self._read, self._write, impl=(4, 4)))
        ports = Registers("e1000-io", _PORTS_SIZE, self._read_port, self._write_port, impl=(4, 4))
        self.add_bar(1, ports, io=True)

    def unrealize(self) -> None:
        self.unrealize_nic()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self._eeprom.reset()
        self._phy.reset()
        self._clear()

    def _clear(self) -> None:
        # The driver's reset leaves the transceiver alone.
        self.set_initial()
        self.transmitter.reset()
        self._show_link()
        self._update_interrupt()

    def interrupt(self, reasons: int) -> None:
        self.set_register(regs.ICR, self.register(regs.ICR) | reasons)
        self._update_interrupt()

    def transmitted(self, ring: int, reasons: int) -> None:
        self.interrupt(reasons | regs.TXQE)

    def _update_interrupt(self) -> None:
        self.set_pin(1 if self.register(regs.ICR) & self.register(regs.IMS) else 0)

    # -- registers

    def _read(self, offset: int, _width: int) -> int:
        # Whatever the width, it is the register that the address lies in which is meant.
        offset &= ~3
        if offset >= regs.END:
            return 0
        value = self.register(offset)
        if offset == regs.ICR:
            self.set_register(regs.ICR, 0)
            self._update_interrupt()
            return value
        if offset == regs.EECD:
            return self._eeprom.lines
        if offset == regs.ICS:
            return self.register(regs.ICR)
        if regs.STATISTICS <= offset < regs.STATISTICS_END and not regs.writable(offset):
            self.set_register(offset, 0)
        return 0 if offset == regs.IMC else value

    def _write(self, offset: int, _width: int, value: int) -> None:
        value &= 0xFFFFFFFF
        offset &= ~3
        if offset == regs.CTRL:
            if value & regs.CTRL_RESET:
                self._clear()
                return
            if value & regs.CTRL_PHY_RESET:
                self._phy.reset()
            self.set_register(offset, value & ~(regs.CTRL_RESET | regs.CTRL_PHY_RESET))
        elif offset == regs.ICR:
            self.set_register(regs.ICR, self.register(regs.ICR) & ~value)
            self._update_interrupt()
        elif offset == regs.ICS:
            self.interrupt(value)
        elif offset in (regs.IMS, regs.IMC):
            mask = self.register(regs.IMS)
            self.set_register(regs.IMS, mask | value if offset == regs.IMS else mask & ~value)
            self._update_interrupt()
        elif offset == regs.EECD:
            self._eeprom.lines = value
        elif offset == regs.EERD:
            self.set_register(offset, self._eeprom.read_word(value))
        elif offset == regs.MDIC:
            value = self._phy.transact(value & 0x3FFFFFFF, self.register(offset))
            self.set_register(offset, value)
            if value >> 29 & 1:
                self.interrupt(regs.MDAC)
        elif mask := regs.writable(offset):
            self.set_register(offset, value & mask)
            if offset in (regs.TDT, regs.TCTL):
                self.transmitter.run()
            if offset in (regs.RDT, regs.RCTL):
                self.room_changed()

    # -- the window in ports

    def _read_port(self, offset: int, width: int) -> int:
        if offset == 0:
            return self._port_address
        return self._read(self._port_address & ~3, 4) if offset == 4 else 0

    def _write_port(self, offset: int, width: int, value: int) -> None:
        if offset == 0:
            self._port_address = value & (_MEMORY_SIZE - 1)
        elif offset == 4:
            self._write(self._port_address & ~3, 4, value)
