"""Power management of the ``pc`` board: the PIIX4 function with ACPI registers and PCI hot-plug."""

from __future__ import annotations

from typing import Any

from qobra.machine.acpi import AcpiRegisters, SleepStates
from qobra.machine.acpi_pcihp import GPE_BIT, AcpiPciHotplug
from qobra.machine.devices import registry
from qobra.machine.irq import Line
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.smbus import I2cBus, SmbusHost
from qobra.machine.vmstate import VmState, part, raw
from qobra.object.property import Bool, Int

_PM_BASE, _PM_ENABLE = 0x40, 0x80
_SMB_BASE = 0x90
_ENABLE_COMMAND, _DISABLE_COMMAND = 0xF1, 0xF0


def _ignore_interrupt(_level: int) -> None:
    """The line of the bus's controller leads nowhere."""


@registry.register("PIIX4_PM")
class Piix4Pm(SleepStates, PciDevice):
    """ACPI registers where the firmware puts them; hot-plug registers at 0xae00, events at 0xafe0."""

    type_name = "PIIX4_PM"
    interfaces = (
        "acpi-device-interface",
        "hotplug-handler",
    )
    architectures = frozenset(("x86_64",))
    pluggable = False
    hotpluggable_class = False
    vendor_id = regs.INTEL
    device_id = 0x7113
    revision = 3
    class_id = 0x0680
    interrupt_pin = 1

    acpi_hotplug = Bool(True, name="acpi-pci-hotplug-with-bridge-support")
    smb_io_base = Int(0, type="uint32", name="smb_io_base")

    vmstate = VmState(part("acpi", "hotplug", "smbus_host"), raw("_apm"))

    def realize(self) -> None:
        board: Any = self.board
        self.put(regs.STATUS, 2, 0x0280)
        self.put(regs.COMMAND, 2, 0)
        ports = board.ports
        sci: Line = board.gsi[9]
        self.acpi = AcpiRegisters(board, sci, 4, to_disk=self.s4_val)
        self._places = [
            (0, ports.map(0, self.acpi.events, enabled=False)),
            (4, ports.map(0, self.acpi.controls, enabled=False)),
            (8, ports.map(0, self.acpi.timer, enabled=False)),
        ]
        ports.map(0xAFE0, self.acpi.general)
        self.hotplug = AcpiPciHotplug(self, lambda: self.acpi.raise_gpe(GPE_BIT))
        ports.map(0xAE00, self.hotplug.registers)
        self.hotplug.manage(self.pci_bus)
        ports.map(0xB2, Registers("apm-io", 2, self._read_apm, self._write_apm, impl=(1, 1)))
        self._apm = bytearray(2)
        self.config[0x5F] = 0x10
        self.config[0x63] = 0x60
        self.smbus = I2cBus(self.tree)
        self.add_bus(self.smbus, "i2c")
        self.smbus_host = SmbusHost(self.smbus, _ignore_interrupt, buffered=True)
        ports.map(self.smb_io_base, self.smbus_host.registers)
        self.put(_SMB_BASE, 4, self.smb_io_base | 1)
        self.config[0xD2] = 0x09

    def unrealize(self) -> None:
        self.acpi.close()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self.config[_PM_BASE] = 1
        self.put(0x58, 4, 0)
        self.config[_PM_ENABLE] = 0
        self.acpi.reset()
        self.hotplug.reset()
        self._place()

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        if offset < _PM_ENABLE + 4 and offset + width > _PM_BASE:
            self._place()

    def _place(self) -> None:
        base = self.dword(_PM_BASE) & 0xFFC0
        enabled = self.config[_PM_ENABLE] & 1
        for offset, mapping in self._places:
            mapping.place(base + offset if enabled else None)

    def _read_apm(self, offset: int, _width: int) -> int:
        return self._apm[offset]

    def _write_apm(self, offset: int, _width: int, value: int) -> None:
        self._apm[offset] = value & 0xFF
        if offset == 0:
            if value == _ENABLE_COMMAND:
                self.acpi.set_sci_enabled(True)
            elif value == _DISABLE_COMMAND:
                self.acpi.set_sci_enabled(False)

    def state_loaded(self) -> None:
        super().state_loaded()
        self._place()
