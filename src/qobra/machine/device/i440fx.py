"""The chipset of the ``pc`` board: i440FX (memory and PCI host) and PIIX3 (ISA bridge)."""

from __future__ import annotations

from typing import Any

from qobra.machine.devices import registry
from qobra.machine.isa import IsaBus
from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.bus import PciBus
from qobra.machine.pci.device import PciDevice
from qobra.machine.pci.host import ConfigPorts
from qobra.machine.qdev import SysBusDevice
from qobra.machine.vmstate import Field, Number, NumberSet, VmState, listed, part, u8
from qobra.object.property import Size

_ROW_BOUNDARY = 0x57
_PAM = 0x59
_PIRQ_ROUTE = 0x60
_PIIX3_RESET = {
    0x4C: b"\x4d",
    0x4E: b"\x03\0",
    _PIRQ_ROUTE: b"\x80\x80\x80\x80",
    0x69: b"\x02",
    0x70: b"\x80",
    0x76: b"\x0c\x0c\x02\0",
    0x80: b"\0",
    0x82: b"\0",
    0xA0: b"\x08",
    0xA2: bytes(6),
    0xA8: b"\x0f",
    0xAA: bytes(3),
    0xAE: b"\0",
}
"""What a reset sets, in configuration space; all else stays as the guest has it."""


@registry.register("i440FX-pcihost")
class I440FxHost(SysBusDevice):
    """The host bridge with the root bus ``pci.0``."""

    type_name = "i440FX-pcihost"
    ancestors = {"pci-host-bridge": ()}
    architectures = frozenset(("x86_64",))

    pci_hole64_size = Size(1 << 31)

    vmstate = VmState(part("_ports"))

    def realize(self) -> None:
        bus = PciBus(self.tree)
        bus.memory, bus.ports = self.board.memory, self.board.ports
        self.add_bus(bus)
        self.root = bus
        self._ports = ConfigPorts(self.board.ports, bus)

    def reset(self) -> None:
        self._ports.address = 0


@registry.register("i440FX")
class I440Fx(PciDevice):
    """The memory controller: the PAM registers decide what shows between 640 KiB and 1 MiB."""

    type_name = "i440FX"
    architectures = frozenset(("x86_64",))
    pluggable = False
    hotpluggable_class = False
    vendor_id = regs.INTEL
    device_id = 0x1237
    revision = 2
    class_id = 0x0600

    vmstate = VmState()

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        if offset < _PAM + 7 and offset + width > _PAM:
            board: Any = self.board
            board.shadow.set(self.config[_PAM : _PAM + 7])

    def reset(self) -> None:
        super().reset()
        self.config[_PAM : _PAM + 7] = bytes(7)
        board: Any = self.board
        # Where the memory of the first bank ends, in units of 8 MiB.
        self.put(_ROW_BOUNDARY, 1, min(board.ram_size >> 23, 0xFF))
        self.put(0x72, 1, 0x02)
        board.shadow.set(bytes(7))

    def state_loaded(self) -> None:
        super().state_loaded()
        board: Any = self.board
        board.shadow.set(self.config[_PAM : _PAM + 7])


@registry.register("PIIX3")
class Piix3(PciDevice):
    """The ISA bridge: routes the four PCI lines to ISA lines, and has the reset register at port 0xcf9."""

    type_name = "PIIX3"
    ancestors = {"pci-piix3": ("acpi-dev-aml-interface", "conventional-pci-device")}
    architectures = frozenset(("x86_64",))
    pluggable = False
    hotpluggable_class = False
    vendor_id = regs.INTEL
    device_id = 0x7000
    class_id = 0x0601

    vmstate = VmState(
        listed("_levels", kind=Number(1, maximum=1)), Field("_routed", NumberSet(16)), u8("_reset_control")
    )

    def realize(self) -> None:
        self.put(regs.STATUS, 2, 0x0200)
        self.isa = IsaBus(self.tree)
        self.add_child("isa.0", self.isa)
        self._levels = [0, 0, 0, 0]
        self._reset_control = 0
        self.pci_bus.line_handler = self._set_line
        region = Registers("piix3-reset-control", 1, lambda _o, _w: self._reset_control, self._write_reset)
        self.board.ports.map(0xCF9, region, priority=1)
        self._reset_routes()

    def _reset_routes(self) -> None:
        for offset, values in _PIIX3_RESET.items():
            self.config[offset : offset + len(values)] = values

    def reset(self) -> None:
        super().reset()
        self._reset_routes()
        self._reset_control = 0
        self._route()

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        if offset < _PIRQ_ROUTE + 4 and offset + width > _PIRQ_ROUTE:
            self._route()

    def _set_line(self, number: int, level: int) -> None:
        self._levels[number] = level
        self._route()

    def _route(self) -> None:
        high: dict[int, int] = {}
        for number, level in enumerate(self._levels):
            route = self.config[_PIRQ_ROUTE + number]
            if route < 16:
                high[route] = high.get(route, 0) | level
        for route in self._routed - set(high):
            self.isa.lines[route].set(0)
        for route, level in high.items():
            self.isa.lines[route].set(level)
        self._routed = set(high)

    _routed: set[int] = set()

    def _write_reset(self, _offset: int, _width: int, value: int) -> None:
        if value & 4:
            self.machine.run_state.request_reset("guest-reset")
        self._reset_control = value & 2
