"""An xHC as a function of PCI (xHCI 1.1, section 5.2), of PCI Express where the bus is."""

from __future__ import annotations

from qobra.machine.dma import GuestMemory
from qobra.machine.memory import Registers
from qobra.machine.pci import express
from qobra.machine.pci.device import PciDevice
from qobra.machine.pci.msix import Msi, Msix
from qobra.machine.usb.xhci.controller import MESSAGES, Xhci, XhciBus
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Int

MAX_SLOTS, MAX_INTERRUPTERS = 64, 16
_MAX_PORTS = 15
_SERIAL_BUS_RELEASE = 0x60
_USB_3_0 = 0x30
_MSI_OFFSET, _MSIX_OFFSET, _EXPRESS_OFFSET = 0x70, 0x90, 0xA0
_SIZE, _PENDING = 0x4000, 0x3800


class PciXhci(PciDevice):
    """The controller and its bus. Models say which interrupts by message there are."""

    type_name = "pci-xhci"
    abstract = True
    interfaces = plugs_into = ("pci-express-device", "conventional-pci-device")
    category = "USB"
    class_id = 0x0C03
    prog_if = 0x30
    interrupt_pin = 1

    p2 = Int(4, type="uint32")
    p3 = Int(4, type="uint32")

    vmstate = VmState(part("_msix", "controller"), partial=True)

    slot_count = MAX_SLOTS
    interrupters = MAX_INTERRUPTERS
    has_msi = False
    has_msix = True
    firmware: int | None = None

    @property
    def stream_limit(self) -> int:
        """The most streams that an endpoint can have; 0 for none."""
        return 0

    @property
    def is_express(self) -> bool:
        return bool(self.pci_bus.implements("PCIE"))

    def realize(self) -> None:
        self.put(_SERIAL_BUS_RELEASE, 1, _USB_3_0)
        bus = XhciBus(self.tree)
        self.add_bus(bus)
        self._msi = Msi(self, self.interrupters, offset=_MSI_OFFSET) if self.has_msi else None
        if self.is_express:
            kind = express.INTEGRATED if self.pci_bus.parent_bridge is None else express.ENDPOINT
            start = express.add_capability(self, kind, offset=_EXPRESS_OFFSET, reports_errors=False)
            express.add_link(self, start)
        self._msix: Msix | None = None
        if self.has_msix:
            self._msix = Msix(
                self,
                self.interrupters,
                bar=0,
                offset=_MSIX_OFFSET,
                own_bar=False,
                table_offset=MESSAGES,
                pending_offset=_PENDING,
            )
        for name in ("p2", "p3"):
            self.values[name] = min(self.get(name), _MAX_PORTS)
        self.controller = Xhci(
            bus,
            GuestMemory(self.board.memory, self.may_master),
            self.board.clock,
            ports=(self.p2, self.p3),
            slot_count=self.slot_count,
            interrupters=self.interrupters,
            message=self._message,
            pin=self.set_pin,
            firmware=self.firmware,
            streams=self.stream_limit,
        )
        self.add_bar(0, Registers("xhci", _SIZE, self._read, self._write, valid=(1, 8), impl=(4, 4)), wide=True)

    def unrealize(self) -> None:
        self.controller.close()
        super().unrealize()

    def reset(self) -> None:
        super().reset()
        if self._msi is not None:
            self._msi.reset()
        if self._msix is not None:
            self._msix.reset()
        self.controller.reset()

    def state_loaded(self) -> None:
        super().state_loaded()
        self.controller.go_on()

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        if self._msi is not None:
            self._msi.config_written(offset, width)
        if self._msix is not None:
            self._msix.config_written(offset, width)

    def _message(self, number: int) -> bool:
        if self._msix is not None and self._msix.enabled:
            self._msix.notify(number)
        elif self._msi is not None and self._msi.enabled:
            self._msi.notify(number)
        else:
            return False
        return True

    def _read(self, offset: int, _width: int) -> int:
        if offset >= MESSAGES:
            value = self._msix.read(offset & ~3, 4) if self._msix is not None else 0
        else:
            value = self.controller.read(offset & ~3)
        return value >> 8 * (offset & 3)

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset & 3:
            return
        if offset < MESSAGES:
            self.controller.write(offset, value & 0xFFFFFFFF)
        elif self._msix is not None:
            self._msix.write(offset, 4, value & 0xFFFFFFFF)
