"""The chipset of the ``q35`` board: the Q35 memory controller hub, which is the PCI Express host."""

from __future__ import annotations

from typing import Any

from qobra.machine.devices import registry
from qobra.machine.memory import Mapping
from qobra.machine.pci import regs
from qobra.machine.pci.bus import PcieBus
from qobra.machine.pci.device import PciDevice
from qobra.machine.pci.host import ConfigPorts, Ecam
from qobra.machine.qdev import SysBusDevice
from qobra.machine.smram import ESMRAMC, EXTENDED_SIZE, SMBASE, Smram
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Bool, Int, Size

_FIRST_CHIPSET_SLOT = 25
_PAM = 0x90
_PCIEXBAR = 0x60
_QUERY_SIZE = 0xFFFF


class Q35Bus(PcieBus):
    """The root bus: the slots of the chipset's own functions use the first four lines, all others the second four."""

    type_name = "PCIE"

    def route(self, device: PciDevice, pin: int) -> int:
        return pin if device.slot >= _FIRST_CHIPSET_SLOT else 4 + (pin + device.slot) % 4


@registry.register("q35-pcihost")
class Q35Host(SysBusDevice):
    """The host bridge with the root bus ``pcie.0``."""

    type_name = "q35-pcihost"
    ancestors = {"pcie-host-bridge": (), "pci-host-bridge": ()}
    architectures = frozenset(("x86_64",))

    pci_hole64_size = Size(1 << 35)

    vmstate = VmState(part("_ports"))

    def realize(self) -> None:
        bus = Q35Bus(self.tree)
        bus.memory, bus.ports = self.board.memory, self.board.ports
        self.add_child("pcie.0", bus)
        self.root = bus
        self._ports = ConfigPorts(self.board.ports, bus)

    def reset(self) -> None:
        self._ports.address = 0


@registry.register("mch")
class Mch(PciDevice):
    """The memory controller: PAM registers, the memory of system management mode, the base of configuration space."""

    type_name = "mch"
    architectures = frozenset(("x86_64",))
    pluggable = False
    hotpluggable_class = False
    vendor_id = regs.INTEL
    device_id = 0x29C0
    class_id = 0x0600

    extended_tseg_mbytes = Int(16, type="uint16")
    smbase_smram = Bool(True)

    vmstate = VmState()

    def realize(self) -> None:
        board: Any = self.board
        self._smram = Smram(self, board, at_default_base=self.smbase_smram, extended_mib=self.extended_tseg_mbytes)
        self._ecam: Mapping | None = None
        self._ecam_buses = 0
        self._fill()

    def _fill(self) -> None:
        self.put(_PCIEXBAR, 8, 0xB0000000)
        self.config[_PAM : _PAM + 7] = bytes(7)
        self.put(EXTENDED_SIZE, 2, self.extended_tseg_mbytes)
        self._smram.reset()

    def reset(self) -> None:
        super().reset()
        self._fill()
        self._place_ecam()
        board: Any = self.board
        board.shadow.set(bytes(7))

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        if offset < _PAM + 7 and offset + width > _PAM:
            board: Any = self.board
            board.shadow.set(self.config[_PAM : _PAM + 7])
        if offset <= ESMRAMC and offset + width > SMBASE:
            inside = offset <= SMBASE < offset + width
            self._smram.written(value >> 8 * (SMBASE - offset) & 0xFF if inside else None)
        if self.extended_tseg_mbytes and self.word(EXTENDED_SIZE) == _QUERY_SIZE:
            self.put(EXTENDED_SIZE, 2, self.extended_tseg_mbytes)
        if offset < _PCIEXBAR + 8 and offset + width > _PCIEXBAR:
            self._place_ecam()

    def _place_ecam(self) -> None:
        value = self.dword(_PCIEXBAR) | self.dword(_PCIEXBAR + 4) << 32
        buses = {0: 256, 2: 128, 4: 64}.get(value & 6, 0)
        if self._ecam is not None and (not value & 1 or buses != self._ecam_buses):
            self._ecam.remove()
            self._ecam = None
        if not value & 1 or not buses:
            return
        base = value & ((1 << 36) - 1) & ~((buses << 20) - 1)
        if self._ecam is None:
            self._ecam_buses = buses
            self._ecam = self.board.memory.map(base, Ecam("pcie-mmcfg-mmio", self.pci_bus, buses))
        else:
            self._ecam.place(base)

    def state_loaded(self) -> None:
        super().state_loaded()
        self._place_ecam()
        self._smram.follow()
        board: Any = self.board
        board.shadow.set(self.config[_PAM : _PAM + 7])
