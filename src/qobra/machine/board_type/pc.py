"""``pc``: the PC of 1996, i440FX and PIIX, as every x86 operating system knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.machine import pc_isa
from qobra.machine.device.i440fx import I440Fx, I440FxHost, Piix3
from qobra.machine.device.ioapic import IoApic
from qobra.machine.device.piix3_usb_uhci import Piix3UsbUhci
from qobra.machine.device.piix4_pm import Piix4Pm
from qobra.machine.pc import OLD_QEMU64, PcBoard
from qobra.machine.versions import register_versions

if TYPE_CHECKING:
    from qobra.machine.acpi_tables.dsdt import Layout


_SMBUS_PORTS, _CPU_HOTPLUG_PORT = 0xB100, 0xAF00


class PcI440Fx(PcBoard):
    """Standard PC (i440FX + PIIX, 1996)."""

    description = "Standard PC (i440FX + PIIX, 1996)"
    default_drives = ("cdrom", "floppy", "sd")
    floppies = True
    usb_supported = True
    default_nic = "e1000"
    hpet_lines = 1 << 2

    def low_memory_limit(self) -> int:
        limit = self.max_ram_below_4g or 0xE0000000
        return min(limit, 0xC0000000) if self.ram_size >= limit else limit

    def build(self) -> None:
        self.build_cpus()
        self.build_memory()
        host = I440FxHost(self.tree)
        self.place(host, "i440fx")
        bus = host.root
        self.pci_root = bus
        self._function(I440Fx(self.tree), 0)
        piix3 = Piix3(self.tree)
        piix3.values["multifunction"] = True
        self._function(piix3, 1 << 3)
        pc_isa.build(self, piix3.isa)
        ioapic = IoApic(self.tree)
        self.place(ioapic, "ioapic", parent=host)
        self.ioapic = ioapic
        self.build_fw_cfg()
        self.build_graphics()
        self.build_ide("piix3-ide", 1 << 3 | 1)
        if self.usb:
            self._function(Piix3UsbUhci(self.tree), 1 << 3 | 2)
        self.power = self.power_manager = Piix4Pm(self.tree)
        self.power.smb_io_base = _SMBUS_PORTS
        self._function(self.power, 1 << 3 | 3)
        self.build_memory_eeproms(self.power.smbus)
        self.build_cpu_hotplug(_CPU_HOTPLUG_PORT, self.power.acpi.raise_gpe)
        self.build_memory_slots(self.power.acpi.raise_gpe)

    def _function(self, device: Any, devfn: int) -> None:
        device.values["addr"] = devfn
        self.place(device, bus=self.pci_root)

    def acpi_layout(self) -> Layout:
        from qobra.machine.acpi_tables.dsdt import Layout

        return Layout(
            express=False,
            events=0xAFE0,
            events_length=4,
            enable=0xF1,
            disable=0xF0,
            isa_place=1 << 16,
            links=(0x60,),
            hotplug=self.power.hotplug,
            hotplug_base=0xAE00,
        )

    def bridge_added(self, bus: Any) -> None:
        if not self.ready and self.power.acpi_hotplug:
            self.power.hotplug.manage(bus)


register_versions(PcI440Fx, "pc-i440fx", "pc", {"6.0": OLD_QEMU64}, default_for="x86_64")
