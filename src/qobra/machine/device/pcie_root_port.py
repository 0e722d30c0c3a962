"""``pcie-root-port``: a port of the root complex, with one slot behind it."""

from __future__ import annotations

import errno
from typing import Any

from qobra.errors import QobraError
from qobra.machine.board import find_devices
from qobra.machine.devices import registry
from qobra.machine.pci import express, regs
from qobra.machine.pci.bridge import PciBridge
from qobra.machine.pci.bus import PciBus, PcieBus
from qobra.machine.pci.device import PciDevice
from qobra.machine.pci.msix import Msix
from qobra.machine.qdev import Device
from qobra.machine.vmstate import VmState, flag, part
from qobra.object.property import Bool, Enum, Int, Size

_SLOT_ATTENTION, _SLOT_POWER, _SLOT_PRESENCE = 0x01, 0x02, 0x08
_ERROR_REPORTING = 0x100
_STATUS_PRESENT = 0x40
_LINK_UP = 0x2000
_CONTROL_FILLED, _CONTROL_EMPTY = 0x01C0, 0x07C0
"""Indicators off; power and its indicator on, or off."""
_CONTROL_POWER_OFF, _CONTROL_HOTPLUG_INTERRUPT = 0x400, 0x20
_SPEEDS = {"2_5": 1, "5": 2, "8": 3, "16": 4}


class SlotBus(PcieBus):
    """The link behind a port: one device, eight functions."""

    type_name = "PCIE"
    slots = 1
    hotplug = True

    @property
    def full(self) -> bool:
        return False

    def plugged(self, device: Device) -> None:
        self.parent_bridge.filled(device)
        super().plugged(device)

    def unplugged(self, device: Device) -> None:
        super().unplugged(device)
        self.parent_bridge.update_link()


class PciePort(PciBridge):
    """What ports have in common: the slot, and hot-plug by its registers (PCI Express Base 3.0, section 6.7)."""

    type_name = "pcie-slot"
    ancestors = {"pcie-port": ()}
    interfaces = ("hotplug-handler",)
    abstract = True
    always_express = True
    secondary_type: type[PciBus] = SlotBus
    port_type = express.ROOT_PORT
    is_port = True

    port = Int(0, type="uint8")
    chassis = Int(0, type="uint8")
    slot_number = Int(0, type="uint16", name="slot")
    hotplug = Bool(True)
    x_speed = Enum("PCIELinkSpeed", tuple(_SPEEDS), "16", name="x-speed")
    x_width = Enum("PCIELinkWidth", ("1", "2", "4", "8", "12", "16", "32"), "32", name="x-width")

    vmstate = VmState(flag("_ejecting"), partial=True)

    @property
    def slot(self) -> int:
        return self.devfn >> 3

    def check_place(self) -> None:
        """Raise QobraError if another port has the number of this one's slot in its chassis."""
        ports: Any = find_devices(self.board, "pcie-port")
        if any((port.chassis, port.slot_number) == (self.chassis, self.slot_number) for port in ports):
            raise QobraError(f"Can't add chassis slot, error -{errno.EBUSY}")

    def realize_port(self, offset: int) -> None:
        """The express capability with its slot at ``offset``, and the way devices come and go."""
        start = express.add_capability(self, self.port_type, offset=offset, slot=True)
        self._express = start
        speed = _SPEEDS[self.x_speed]
        express.add_link(self, start, speed=speed, width=int(self.x_width), port=self.port)
        capabilities = self.dword(start + express.LINK_CAPABILITIES)
        self.put(start + express.LINK_CAPABILITIES, 4, capabilities | express.LINK_ACTIVE_REPORTING)
        slots = self.slot_number << 19 | 0x0002007B
        if not self.hotplug:
            slots &= ~0x60
        self.put(start + express.SLOT_CAPABILITIES, 4, slots)
        self.put(start + express.SLOT_CONTROL, 2, _CONTROL_EMPTY)
        self.writable[start + express.SLOT_CONTROL : start + express.SLOT_CONTROL + 2] = b"\xf9\x07"
        self.clear_by_one[start + express.SLOT_STATUS] = 0x1F
        self.writable[start + express.ROOT_CONTROL] = 0x07
        self.put(start + express.LINK_CAPABILITIES_2, 4, sum(1 << n for n in range(1, speed + 1)))
        self.put(start + express.LINK_CONTROL_2, 2, speed)
        bus: Any = self.secondary
        bus.hotplug = self.hotplug
        bus.plug_handler = self._plugged
        bus.unplug_handler = self._request_unplug
        self._pending: list[Device] = []

    @property
    def _ejecting(self) -> bool:
        # Whether the guest was asked to let go of what is in the slot.
        return bool(self._pending)

    @_ejecting.setter
    def _ejecting(self, value: bool) -> None:
        self._pending[:] = list(self.secondary.functions.values())[:1] if value else []

    @property
    def _native(self) -> bool:
        # Where ACPI does the hot-plug, the slot's own registers stand still.
        return self.secondary.plug_handler == self._plugged

    def filled(self, device: Device) -> None:
        """A device works in the slot. Where the slot's registers have no say it has power at once."""
        self.update_link()
        if device.hotplugged and not self._native:
            at = self._express + express.SLOT_CONTROL
            self.put(at, 2, self.word(at) & ~_CONTROL_POWER_OFF)

    def update_link(self) -> None:
        """Show the link as it is negotiated; to nobody, as it could be."""
        at = self._express + express.LINK_STATUS
        if self.secondary.functions:
            self.put(at, 2, 1 << 4 | 1 | (_LINK_UP if self._native else 0))
        else:
            self.put(at, 2, self.word(self._express + express.LINK_CAPABILITIES) & 0x3FF)

    def _slot_event(self, bits: int) -> None:
        at = self._express + express.SLOT_STATUS
        self.config[at] |= bits
        enabled = self.config[self._express + express.SLOT_CONTROL]
        if enabled & _CONTROL_HOTPLUG_INTERRUPT and self.config[at] & enabled & 0x1F:
            self.signal()

    def signal(self) -> None:
        """Interrupt the guest."""
        self.set_pin(1)

    def _plugged(self, device: PciDevice) -> None:
        self.config[self._express + express.SLOT_STATUS] |= _STATUS_PRESENT
        if device.function == 0:
            self._slot_event(_SLOT_PRESENCE | _SLOT_ATTENTION)

    def _request_unplug(self, device: PciDevice) -> None:
        # The guest hears of the button and turns the slot's power off when it has let go.
        control = self.word(self._express + express.SLOT_CONTROL)
        if control & _CONTROL_POWER_OFF:
            self._eject(device)
            return
        if control >> 8 & 3 == 2:
            raise QobraError("Hot-unplug failed: guest is busy (power indicator blinking)")
        device.unplug_pending = True
        self._pending.append(device)
        self._slot_event(_SLOT_ATTENTION)

    def _eject(self, device: Device) -> None:
        for function in list(self.secondary.functions.values()):
            function.unparent()
        self.config[self._express + express.SLOT_STATUS] &= ~(_STATUS_PRESENT | _SLOT_ATTENTION)
        self._slot_event(_SLOT_PRESENCE)
        self._pending.clear()

    def config_write(self, offset: int, width: int, value: int) -> None:
        at = self._express + express.SLOT_CONTROL
        before = self.word(at)
        super().config_write(offset, width, value)
        after = self.word(at)
        if after & _CONTROL_POWER_OFF and not before & _CONTROL_POWER_OFF and self._pending:
            self._eject(self._pending[0])

    def reset(self) -> None:
        super().reset()
        if self._pending:
            self._eject(self._pending[0])
        start = self._express
        express.reset_controls(self, start)
        filled = bool(self.secondary.functions)
        self.put(start + express.SLOT_CONTROL, 2, _CONTROL_FILLED if filled else _CONTROL_EMPTY)
        self.update_link()
        present = _STATUS_PRESENT if self._native and filled else 0
        self.put(start + express.SLOT_STATUS, 2, present)


@registry.register("pcie-root-port")
class PcieRootPort(PciePort):
    """A generic root port."""

    type_name = "pcie-root-port"
    ancestors = {"pcie-root-port-base": ("pci-express-device",)}
    plugs_into = ("pci-express-device",)
    description = "PCI Express Root Port"
    vendor_id = regs.RED_HAT
    device_id = 0x000C
    interrupt_pin = 1
    bus_type = "PCIE"

    bus_reserve = Int(0xFFFFFFFF, type="uint32")
    io_reserve = Size(0xFFFFFFFFFFFFFFFF)
    mem_reserve = Size(0xFFFFFFFFFFFFFFFF)
    pref32_reserve = Size(0xFFFFFFFFFFFFFFFF)
    pref64_reserve = Size(0xFFFFFFFFFFFFFFFF)

    vmstate = VmState(part("_msix"))

    def realize(self) -> None:
        if self.pci_bus.parent_bridge is not None:
            raise QobraError("PCIE-root ports must be plugged into the root complex's bus")
        self.check_place()
        self.realize_bridge(self.user_id)
        start = self.add_capability(regs.CAP_SSVID, 8)
        self.put(start + 4, 4, regs.RED_HAT)
        self._msix = Msix(self, 1, bar=0, offset=0x48)
        self._capability_end = 0x54
        self.realize_port(0x54)
        express.add_root_error_reporting(self, _ERROR_REPORTING)
        self.board.bridge_added(self.secondary)

    def signal(self) -> None:
        if self._msix.enabled:
            self._msix.notify(0)
        else:
            super().signal()

    def config_write(self, offset: int, width: int, value: int) -> None:
        super().config_write(offset, width, value)
        self._msix.config_written(offset, width)

    def reset(self) -> None:
        super().reset()
        self._msix.reset()
        express.reset_root_error_reporting(self, _ERROR_REPORTING)
