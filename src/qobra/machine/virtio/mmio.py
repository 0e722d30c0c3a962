"""Virtio over memory-mapped registers (virtio 1.2, section 4.2), of version 2 and of version 1 before 1.0."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from qobra.machine.devices import registry
from qobra.machine.irq import Line
from qobra.machine.memory import Registers
from qobra.machine.qdev import SysBusDevice
from qobra.machine.virtio.device import F_BAD, VirtioBus, VirtioDevice
from qobra.machine.virtio.legacy_pci import place_legacy_queue
from qobra.machine.virtio.queue import QUEUE_MAX, Queue
from qobra.machine.vmstate import Number, VmState, listed, u32
from qobra.object.property import Bool

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree

_MAGIC = 0x74726976
_VENDOR = 0x554D4551
_CONFIG = 0x100
_INT_QUEUE, _INT_CONFIG = 1, 2


class VirtioMmioBus(VirtioBus):
    """The place for a device behind the registers."""

    type_name = "virtio-mmio-bus"

    def notify_queue(self, queue: Queue) -> None:
        self._owner.interrupt(_INT_QUEUE)

    def notify_config(self) -> None:
        self._owner.interrupt(_INT_CONFIG)

    @property
    def modern(self) -> bool:
        return not self._owner.force_legacy

    @property
    def _owner(self) -> VirtioMmio:
        return cast("VirtioMmio", self.parent)


@registry.register("virtio-mmio")
class VirtioMmio(SysBusDevice):
    """One slot: 512 bytes of registers at ``base``, an interrupt line; empty until a device is plugged in."""

    type_name = "virtio-mmio"

    force_legacy = Bool(True)
    ioeventfd = Bool(True)

    base = 0

    vmstate = VmState(
        u32("_device_select", "_driver_select", "_queue_select", "_alignment", "_isr"),
        u32("_page_shift", maximum=31),
        listed("_chosen", kind=Number(4)),
    )

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.irq = Line()
        self.bus_below = VirtioMmioBus(tree)

    def realize(self) -> None:
        region = Registers("virtio-mmio", 0x200, self._read, self._write, valid=(1, 4))
        self._mapping = self.board.memory.map(self.base, region)
        self._clear()

    def unrealize(self) -> None:
        self._mapping.remove()

    def reset(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._device_select = self._driver_select = 0
        self._page_shift = self._alignment = 0
        self._chosen = [0, 0]
        self._device_was_reset()

    def _device_was_reset(self) -> None:
        # What the driver chose to look at stays, but for the queue.
        self._queue_select = 0
        self._ready_in_vain: set[int] = set()
        """Queues that the driver says are ready, but that there are not."""
        self._isr = 0
        self.irq.set(0)

    @property
    def _device(self) -> VirtioDevice | None:
        devices = self.bus_below.devices
        return cast(VirtioDevice, devices[0]) if devices and devices[0].realized else None

    def interrupt(self, cause: int) -> None:
        """Interrupt the driver. From any thread."""
        self.machine.control.post(self._interrupt, cause)

    def _interrupt(self, cause: int) -> None:
        self._isr |= cause
        self.irq.set(1)

    def _queue(self, device: VirtioDevice) -> Queue | None:
        return device.queues[self._queue_select] if self._queue_select < len(device.queues) else None

    # -- reading

    def _read(self, offset: int, width: int) -> int:
        device = self._device
        if device is None:
            # An empty slot says so by a device number of 0.
            known = {0x00: _MAGIC, 0x04: 1 if self.force_legacy else 2, 0x0C: _VENDOR}
            return known.get(offset, 0)
        if offset >= _CONFIG:
            return device.read_config_at(offset - _CONFIG, width)
        if width != 4:
            return 0
        if offset == 0x10:
            return self._features_word(device)
        queue = self._queue(device)
        if offset == 0x34:
            return QUEUE_MAX if queue is not None else 0
        if offset == 0x40 and self.force_legacy:
            return queue.descriptors >> self._page_shift & 0xFFFFFFFF if queue is not None else 0
        if offset == 0x44 and not self.force_legacy:
            return int(queue.ready if queue is not None else self._queue_select in self._ready_in_vain)
        known = {
            0x00: _MAGIC,
            0x04: 1 if self.force_legacy else 2,
            0x08: device.device_number,
            0x0C: _VENDOR,
            0x60: self._isr,
            0x70: device.status,
            # The length of a shared memory region that there is none of (virtio 1.2, 4.2.2).
            0xB0: 0xFFFFFFFF,
            0xB4: 0xFFFFFFFF,
            0xFC: device.generation,
        }
        if offset == 0xFC and self.force_legacy:
            return 0
        return known.get(offset, 0)

    def _features_word(self, device: VirtioDevice) -> int:
        if self.force_legacy:
            return device.legacy_features() & ~(1 << F_BAD) if self._device_select == 0 else 0
        return device.offered_features(modern=True) >> 32 * self._device_select & 0xFFFFFFFF

    # -- writing

    def _write(self, offset: int, width: int, value: int) -> None:
        device = self._device
        if device is None:
            return
        if offset >= _CONFIG:
            if offset - _CONFIG + width <= device.config_size:
                device.write_config(offset - _CONFIG, value.to_bytes(width, "little"))
            return
        if width != 4:
            return
        if offset == 0x14:
            self._device_select = int(value != 0)
        elif offset == 0x24:
            self._driver_select = int(value != 0)
        elif offset == 0x20:
            self._accept(device, value)
        elif offset == 0x30:
            self._queue_select = value if value < 1024 else self._queue_select
        elif offset == 0x50:
            device.kick(value & 0xFFFF)
        elif offset == 0x64:
            self._isr &= ~value
            self.irq.set(1 if self._isr else 0)
        elif offset == 0x70:
            device.write_status(value & 0xFF)
            if value & 0xFF == 0:
                self._device_was_reset()
        elif self.force_legacy and offset == 0x28:
            self._page_shift = max((value & -value).bit_length() - 1, 0)
        else:
            queue = self._queue(device)
            if queue is not None:
                self._write_queue(device, queue, offset, value)
            elif offset == 0x44 and not self.force_legacy:
                (self._ready_in_vain.add if value else self._ready_in_vain.discard)(self._queue_select)

    def _accept(self, device: VirtioDevice, value: int) -> None:
        if self.force_legacy:
            if self._driver_select == 0:
                device.accept_features(value, modern=False, alone=True)
        else:
            self._chosen[self._driver_select] = value
            device.accept_features(self._chosen[1] << 32 | self._chosen[0], modern=True)

    def _write_queue(self, device: VirtioDevice, queue: Queue, offset: int, value: int) -> None:
        if offset == 0x38:
            if 0 < value <= QUEUE_MAX and not queue.ready:
                queue.size = value
        elif self.force_legacy:
            if offset == 0x3C:
                self._alignment = value if value and value & (value - 1) == 0 else 0
            elif offset == 0x40:
                if value == 0:
                    device.write_status(0)
                else:
                    place_legacy_queue(queue, value << self._page_shift, self._alignment or 4096)
        elif offset == 0x44:
            if value:
                queue.ready, queue.ring = True, None
            else:
                queue.reset()
        elif 0x80 <= offset < 0xA8 and not queue.ready:
            names = {0x80: "descriptors", 0x90: "driver_area", 0xA0: "device_area"}
            name = names.get(offset & ~4)
            if name is not None:
                shift = 32 if offset & 4 else 0
                kept = getattr(queue, name) & ~(0xFFFFFFFF << shift)
                setattr(queue, name, kept | (value & 0xFFFFFFFF) << shift)
