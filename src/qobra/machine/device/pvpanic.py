"""``pvpanic``: the panic device at a port of the ISA bus."""

from __future__ import annotations

from qobra.machine import pvpanic
from qobra.machine.devices import registry
from qobra.machine.isa import IsaDevice
from qobra.machine.vmstate import VmState
from qobra.object.property import Int


@registry.register("pvpanic")
class Pvpanic(IsaDevice):
    """One byte at port 0x505."""

    type_name = "pvpanic"
    interfaces = ("acpi-dev-aml-interface",)
    category = "Misc"

    ioport = Int(0x505, type="uint16")
    events = Int(pvpanic.ALL_EVENTS, type="uint8")

    vmstate = VmState()

    def realize(self) -> None:
        self.map_ports(
            self.ioport,
            1,
            lambda _offset, _width: int(self.events),
            lambda _offset, _width, value: pvpanic.write(self.machine, self.events, value),
        )
