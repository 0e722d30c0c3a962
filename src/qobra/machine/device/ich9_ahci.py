"""``ich9-ahci``: a SATA host adapter with six ports (AHCI 1.3.1), as in the ICH9."""

from __future__ import annotations

from qobra.machine.ata.ahci_port import AhciPort
from qobra.machine.ata.bus import IdeBus, count_channels
from qobra.machine.devices import registry
from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.pci.msix import Msi
from qobra.machine.vmstate import VmState, parts, u32

_PORTS = 6
_CAP, _GHC, _IS, _PI, _VS = 0x00, 0x04, 0x08, 0x0C, 0x10
# 64-bit addresses, queued commands, AHCI only, first generation, 32 slots, six ports.
_CAPABILITIES = 0xC0141F00 | _PORTS - 1
_VERSION = 0x00010000
_RESET, _INTERRUPTS, _ENABLED = 0x1, 0x2, 0x80000000
_FIRST_PORT, _PORT_SIZE = 0x100, 0x80
_CAP_SATA = 0x12
_MSI_OFFSET, _SATA_OFFSET = 0x80, 0xA8
_INDEX, _DATA = 0x10, 0x14


@registry.register("ich9-ahci")
class Ich9Ahci(PciDevice):
    """The adapter; each port has a bus for one device."""

    type_name = "ich9-ahci"
    category = "Storage"
    vendor_id = regs.INTEL
    device_id = 0x2922
    revision = 2
    class_id = 0x0106
    prog_if = 0x01
    interrupt_pin = 1

    vmstate = VmState(u32("_control", "_status", "_index"), parts("ports"))

    def state_blocked(self) -> str | None:
        return "a command is under way" if any(port.busy for port in self.ports) else None

    def realize(self) -> None:
        self._control = _ENABLED
        self._status = 0
        self._index = 0
        memory = GuestMemory(self.board.memory, self.may_master)
        first = 1 + 2 * count_channels(self.board)
        self.ports: list[AhciPort] = []
        for number in range(_PORTS):
            bus = IdeBus(self.tree, units=1)
            bus.ncq = True
            bus.first_serial = first + 2 * number
            self.add_bus(bus)
            self.ports.append(AhciPort(bus, memory, self.machine.control, self._check_interrupts))
        self.config[0x90] = 0x40  # port map: AHCI mode
        start = self.add_capability(_CAP_SATA, 8, offset=_SATA_OFFSET)
        self.put(start + 2, 2, 0x0010)
        self.put(start + 4, 4, 4 + 4 | 4 << 4)
        self._msi = Msi(self, offset=_MSI_OFFSET)
        self.add_bar(
            4, Registers("ahci-idp", 32, self._read_pair, self._write_pair, valid=(1, 4), impl=(4, 4)), io=True
        )
        self.add_bar(5, Registers("ahci", 4096, self._read, self._write, valid=(1, 8), impl=(4, 4)))

    def reset(self) -> None:
        super().reset()
        self._msi.reset()
        self._index = 0
        self._reset_adapter()

    def _reset_adapter(self) -> None:
        self._control, self._status = _ENABLED, 0
        for port in self.ports:
            port.reset()
        self._check_interrupts()

    def _check_interrupts(self) -> None:
        for number, port in enumerate(self.ports):
            if port.interrupts:
                self._status |= 1 << number
        level = bool(self._status and self._control & _INTERRUPTS)
        if not self._msi.enabled:
            self.set_pin(level)
        elif level:
            self._msi.notify()

    def _read(self, offset: int, _width: int) -> int:
        return self._register(offset & ~3) >> 8 * (offset & 3)

    def _register(self, offset: int) -> int:
        if offset >= _FIRST_PORT:
            number, at = divmod(offset - _FIRST_PORT, _PORT_SIZE)
            return self.ports[number].read(at) if number < _PORTS else 0
        return {
            _CAP: _CAPABILITIES,
            _GHC: self._control,
            _IS: self._status,
            _PI: (1 << _PORTS) - 1,
            _VS: _VERSION,
        }.get(offset, 0)

    def _write(self, offset: int, _width: int, value: int) -> None:
        value &= 0xFFFFFFFF
        if offset & 3:
            return
        if offset >= _FIRST_PORT:
            number, at = divmod(offset - _FIRST_PORT, _PORT_SIZE)
            if number < _PORTS:
                self.ports[number].write(at, value)
        elif offset == _GHC:
            if value & _RESET:
                self._reset_adapter()
            else:
                self._control = value & (_RESET | _INTERRUPTS) | _ENABLED
                self._check_interrupts()
        elif offset == _IS:
            self._status &= ~value
            self._check_interrupts()

    def _read_pair(self, offset: int, _width: int) -> int:
        if offset == _INDEX:
            return self._index
        if offset == _DATA:
            return self._register(self._index)
        return 0

    def _write_pair(self, offset: int, _width: int, value: int) -> None:
        if offset == _INDEX:
            self._index = value & 0xFFC
        elif offset == _DATA:
            self._write(self._index, 4, value)
