"""Ports of PCI Express: a link behind each, and a slot with hot-plug where there is one (Base 3.0, section 6.7)."""

from __future__ import annotations

import errno
from typing import Any

from qobra.errors import QobraError
from qobra.machine.board import find_devices
from qobra.machine.pci import express
from qobra.machine.pci.bridge import PciBridge
from qobra.machine.pci.bus import PciBus, PcieBus
from qobra.machine.pci.device import PciDevice
from qobra.machine.qdev import Device
from qobra.machine.vmstate import VmState
from qobra.object.property import Bool, Int

ERROR_REPORTING = express.EXTENDED
_SLOT_ATTENTION, _SLOT_POWER, _SLOT_PRESENCE = 0x01, 0x02, 0x08
_STATUS_PRESENT = 0x40
_PATIENCE_NS = 5_000_000_000
"""A driver waits so long after the button was pressed; pressed again within that time, it lets go of nothing."""
_LINK_UP = 0x2000
_CONTROL_FILLED, _CONTROL_EMPTY = 0x01C0, 0x07C0
"""Indicators off; power and its indicator on, or off."""
_CONTROL_UNPOWERED = 0x00C0
"""Without a controller of its power a slot has it always, and no indicator for it."""
_POWER_CONTROLLER = 0x02
_CONTROL_POWER_OFF, _CONTROL_HOTPLUG_INTERRUPT, _CONTROL_INTERLOCK = 0x400, 0x20, 0x800
_CONTROL_INDICATOR_OFF = 0x300
_STATUS_COMPLETED, _STATUS_INTERLOCK, _EVENTS = 0x10, 0x80, 0x1F


class SlotBus(PcieBus):
    """The link behind a port: one device, eight functions."""

    type_name = "PCIE"
    one_slot = True
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
    """A port of any kind."""

    type_name = "pcie-port"
    abstract = True
    plugs_into = ("pci-express-device",)
    always_express = True
    is_port = True
    port_type = express.ROOT_PORT

    port = Int(0, type="uint8")

    vmstate = VmState(partial=True)


class PcieSlot(PciePort):
    """A port with a slot, in which devices come and go by its registers."""

    type_name = "pcie-slot"
    interfaces = ("hotplug-handler",)
    abstract = True
    secondary_type: type[PciBus] = SlotBus
    closes_windows = True
    chassis = Int(0, type="uint8")
    slot_number = Int(0, type="uint16", name="slot")
    hotplug = Bool(True)
    power_controller_present = Bool(True, name="power_controller_present")

    vmstate = VmState(partial=True)

    @property
    def slot(self) -> int:
        return self.devfn >> 3

    def check_place(self) -> None:
        """Raise QobraError if another port has the number of this one's slot in its chassis."""
        ports: Any = find_devices(self.board, "pcie-slot")
        if any((port.chassis, port.slot_number) == (self.chassis, self.slot_number) for port in ports):
            raise QobraError(f"Can't add chassis slot, error -{errno.EBUSY}")

    def realize_slot(self, start: int) -> None:
        """Put the slot into the express capability at ``start``, and let devices come and go."""
        self._express = start
        slots, controls = self.slot_number << 19 | 0x0002007B, 0x07F9
        if not self.hotplug:
            slots &= ~0x60
        if not self.power_controller_present:
            slots &= ~_POWER_CONTROLLER
            controls &= ~_CONTROL_POWER_OFF
        self.put(start + express.SLOT_CAPABILITIES, 4, slots)
        self._put_control(filled=False)
        self.writable[start + express.SLOT_CONTROL : start + express.SLOT_CONTROL + 2] = controls.to_bytes(2, "little")
        self.clear_by_one[start + express.SLOT_STATUS] = 0x1F
        bus: Any = self.secondary
        bus.hotplug = self.hotplug
        bus.plug_handler = self._plugged
        bus.unplug_handler = self._request_unplug

    def _put_control(self, *, filled: bool) -> None:
        control = _CONTROL_FILLED if filled else _CONTROL_EMPTY
        if not self.power_controller_present:
            control = _CONTROL_UNPOWERED
        self.put(self._express + express.SLOT_CONTROL, 2, control)

    @property
    def _native(self) -> bool:
        # Where ACPI does the hot-plug, the slot's own registers stand still.
        return self.secondary.plug_handler == self._plugged

    def filled(self, device: Device) -> None:
        """A device works in the slot. Where the slot's registers have no say it has power at once."""
        if device.hotplugged and not self._native:
            at = self._express + express.SLOT_CONTROL
            self.put(at, 2, self.word(at) & ~_CONTROL_POWER_OFF)
        self.update_link()
        self._update_power()

    def _update_power(self) -> None:
        on = not self.word(self._express + express.SLOT_CONTROL) & _CONTROL_POWER_OFF
        for function in list(self.secondary.functions.values()):
            function.set_power(on)

    def update_link(self) -> None:
        """Show the link as it is negotiated; to nobody, as it could be."""
        first = self.secondary.functions.get(0)
        could = self.word(self._express + express.LINK_CAPABILITIES)
        if first is not None and first.is_express:
            could = 1 << 4 | 1
        up = _LINK_UP if first is not None and self._native else 0
        self.put(self._express + express.LINK_STATUS, 2, (could & 0x3F0 or 1 << 4) | (could & 0xF or 1) | up)

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
        # Functions before the first one wait for it.
        if 0 in self.secondary.functions:
            self.config[self._express + express.SLOT_STATUS] |= _STATUS_PRESENT
            self._slot_event(_SLOT_PRESENCE | _SLOT_ATTENTION)

    def _request_unplug(self, device: PciDevice) -> None:
        # The guest hears of the button and turns the slot's power off when it has let go.
        control = self.word(self._express + express.SLOT_CONTROL)
        if control & _CONTROL_POWER_OFF:
            self._eject()
            # The guest has not acted on what was plugged in: there is nothing any more for it to answer.
            self.config[self._express + express.SLOT_STATUS] &= ~_SLOT_ATTENTION
            return
        if control >> 8 & 3 == 2:
            raise QobraError("Hot-unplug failed: guest is busy (power indicator blinking)")
        device.unplug_pending = True
        device.unplug_again_ns = self.board.clock.now_ns() + _PATIENCE_NS
        self._slot_event(_SLOT_ATTENTION)

    def _eject(self) -> None:
        for function in list(self.secondary.functions.values()):
            function.unparent()
        self.config[self._express + express.SLOT_STATUS] &= ~_STATUS_PRESENT
        self._slot_event(_SLOT_PRESENCE)

    def config_write(self, offset: int, width: int, value: int) -> None:
        at, status = self._express + express.SLOT_CONTROL, self._express + express.SLOT_STATUS
        before, events = self.word(at), self.config[status] & _EVENTS
        super().config_write(offset, width, value)
        if offset <= status < offset + width and value >> 8 * (status - offset) & ~events & _EVENTS:
            # Drivers clear all when they begin; what happened just before must not be lost.
            self.config[status] |= events
        if offset < at + 2 and offset + width > at:
            self._commanded(before, value << 8 * (offset - at) if offset >= at else value >> 8 * (at - offset))

    def _commanded(self, before: int, value: int) -> None:
        # A write to the control register is a command, which is done at once.
        start = self._express
        off = _CONTROL_POWER_OFF | _CONTROL_INDICATOR_OFF
        if value & _CONTROL_INTERLOCK:
            self.config[start + express.SLOT_STATUS] ^= _STATUS_INTERLOCK
        present = self.config[start + express.SLOT_STATUS] & _STATUS_PRESENT
        # Who turns a power off that cannot be has let go of the device as well.
        now = self.word(start + express.SLOT_CONTROL) | value & _CONTROL_POWER_OFF
        if present and now & off == off and before & off != off:
            self._eject()
        self._update_power()
        self._slot_event(_STATUS_COMPLETED)

    def reset(self) -> None:
        super().reset()
        for function in self.secondary.functions.values():
            function.unplug_pending = False  # the guest that was asked is no more
        start = self._express
        express.reset_controls(self, start)
        filled = bool(self.secondary.functions)
        self._put_control(filled=filled)
        self.update_link()
        present = _STATUS_PRESENT if self._native and filled else 0
        self.put(start + express.SLOT_STATUS, 2, present)
        self._update_power()

    def state_loaded(self) -> None:
        super().state_loaded()
        self._update_power()
