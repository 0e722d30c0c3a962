"""``q35``: the PC of 2009, with PCI Express: Q35 and ICH9."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.machine import pc_isa
from qobra.machine.device.ich9_lpc import Ich9Lpc
from qobra.machine.device.ich9_smb import Ich9Smb
from qobra.machine.device.ioapic import IoApic
from qobra.machine.device.q35 import Mch, Q35Host
from qobra.machine.pc import OLD_QEMU64, PcBoard
from qobra.machine.versions import register_versions

if TYPE_CHECKING:
    from qobra.machine.acpi_tables.dsdt import Layout


_CPU_HOTPLUG_PORT = 0x0CD8


class Q35(PcBoard):
    """Standard PC (Q35 + ICH9, 2009)."""

    description = "Standard PC (Q35 + ICH9, 2009)"
    max_cpus = 288
    default_nic = "e1000e"
    default_drives = ("cdrom", "sd")
    ide_units = 1
    hpet_lines = 0xFF0104
    usb_supported = True
    most_ram_below_4g = 1 << 32

    def low_memory_limit(self) -> int:
        limit = 0x80000000 if self.ram_size >= 0xB0000000 else 0xB0000000
        return min(limit, self.max_ram_below_4g or limit)

    def build(self) -> None:
        self.build_cpus()
        self.build_memory()
        host = Q35Host(self.tree)
        self.place(host, "q35")
        self.pci_root = host.root
        mch = Mch(self.tree)
        mch.values["addr"] = 0
        self.place(mch, "mch", bus=self.pci_root, parent=host)
        self.lpc = Ich9Lpc(self.tree)
        self.lpc.values["multifunction"] = True
        self._function(self.lpc, 0x1F << 3)
        self.power_manager = self.lpc
        pc_isa.build(self, self.lpc.isa)
        ioapic = IoApic(self.tree)
        self.place(ioapic, "ioapic", parent=host)
        self.ioapic = ioapic
        self.lpc.start_acpi()
        self.build_fw_cfg()
        self.build_graphics()
        self.build_cpu_hotplug(_CPU_HOTPLUG_PORT, self.lpc.acpi.raise_gpe)
        self.build_memory_slots(self.lpc.acpi.raise_gpe)
        if self.sata:
            self.build_ide("ich9-ahci", 0x1F << 3 | 2)
        if self.usb:
            self._build_usb()
        if self.smbus:
            smb = Ich9Smb(self.tree)
            smb.values["multifunction"] = True
            self._function(smb, 0x1F << 3 | 3)
            self.build_memory_eeproms(smb.smbus)

    def _build_usb(self) -> None:
        # An EHCI controller, and three for the slower devices, each at two of its ports.
        from qobra.machine.device.ich9_usb_ehci1 import Ich9UsbEhci1
        from qobra.machine.device.ich9_usb_uhci1 import Ich9UsbUhci1
        from qobra.machine.device.ich9_usb_uhci2 import Ich9UsbUhci2
        from qobra.machine.device.ich9_usb_uhci3 import Ich9UsbUhci3

        ehci = Ich9UsbEhci1(self.tree)
        ehci.values["multifunction"] = True
        self._function(ehci, 0x1D << 3 | 7)
        (bus,) = ehci.buses()
        for number, kind in enumerate((Ich9UsbUhci1, Ich9UsbUhci2, Ich9UsbUhci3)):
            companion = kind(self.tree)
            companion.values |= {"multifunction": True, "masterbus": bus.bus_name, "firstport": 2 * number}
            self._function(companion, 0x1D << 3 | number)

    def _function(self, device: Any, devfn: int) -> None:
        device.values["addr"] = devfn
        self.place(device, bus=self.pci_root)

    def acpi_layout(self) -> Layout:
        from qobra.machine.acpi_tables.dsdt import Layout

        return Layout(
            express=True,
            events=0x620,
            events_length=16,
            enable=0x02,
            disable=0x03,
            isa_place=0x1F << 16,
            links=(0x60, 0x68),
            hotplug=self.lpc.hotplug,
            hotplug_base=0x0CC0,
            ecam=0xB0000000,
        )

    def bridge_added(self, bus: Any) -> None:
        if not self.ready and self.lpc.acpi_hotplug:
            self.lpc.hotplug.manage(bus)


register_versions(
    Q35,
    "pc-q35",
    "q35",
    {
        "6.0": (("ICH9-LPC", "acpi-pci-hotplug-with-bridge-support", "off"), *OLD_QEMU64),
        "4.1": (("mch", "smbase-smram", "off"),),
    },
)
