"""What the ISA interfaces have in common."""

from __future__ import annotations

from typing import Any

from qobra.machine.ipmi import bmc as ipmi
from qobra.machine.isa import IsaDevice
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Int


class IsaIpmi(ipmi.Interface, IsaDevice):
    """An interface at ports, with an ISA interrupt unless ``irq`` is 0 or less."""

    abstract = True
    port_type: type[ipmi.RegisterPort]
    ports: int
    """How many."""
    kind: int
    """As SMBIOS and ACPI number it."""
    label: str
    ioport: Any

    irq = Int(5, type="int32")

    vmstate = VmState(part("_port"), partial=True)

    def realize(self) -> None:
        line = self.line(self.irq).set if self.irq > 0 else lambda _level: None
        port = self.port_type(self.bmc, line)
        self.take_controller(port)
        self._port = port
        self.map_ports(
            self.ioport,
            self.ports,
            lambda offset, _width: port.read(offset),
            lambda offset, _width, value: port.write(offset, value & 0xFF),
        )
