"""``sdhci-pci``: a standard SD host controller as a PCI function (SD Host Controller Specification 3.00, annex)."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.sd.bus import SdhciBus
from qobra.machine.sd.host import Host
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Int


@registry.register("sdhci-pci")
class SdhciPci(PciDevice):
    """The controller with one slot, ``sd-bus``."""

    type_name = "sdhci-pci"
    category = "Storage"
    vendor_id = regs.RED_HAT
    device_id = 0x0007
    class_id = 0x0805
    prog_if = 0x01
    interrupt_pin = 1

    sd_spec_version = Int(2, type="uint8")
    capareg = Int(0x057834B4, type="uint64")
    maxcurr = Int(0, type="uint64")

    vmstate = VmState(part("host"))

    def state_blocked(self) -> str | None:
        return "a transfer is under way" if self.host.busy else None

    def realize(self) -> None:
        if self.sd_spec_version not in (2, 3):
            raise QobraError("Only Spec v2/v3 are supported")
        _check(self.capareg, self.sd_spec_version)
        bus = SdhciBus(self.tree)
        self.add_bus(bus, "sd-bus")
        memory = GuestMemory(self.board.memory, self.may_master)
        self.host = Host(
            bus,
            memory,
            self.set_pin,
            capabilities=self.capareg,
            maxima=self.maxcurr,
            version=self.sd_spec_version,
        )
        self.add_bar(0, Registers("sdhci", 256, self.host.read, self.host.write, valid=(1, 4)))

    def reset(self) -> None:
        super().reset()
        self.host.reset()


def _check(capabilities: int, version: int) -> None:
    """Raise QobraError if the register (2.2.26) says what a controller of that version cannot be."""
    if version == 3 and capabilities >> 30 & 3:
        raise QobraError("slot-type not supported")
    if version == 2:
        # MHz or kHz in the first field; 0 leaves it open.
        for name, value in (("timeout", capabilities & 0x3F), ("base", capabilities >> 8 & 0xFF)):
            if value and not 10 <= value <= 63:
                raise QobraError(f"SD {name} clock frequency can have value 0 or in range 10-63 only")
    if capabilities >> 16 & 3 == 3:
        raise QobraError("block size can be 512, 1024 or 2048 only")
