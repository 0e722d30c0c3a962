"""What every virtio device has: features, status, configuration, queues (virtio 1.2, chapter 2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from qobra.errors import QobraError
from qobra.machine.qdev import Bus, Device
from qobra.machine.virtio.queue import Buffer, Queue, VirtioError
from qobra.machine.vmstate import VmState, flag, parts, u8, u64
from qobra.object.property import Bool
from qobra.report import report_error

if TYPE_CHECKING:
    from collections import deque

    from qobra.object.tree import ObjectTree

STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK = 0x01, 0x02, 0x04
STATUS_FEATURES_OK, STATUS_NEEDS_RESET, STATUS_FAILED = 0x08, 0x40, 0x80

F_NOTIFY_ON_EMPTY, F_ANY_LAYOUT, F_INDIRECT, F_EVENT_IDX, F_BAD = 24, 27, 28, 29, 30
F_VERSION_1, F_IOMMU, F_PACKED, F_RING_RESET = 32, 33, 34, 40


class VirtioBus(Bus):
    """The one place on a transport for a device."""

    type_name = "virtio-bus"
    abstract = True
    limit = 1

    def notify_queue(self, queue: Queue) -> None:
        """Tell the driver that ``queue`` has used buffers."""
        raise NotImplementedError

    def notify_config(self) -> None:
        """Tell the driver that the configuration changed."""
        raise NotImplementedError

    @property
    def modern(self) -> bool:
        """Whether it has the interface of virtio 1.0 and later."""
        raise NotImplementedError


class VirtioDevice(Device):
    """A virtio device behind any transport. ``device_number`` is its device type of chapter 5.

    A model declares ``config_size``, its queues (:meth:`add_queue`) and features, and serves :meth:`kicked`.
    """

    type_name = "virtio-device"
    abstract = True
    bus_type = "virtio-bus"
    device_number = 0
    config_size = 0
    assumed_features = 0
    """What drivers understood that accepted every bit there was."""

    indirect_desc = Bool(True, name="indirect_desc")
    event_idx = Bool(True, name="event_idx")
    notify_on_empty = Bool(True, name="notify_on_empty")
    any_layout = Bool(True, name="any_layout")
    iommu_platform = Bool(False, name="iommu_platform")
    packed = Bool(False)
    queue_reset = Bool(True, name="queue_reset")
    use_started = Bool(True)
    use_disabled_flag = Bool(True)
    disable_legacy_check = Bool(False, name="x-disable-legacy-check")

    vmstate = VmState(u8("status", "generation"), u64("features"), flag("broken"), parts("queues"), partial=True)

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.queues: list[Queue] = []
        self.status = 0
        self.features = 0
        self.generation = 0
        self.broken = False

    @property
    def transport(self) -> VirtioBus:
        """The transport that the device is on."""
        return cast("VirtioBus", self.bus)

    def add_queue(self, size: int) -> Queue:
        """The next queue, of at most ``size`` descriptors."""
        queue = Queue(self.board.memory, len(self.queues), size)
        self.queues.append(queue)
        return queue

    # -- features and status

    def has(self, feature: int) -> bool:
        """Whether the driver accepted a feature bit."""
        return bool(self.features >> feature & 1)

    def offered_features(self, *, modern: bool) -> int:
        """What the device offers to a driver of this generation."""
        offered = self.device_features()
        for enabled, bit in (
            (self.indirect_desc, F_INDIRECT),
            (self.event_idx, F_EVENT_IDX),
            (self.notify_on_empty, F_NOTIFY_ON_EMPTY),
            (self.any_layout, F_ANY_LAYOUT),
            (self.iommu_platform, F_IOMMU),
            (self.packed, F_PACKED),
            (self.queue_reset, F_RING_RESET),
        ):
            if enabled:
                offered |= 1 << bit
        if modern:
            # A driver of today has no use for these, which describe the old interface.
            return (offered | 1 << F_VERSION_1) & ~(1 << F_NOTIFY_ON_EMPTY | 1 << F_ANY_LAYOUT)
        return (offered | 1 << F_BAD) & 0xFFFFFFFF

    def legacy_features(self) -> int:
        """What the device offers on a transport that knows only the interface of before 1.0."""
        return self.offered_features(modern=False)

    def accept_features(self, features: int, *, modern: bool, alone: bool = False) -> None:
        """The driver chose; what was not offered is dropped. ``alone``: the transport knows no other interface."""
        if not self.status & STATUS_FEATURES_OK:
            if not modern and features >> F_BAD & 1:
                features = self.assumed_features  # an old driver that took all without a look
            self.features = features & (self.legacy_features() if alone else self.offered_features(modern=modern))
            self.features_accepted()

    def write_status(self, status: int) -> None:
        """The driver sets the device status; 0 resets the device."""
        if status == 0:
            self.reset()
            return
        was_running = self.running
        if self.has(F_VERSION_1) and status & STATUS_FEATURES_OK and not self.status & STATUS_FEATURES_OK:
            if not self.validate_features():
                status &= ~STATUS_FEATURES_OK
        self.status = status | (self.status & STATUS_NEEDS_RESET)
        if self.running != was_running:
            self.running_changed()

    @property
    def running(self) -> bool:
        """Whether the driver is ready and the device works."""
        return bool(self.status & STATUS_DRIVER_OK) and not self.broken

    def reset(self) -> None:
        was_running = self.running
        self.status = 0
        self.features = 0
        self.broken = False
        self.generation = 0
        if was_running:
            self.running_changed()
        self.device_reset()
        for queue in self.queues:
            queue.reset()

    def fail(self, error: VirtioError) -> None:
        """The driver broke the rules: say so, and do nothing until it resets the device."""
        report_error(f"{self.type_name}: {error}")
        self.broken = True
        if self.has(F_VERSION_1):
            self.status |= STATUS_NEEDS_RESET
            self.notify_config()

    # -- queues

    def kick(self, number: int) -> None:
        """The driver says that queue ``number`` has buffers."""
        if number < len(self.queues) and not self.broken:
            queue = self.queues[number]
            if queue.descriptors:
                self.kicked(queue)

    def pop(self, queue: Queue) -> Buffer | None:
        """The next buffer, or None; a broken rule ends the device's work."""
        if self.broken or not queue.descriptors:
            return None
        try:
            ring = queue.ring or queue.activate(packed=self.has(F_PACKED), event_index=self.has(F_EVENT_IDX))
            return ring.pop()
        except VirtioError as error:
            self.fail(error)
            return None

    def buffers(self, queue: Queue) -> Iterator[Buffer]:
        """Every buffer that is available."""
        while (buffer := self.pop(queue)) is not None:
            yield buffer

    def push(self, queue: Queue, buffer: Buffer, written: int) -> None:
        """Give a buffer back; :meth:`notify` tells the driver."""
        if queue.ring is not None:
            queue.ring.push(buffer, written)

    def notify(self, queue: Queue) -> None:
        """Interrupt the driver, if it wants to know."""
        if queue.ring is not None and queue.ring.wants_interrupt():
            self.transport.notify_queue(queue)

    def deliver(self, queue: Queue, messages: deque[bytes]) -> None:
        """Take messages off the left of ``messages``, each into a buffer of its own, as long as there is one."""
        sent = False
        while messages and (buffer := self.pop(queue)) is not None:
            self.push(queue, buffer, buffer.scatter(messages.popleft()))
            sent = True
        if sent:
            self.notify(queue)

    def notify_config(self) -> None:
        """The configuration changed: interrupt the driver."""
        if self.status & STATUS_DRIVER_OK or self.broken:
            self.generation = (self.generation + 1) & 0xFF
            self.transport.notify_config()

    # -- for device models to fill in

    def device_features(self) -> int:
        """The feature bits of the device type that this device offers."""
        return 0

    def features_accepted(self) -> None:
        """The driver chose ``self.features``."""

    def validate_features(self) -> bool:
        """Whether the device can work with the features that were chosen."""
        return True

    def read_config_at(self, offset: int, width: int) -> int:
        """What an access to the configuration gives; one that is not all inside it is answered by nobody."""
        if offset + width > self.config_size:
            return (1 << 8 * width) - 1
        return int.from_bytes(self.read_config()[offset : offset + width], "little")

    def read_config(self) -> bytes:
        """The configuration space, ``config_size`` bytes."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver writes to the configuration space."""

    def kicked(self, queue: Queue) -> None:
        """Buffers are available in ``queue``. Called in the control strand: long work goes elsewhere."""

    def running_changed(self) -> None:
        """The device starts or stops to work."""

    def device_reset(self) -> None:
        """Drop what is in flight; the queues are reset next."""

    def state_loaded(self) -> None:
        super().state_loaded()
        allowed = self.offered_features(modern=True) | self.offered_features(modern=False)
        if self.features & ~allowed:
            raise QobraError(f"Features {self.features:#x} unsupported. Allowed features: {allowed:#x}")
        for queue in self.queues:
            queue.resume(packed=self.has(F_PACKED), event_index=self.has(F_EVENT_IDX))
        if self.running:
            self.running_changed()
