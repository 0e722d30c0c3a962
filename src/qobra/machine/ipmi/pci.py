"""What the interfaces that are PCI functions have in common."""

from __future__ import annotations

from qobra.machine.ipmi import bmc as ipmi
from qobra.machine.memory import Registers
from qobra.machine.pci.device import PciDevice
from qobra.machine.vmstate import VmState, part

_PORTS = 8
_NOTHING = 0xFF


class PciIpmi(ipmi.Interface, PciDevice):
    """An interface at ports, whose interrupt is the function's pin."""

    abstract = True
    architectures = frozenset(("x86_64",))
    vendor_id = 0x1234
    device_id = 0x1112
    revision = 1
    class_id = 0x0C07
    interrupt_pin = 1
    port_type: type[ipmi.RegisterPort]
    ports: int
    """How many have a register."""

    vmstate = VmState(part("_port"), partial=True)

    def realize(self) -> None:
        port = self.port_type(self.bmc, self.set_pin)
        self.take_controller(port)
        self._port = port
        region = Registers(self.type_name, _PORTS, self._read, self._write, valid=(1, 4), impl=(1, 1))
        self.add_bar(0, region, io=True)

    def _read(self, offset: int, _width: int) -> int:
        return self._port.read(offset) if offset < self.ports else _NOTHING

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset < self.ports:
            self._port.write(offset, value & 0xFF)
