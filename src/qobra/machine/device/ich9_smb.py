"""The SMBus controller of ``q35``: function 1f.3 of ICH9 (datasheet, chapter 20)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.devices import registry
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.smbus import I2cBus, SmbusHost
from qobra.machine.vmstate import VmState, part

if TYPE_CHECKING:
    from qobra.machine.pci.device import Bar

_HOST_CONFIGURATION, _ENABLE, _RESET = 0x40, 0x01, 0x08


@registry.register("ICH9-SMB")
class Ich9Smb(PciDevice):
    """The registers are in a window of ports, once the controller is enabled."""

    type_name = "ICH9-SMB"
    interfaces = ("acpi-dev-aml-interface",)
    architectures = frozenset(("x86_64",))
    pluggable = False
    hotpluggable_class = False
    vendor_id = regs.INTEL
    device_id = 0x2930
    revision = 2
    class_id = 0x0C05
    interrupt_pin = 1

    vmstate = VmState(part("host"))

    def realize(self) -> None:
        self.writable[_HOST_CONFIGURATION] &= ~_RESET
        self.smbus = I2cBus(self.tree)
        self.add_bus(self.smbus, "i2c")
        self.host = SmbusHost(self.smbus, self.set_pin, buffered=False)
        self.add_bar(4, self.host.registers, io=True)

    def reset(self) -> None:
        super().reset()
        self.put(_HOST_CONFIGURATION, 4, 0)
        self.update_mappings()

    def bar_address(self, bar: Bar) -> int | None:
        return super().bar_address(bar) if self.config[_HOST_CONFIGURATION] & _ENABLE else None

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        if offset <= _HOST_CONFIGURATION < offset + width:
            self.update_mappings()
