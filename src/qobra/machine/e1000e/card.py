"""The card: configuration space, registers, two transmit rings, and what takes packets in."""

from __future__ import annotations

from qobra.machine.dma import GuestMemory
from qobra.machine.e1000 import regs as old
from qobra.machine.e1000.core import GigabitCard
from qobra.machine.e1000.phy import Phy
from qobra.machine.e1000.transmit import Transmitter
from qobra.machine.e1000e import receive, regs
from qobra.machine.e1000e.interrupts import Interrupts
from qobra.machine.e1000e.nvm import Nvm
from qobra.machine.memory import Registers
from qobra.machine.pci import express
from qobra.machine.pci import regs as pci
from qobra.machine.pci.msix import Msi, Msix
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Int

_MEMORY_SIZE, _FLASH_SIZE, _PORTS_SIZE, _MESSAGES_SIZE = 0x20000, 0x20000, 0x20, 0x4000
_MESSAGES, _EXPRESS, _MESSAGE, _POWER = 0xA0, 0xE0, 0xD0, 0xC8
_VECTORS, _PENDING = 5, 0x2000
_POWER_CAPABILITIES, _POWER_DATA = 0x22, 0x1F
"""Power management of version 1.1, for a driver that initializes the device; which data it wants."""
_SERIAL_NUMBER = 0x140


class E1000e(GigabitCard):
    """What is sent goes through the two rings, what comes in goes to the first one."""

    abstract = True
    plugs_into = ("pci-express-device",)
    vendor_id = pci.INTEL
    class_id = pci.CLASS_ETHERNET
    default_rom = "efi-e1000e.rom"
    always_express = True
    initial = regs.INITIAL

    subsys_ven = Int(pci.INTEL, type="uint16", name="subsys_ven", description="Who made the board: a vendor of PCI")
    subsys = Int(0, type="uint16", description="Which board of that vendor it is")

    vmstate = VmState(part("_nvm", "_phy", "msix", "first", "second"), partial=True)

    def realize(self) -> None:
        self.realize_nic()
        self.put(pci.SUBSYSTEM_VENDOR, 2, self.subsys_ven)
        self.put(pci.SUBSYSTEM_ID, 2, self.subsys)
        self.dma = GuestMemory(self.board.memory, self.may_master)
        self.add_bar(0, Registers("e1000e-mmio", _MEMORY_SIZE, self._read, self._write, impl=(4, 4)))
        self.add_bar(1, Registers("e1000e-flash", _FLASH_SIZE, lambda _o, _w: 0, lambda _o, _w, _v: None))
        ports = Registers("e1000e-io", _PORTS_SIZE, self._read_port, self._write_port, impl=(4, 4))
        self.add_bar(2, ports, io=True)
        self.msix = Msix(
            self, _VECTORS, bar=3, offset=_MESSAGES, own_bar=False, table_offset=0, pending_offset=_PENDING
        )
        self.add_bar(
            3, Registers("e1000e-msix", _MESSAGES_SIZE, self.msix.read, self.msix.write, valid=(4, 8), impl=(4, 4))
        )
        self._add_capabilities()
        self._nvm = Nvm(self.address, self.device_id, (self.subsys_ven, self.subsys))
        self._phy = Phy(regs.PHY_ID, regs.PHY, regs.PHY_WRITABLE)
        self.interrupts = Interrupts(self)
        self._registers = [0] * (regs.END // 4)
        self.first, self.second = Transmitter(self), Transmitter(self, regs.SECOND_RING)
        self._clear()

    def _add_capabilities(self) -> None:
        at_root = self.pci_bus.implements("PCIE") and self.pci_bus.parent_bridge is None
        start = express.add_first_version(self, express.INTEGRATED if at_root else express.ENDPOINT, offset=_EXPRESS)
        express.add_link(self, start)
        self.msi = Msi(self, offset=_MESSAGE)
        control = express.add_power_management(self, offset=_POWER)
        self.config[control - 2] = _POWER_CAPABILITIES
        self.writable[control + 1] = _POWER_DATA
        express.add_error_reporting(self, express.EXTENDED)
        address = self.address
        number = address[5::-1][:3] + b"\xff\xff" + address[2::-1]
        express.add_serial_number(self, _SERIAL_NUMBER, number)

    def unrealize(self) -> None:
        self.unrealize_nic()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self.msix.reset()
        self.msi.reset()
        self._phy.reset()
        self._clear()

    def _clear(self) -> None:
        self.set_initial()
        self._nvm.reset()
        self.first.reset()
        self.second.reset()
        self._show_link()
        self.interrupts.update()

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        self.msix.config_written(offset, width)

    # -- what the rings tell

    def interrupt(self, reasons: int) -> None:
        queue = regs.RXQ0 if reasons & old.RXT else 0
        self.interrupts.raise_causes(reasons | queue | (regs.OTHER if reasons & regs.OTHER_CAUSES else 0))

    def transmitted(self, ring: int, reasons: int) -> None:
        queue = regs.TXQ1 if ring else regs.TXQ0
        self.interrupts.raise_causes(reasons | old.TXQE | (queue if reasons & old.TXDW else 0))

    def put_into_ring(self, packet: bytes) -> None:
        receive.put_into_ring(self, packet)

    # -- registers

    def _read(self, offset: int, _width: int) -> int:
        # Whatever the width, it is the register that the address lies in which is meant.
        offset = regs.real(offset & ~3)
        if offset >= regs.END:
            return 0
        value = self.register(offset)
        if offset == old.ICR:
            return self.interrupts.acknowledge()
        if offset == 0x4:
            return self.register(old.CTRL)
        if offset == old.EECD:
            return self._nvm.lines
        if offset == old.ICS:
            return self.register(old.ICR)
        if offset == regs.SWSM:
            self.set_register(offset, value | 1)  # whoever reads a zero has it
        elif old.STATISTICS <= offset < 0x4128 and not regs.writable(offset):
            self.set_register(offset, 0)
        return 0 if offset == old.IMC else value

    def _write(self, offset: int, _width: int, value: int) -> None:
        value &= 0xFFFFFFFF
        offset = regs.real(offset & ~3)
        if offset in (old.CTRL, 0x4):
            if value & old.CTRL_RESET:
                self._clear()
                return
            if value & old.CTRL_PHY_RESET:
                self._phy.reset()
                self._show_link()
            self.set_register(old.CTRL, value & ~(old.CTRL_RESET | old.CTRL_PHY_RESET))
        elif offset == old.ICR:
            self.interrupts.clear(value)
        elif offset == old.ICS:
            self.interrupts.raise_causes(value)
        elif offset == old.IMS:
            self.interrupts.unmasked(value)
        elif offset == old.IMC:
            self.interrupts.masked(value)
        elif offset == old.EECD:
            self._nvm.lines = value
        elif offset == old.EERD:
            self.set_register(offset, self._nvm.read_word(value))
        elif offset == old.MDIC:
            value = self._phy.transact(value & 0x3FFFFFFF, self.register(offset))
            self.set_register(offset, value)
            if value >> 29 & 1:
                self.interrupt(old.MDAC)
        elif mask := regs.writable(offset):
            self.set_register(offset, value & mask | regs.ALWAYS_SET.get(offset, 0))
            if offset in (old.TDT, old.TCTL):
                self.first.run()
            if offset in (old.TDT + regs.SECOND_RING, old.TCTL):
                self.second.run()
            if offset in (old.RDT, old.RCTL):
                self.room_changed()

    # -- the window in ports

    def _read_port(self, offset: int, _width: int) -> int:
        if offset == 0:
            return self._port_address
        return self._read(self._port_address, 4) if offset == 4 else 0

    def _write_port(self, offset: int, _width: int, value: int) -> None:
        if offset == 0:
            self._port_address = value & (_MEMORY_SIZE - 1)
        elif offset == 4:
            self._write(self._port_address, 4, value)
