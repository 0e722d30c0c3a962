"""The standard hot-plug controller of conventional bridges (PCI-SIG SHPC 1.0): slots, commands, events.

The working register set is memory behind a base address of the bridge, and is reached through its capability too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.memory import Registers
from qobra.machine.vmstate import VmState, raw

if TYPE_CHECKING:
    from qobra.machine.pci.bridge import PciBridge
    from qobra.machine.pci.device import PciDevice
    from qobra.machine.pci.msix import Msi

CAPABILITY = 0x0C
SIZE = 0x100
_FIRST, _COUNT = 1, 31
_SLOTS_AT_33, _CONFIGURATION, _BUS, _PROGRAMMING = 0x04, 0x0C, 0x10, 0x13
_COMMAND, _TARGET, _STATUS, _LOCATOR, _INTERRUPTS, _SLOTS = 0x14, 0x15, 0x16, 0x18, 0x20, 0x24
_END = _SLOTS + 4 * _COUNT

_HAS_BUTTON, _HAS_LATCH, _NUMBERS_GO_UP = 1 << 31, 1 << 30, 1 << 29
_INVALID_COMMAND = 4
_MASKED, _COMMAND_MASKED, _COMMAND_DONE = 1 << 0, 1 << 2, 1 << 16
_POWERED, _ENABLED, _DISABLED = 1, 2, 3
_ON, _OFF = 1, 3
_LATCH_OPEN, _EMPTY = 1 << 8, 3 << 10
_PRESENCE_CHANGED, _BUTTON, _LATCH_CHANGED = 1 << 16, 1 << 18, 1 << 19
_EVENTS, _EVENTS_SHIFT = 0x1F, 16
_MASKS_SHIFT = 24
_PENDING = 0x80


class Shpc:
    """The controller of ``bridge``, with slots 1 to 31 of the bus behind it; it signals by ``msi`` or by pin."""

    vmstate = VmState(raw("_registers"))

    def __init__(self, bridge: PciBridge, *, bar: int) -> None:
        self._bridge = bridge
        self.msi: Msi | None = None
        self._signalled = False
        self._registers = bytearray(_END)
        self._writable = bytearray(_END)
        self._clear_by_one = bytearray(_END)
        self._writable[_COMMAND : _COMMAND + 2] = b"\xff\x1f"
        self._writable[_INTERRUPTS] = 0x0F
        self._clear_by_one[_INTERRUPTS + 2] = 0x03
        for number in range(_COUNT):
            self._writable[_SLOTS + 4 * number + 3] = 0x7F
            self._clear_by_one[_SLOTS + 4 * number + 2] = _EVENTS
        start = self._capability = bridge.add_capability(CAPABILITY, 8)
        bridge.writable[start + 2] = 0xFF
        bridge.writable[start + 4 : start + 8] = b"\xff" * 4
        bridge.add_bar(bar, Registers("shpc-mmio", SIZE, self._read, self._write), wide=True)
        bus = bridge.secondary
        bus.hotplug = True
        bus.plug_handler, bus.unplug_handler, bus.slot_check = self._plugged, self._request_unplug, check_slot

    @property
    def window(self) -> int:
        """Where in configuration space the window onto the registers is."""
        return self._capability + 4

    def reset(self) -> None:
        """As after power-on: slots with a device are on."""
        self._registers[:] = bytes(_END)
        self._put(_SLOTS_AT_33, 4, _COUNT)
        self._put(_CONFIGURATION, 4, _HAS_BUTTON | _HAS_LATCH | _NUMBERS_GO_UP | 1 << 16 | _FIRST << 8 | _COUNT)
        self._registers[_PROGRAMMING] = 1
        self._registers[_INTERRUPTS] = 0x0F
        filled = {device.slot for device in self._bridge.secondary.functions.values() if device.realized}
        for slot in range(_FIRST, _FIRST + _COUNT):
            state = _ENABLED | _ON << 2 if slot in filled else _DISABLED | _OFF << 2 | _LATCH_OPEN | _EMPTY
            self._put(_slot_at(slot), 4, 0x7F << _MASKS_SHIFT | state)
        self._update()

    # -- registers

    def _get(self, offset: int, width: int) -> int:
        return int.from_bytes(self._registers[offset : offset + width], "little")

    def _put(self, offset: int, width: int, value: int) -> None:
        self._registers[offset : offset + width] = value.to_bytes(width, "little")

    def _read(self, offset: int, width: int) -> int:
        return self._get(offset, width) if offset + width <= _END else 0

    def _write(self, offset: int, width: int, value: int) -> None:
        if offset + width > _END:
            return
        for at in range(offset, offset + width):
            byte, mask = value & 0xFF, self._writable[at]
            value >>= 8
            self._registers[at] = self._registers[at] & ~mask | byte & mask
            self._registers[at] &= ~(byte & self._clear_by_one[at]) & 0xFF
        if offset < _COMMAND + 2 and offset + width > _COMMAND:
            self._run_command()
        self._update()

    def config_written(self, offset: int, width: int) -> None:
        """The guest wrote to configuration space: the capability is a window onto the registers."""
        start = self._capability
        if offset < start + 8 and offset + width > start + 4:
            select = self._bridge.config[start + 2]
            self._write(4 * select, 4, self._bridge.dword(start + 4))

    def config_value(self) -> int:
        """What the window of the capability shows."""
        return self._read(4 * self._bridge.config[self._capability + 2], 4)

    # -- commands

    def _run_command(self) -> None:
        code, target = self._registers[_COMMAND], self._registers[_TARGET] & 0x1F
        self._put(_STATUS, 2, 0)
        if code < 0x40:
            if not _FIRST <= target < _FIRST + _COUNT:
                self._put(_STATUS, 2, _INVALID_COMMAND)
            else:
                self._operate(target, code & 3, code >> 2 & 3, code >> 4 & 3)
        elif code < 0x48:
            self._registers[_BUS] = code & 7
        elif code in (0x48, 0x49):
            # All slots at once, which is for a bus on which none is in use.
            slots = range(_FIRST, _FIRST + _COUNT)
            if any(self._registers[_slot_at(slot)] & 3 == _ENABLED for slot in slots):
                self._put(_STATUS, 2, _INVALID_COMMAND)
            else:
                for slot in slots:
                    self._operate(slot, _POWERED if code == 0x48 else _ENABLED, _ON, _OFF)
        else:
            self._put(_STATUS, 2, _INVALID_COMMAND)
        self._registers[_INTERRUPTS + 2] |= _COMMAND_DONE >> 16

    def _operate(self, slot: int, state: int, power: int, attention: int) -> None:
        at = _slot_at(slot)
        before = self._registers[at]
        if state == _POWERED and before & 3 == _ENABLED:
            self._put(_STATUS, 2, _INVALID_COMMAND)  # the bus must be let go of first
            return
        after = before
        for value, shift in ((state, 0), (power, 2), (attention, 4)):
            if value:  # 0: as it is
                after = after & ~(3 << shift) | value << shift
        self._registers[at] = after
        released = after & 0xF == _DISABLED | _OFF << 2
        if released and before & 3 not in (0, _DISABLED):
            self._eject(slot)

    def _eject(self, slot: int) -> None:
        for device in list(self._bridge.secondary.functions.values()):
            if device.slot == slot:
                device.unparent()
        at = _slot_at(slot)
        self._put(at, 4, self._get(at, 4) | _LATCH_OPEN | _EMPTY | _LATCH_CHANGED | _PRESENCE_CHANGED)

    # -- devices come and go

    def _plugged(self, device: PciDevice) -> None:
        at = _slot_at(device.slot)
        value = self._get(at, 4) & ~(_LATCH_OPEN | _EMPTY)
        self._put(at, 4, value | _BUTTON | _LATCH_CHANGED | _PRESENCE_CHANGED)
        self._update()

    def _request_unplug(self, device: PciDevice) -> None:
        at = _slot_at(device.slot)
        self._put(at, 4, self._get(at, 4) | _BUTTON)
        if self._registers[at] & 0xF == _DISABLED | _OFF << 2:
            self._eject(device.slot)
        self._update()

    # -- interrupts

    def _update(self) -> None:
        locator, interrupts = 0, self._get(_INTERRUPTS, 4)
        for slot in range(_FIRST, _FIRST + _COUNT):
            value = self._get(_slot_at(slot), 4)
            if value >> _EVENTS_SHIFT & ~(value >> _MASKS_SHIFT) & _EVENTS:
                locator |= 1 << slot
        if interrupts & _COMMAND_DONE and not interrupts & _COMMAND_MASKED:
            locator |= 1
        self._put(_LOCATOR, 4, locator)
        pending = bool(locator) and not interrupts & _MASKED
        flags = self._bridge.config[self._capability + 3] & ~_PENDING
        self._bridge.config[self._capability + 3] = flags | (_PENDING if pending else 0)
        if self.msi is not None and self.msi.enabled:
            if pending and not self._signalled:
                self.msi.notify()
            self._bridge.set_pin(0)
        else:
            self._bridge.set_pin(int(pending))
        self._signalled = pending


def _slot_at(slot: int) -> int:
    return _SLOTS + 4 * (slot - _FIRST)


def check_slot(device: PciDevice) -> None:
    """Whether there is such a slot. Raises QobraError."""
    if not _FIRST <= device.slot < _FIRST + _COUNT:
        raise QobraError(
            f"Unsupported PCI slot {device.slot} for standard hotplug controller. "
            f"Valid slots are between {_FIRST} and {_FIRST + _COUNT - 1}."
        )
