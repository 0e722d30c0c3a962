"""The ISA bridge of the ``q35`` board: ICH9's LPC function, with interrupt routing, ACPI and the reset register."""

from __future__ import annotations

from typing import Any

from qobra.machine.acpi import AcpiRegisters, SleepStates
from qobra.machine.acpi_pcihp import GPE_BIT, AcpiPciHotplug
from qobra.machine.devices import registry
from qobra.machine.isa import IsaBus
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.tco import Tco
from qobra.machine.vmstate import Field, Number, NumberSet, VmState, listed, part, raw, u8
from qobra.object.property import Bool, Int

_PMBASE, _ACPI_CONTROL, _PIRQ_A, _PIRQ_E, _PM_CONFIGURATION, _RCBA = 0x40, 0x44, 0x60, 0x68, 0xA0, 0xF0
_SMI_LOCK = 0x10
_HOTPLUG_BASE = 0x0CC0
_ENABLE_COMMAND, _DISABLE_COMMAND = 0x02, 0x03
_PM_REGION, _GPE_OFFSET, _TCO_OFFSET = 0x80, 0x20, 0x60
_CHIPSET_SIZE, _GENERAL_CONTROL, _NO_REBOOT = 0x4000, 0x3410, 0x20
_INTERRUPT_ROUTES, _ROUTE = range(0x3140, 0x314C, 2), 0x3210


@registry.register("ICH9-LPC")
class Ich9Lpc(SleepStates, PciDevice):
    """Function 1f.0. The eight PCI lines go to ISA lines as routed, and to lines 16 to 23 of the I/O APIC."""

    type_name = "ICH9-LPC"
    interfaces = (
        "acpi-dev-aml-interface",
        "acpi-device-interface",
        "hotplug-handler",
    )
    architectures = frozenset(("x86_64",))
    pluggable = False
    hotpluggable_class = False
    vendor_id = regs.INTEL
    device_id = 0x2918
    revision = 2
    class_id = 0x0601

    acpi_hotplug = Bool(True, name="acpi-pci-hotplug-with-bridge-support", show_default=False)
    noreboot = Bool(True)
    disable_s3 = Int(0, type="uint8", name="disable_s3", show_default=False)
    disable_s4 = Int(0, type="uint8", name="disable_s4", show_default=False)
    s4_val = Int(2, type="uint8", name="s4_val", show_default=False)

    vmstate = VmState(
        part("acpi", "hotplug", "tco"),
        raw("_apm", "_chipset"),
        listed("_levels", kind=Number(1, maximum=1)),
        Field("_routed", NumberSet(16)),
        u8("_reset_control"),
    )

    def realize(self) -> None:
        board: Any = self.board
        self.isa = IsaBus(self.tree)
        self.add_child("isa.0", self.isa)
        self._levels = [0] * 8
        self._routed: set[int] = set()
        self._reset_control = 0
        self.pci_bus.line_handler = self._set_line
        ports = board.ports
        ports.map(
            0xCF9, Registers("lpc-reset-control", 1, lambda _o, _w: self._reset_control, self._write_reset), priority=1
        )
        ports.map(0xB2, Registers("apm-io", 2, self._read_apm, self._write_apm, impl=(1, 1)))
        self._apm = bytearray(2)
        self._chipset = bytearray(_CHIPSET_SIZE)
        chipset = Registers("lpc-rcrb-mmio", _CHIPSET_SIZE, self._read_chipset, self._write_chipset)
        self._chipset_place = board.memory.map(0, chipset, priority=1, enabled=False)
        self._fill()

    def start_acpi(self) -> None:
        """The interrupt controllers are there: make the ACPI registers."""
        board: Any = self.board
        ports = board.ports
        self.acpi = AcpiRegisters(board, board.gsi[9], 16, to_disk=self.s4_val)
        self.tco = Tco(board, self._may_reboot)
        self._places = [
            (0, ports.map(0, self.acpi.events, enabled=False)),
            (4, ports.map(0, self.acpi.controls, enabled=False)),
            (8, ports.map(0, self.acpi.timer, enabled=False)),
            (_GPE_OFFSET, ports.map(0, self.acpi.general, enabled=False)),
            (_TCO_OFFSET, ports.map(0, self.tco.registers, enabled=False)),
        ]
        self.hotplug = AcpiPciHotplug(self, lambda: self.acpi.raise_gpe(GPE_BIT))
        if self.acpi_hotplug:
            ports.map(_HOTPLUG_BASE, self.hotplug.registers)

    def _fill(self) -> None:
        self.put(_PMBASE, 4, 1)
        self.writable[_PMBASE : _PMBASE + 4] = b"\x87\xff\x00\x00"
        self.config[_ACPI_CONTROL] = 0
        self.config[_PIRQ_A : _PIRQ_A + 4] = b"\x80" * 4
        self.config[_PIRQ_E : _PIRQ_E + 4] = b"\x80" * 4
        self.put(_RCBA, 4, 0)
        self._chipset[:] = bytes(_CHIPSET_SIZE)
        for offset in _INTERRUPT_ROUTES:
            self._chipset[offset : offset + 2] = _ROUTE.to_bytes(2, "little")
        self._chipset[_GENERAL_CONTROL] = _NO_REBOOT if self.noreboot else 0

    def unrealize(self) -> None:
        self.acpi.close()
        self.tco.close()
        self._chipset_place.remove()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        self._fill()
        self._reset_control = 0
        self.acpi.reset()
        self.tco.reset()
        self.hotplug.reset()
        self._place()
        self._route()

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        end = offset + width
        if offset < _ACPI_CONTROL + 1 and end > _PMBASE:
            self._place()
        if offset < _PIRQ_E + 4 and end > _PIRQ_A:
            self._route()
        if offset < _RCBA + 4 and end > _RCBA:
            self._place()
        self._lock()

    def _lock(self) -> None:
        # Once set, the lock stays.
        if self.config[_PM_CONFIGURATION] & _SMI_LOCK:
            self.writable[_PM_CONFIGURATION] &= ~_SMI_LOCK

    def _place(self) -> None:
        base = self.dword(_PMBASE) & 0xFF80
        enabled = self.config[_ACPI_CONTROL] & 0x80 or base
        for offset, mapping in self._places:
            mapping.place(base + offset if enabled else None)
        chipset = self.dword(_RCBA)
        self._chipset_place.place(chipset & ~(_CHIPSET_SIZE - 1) if chipset & 1 else None)

    # -- interrupts

    def _set_line(self, number: int, level: int) -> None:
        self._levels[number] = level
        board: Any = self.board
        if board.ioapic is not None:
            board.ioapic.gpio_in[None][16 + number].set(level)
        self._route()

    def _route(self) -> None:
        high: dict[int, int] = {}
        for number, level in enumerate(self._levels):
            route = self.config[_PIRQ_A + number] if number < 4 else self.config[_PIRQ_E + number - 4]
            if not route & 0x80:
                route &= 0x0F
                high[route] = high.get(route, 0) | level
        for route in self._routed - set(high):
            self.isa.lines[route].set(0)
        for route, level in high.items():
            self.isa.lines[route].set(level)
        self._routed = set(high)

    # -- ports, and the chipset's own registers in memory

    def _read_chipset(self, offset: int, width: int) -> int:
        return int.from_bytes(self._chipset[offset : offset + width], "little")

    def _write_chipset(self, offset: int, width: int, value: int) -> None:
        self._chipset[offset : offset + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")

    def _may_reboot(self) -> bool:
        return not self.noreboot and not self._chipset[_GENERAL_CONTROL] & _NO_REBOOT

    def _read_apm(self, offset: int, _width: int) -> int:
        return self._apm[offset]

    def _write_apm(self, offset: int, _width: int, value: int) -> None:
        self._apm[offset] = value & 0xFF
        if offset == 0 and value in (_ENABLE_COMMAND, _DISABLE_COMMAND):
            self.acpi.set_sci_enabled(value == _ENABLE_COMMAND)

    def _write_reset(self, _offset: int, _width: int, value: int) -> None:
        if value & 4:
            self.machine.run_state.request_reset("guest-reset")
        self._reset_control = value & 0x0A

    def state_loaded(self) -> None:
        super().state_loaded()
        self._lock()
        self._place()
