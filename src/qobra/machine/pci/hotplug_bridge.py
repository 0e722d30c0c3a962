"""Bridges to conventional PCI with the standard hot-plug controller."""

from __future__ import annotations

from qobra.machine.pci import regs
from qobra.machine.pci.bridge import PciBridge
from qobra.machine.pci.msix import Msi
from qobra.machine.pci.shpc import Shpc
from qobra.machine.vmstate import VmState, part
from qobra.object.property import Enum


class HotplugBridge(PciBridge):
    """A bridge whose slots have a controller, which signals by message or by pin."""

    abstract = True
    interrupt_pin = 1
    shpc = True
    """Whether there is a controller. Otherwise ACPI alone does the hot-plug, and nothing interrupts."""

    msi = Enum("OnOffAuto", ("auto", "on", "off"), "auto")

    vmstate = VmState(part("_shpc"), partial=True)

    def realize(self) -> None:
        self.realize_bridge(self.user_id)
        self._shpc = Shpc(self, bar=0) if self.shpc else None
        if self._shpc is None:
            self.put(regs.INTERRUPT_PIN, 1, 0)
        self.add_capabilities()
        self._msi = Msi(self, 1, maskable=True) if self.shpc and self.msi != "off" else None
        if self._shpc is not None:
            self._shpc.msi = self._msi
        self.board.bridge_added(self.secondary)

    def add_capabilities(self) -> None:
        """Add what the model has between the capabilities of the controller and of messages."""
        raise NotImplementedError

    def reset(self) -> None:
        super().reset()
        if self._msi is not None:
            self._msi.reset()
        if self._shpc is not None:
            self._shpc.reset()

    def config_read(self, offset: int, width: int) -> int:
        if self._shpc is not None:
            self.put(self._shpc.window, 4, self._shpc.config_value())
        return super().config_read(offset, width)

    def config_write(self, offset: int, width: int, value: int) -> None:
        if self._shpc is not None:
            self.put(self._shpc.window, 4, self._shpc.config_value())
        super().config_write(offset, width, value)
        if self._shpc is not None:
            self._shpc.config_written(offset, width)
