"""virtio-balloon: takes memory from the guest and gives it back (virtio 1.2, section 5.5)."""

from __future__ import annotations

from struct import Struct
from typing import Any

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.host_memory import address_of
from qobra.machine.memory import Ram
from qobra.machine.virtio.device import VirtioDevice
from qobra.machine.virtio.pci import VirtioPci, register_variants
from qobra.machine.virtio.queue import Buffer, Queue
from qobra.machine.vmstate import Field, Maybe, Number, VmState, timer, u32
from qobra.object.property import Bool, Int, Property

F_MUST_TELL_HOST, F_STATS_VQ, F_DEFLATE_ON_OOM, F_FREE_PAGE_HINT, F_PAGE_POISON, F_REPORTING = range(6)
_INFLATE, _DEFLATE, _STATS = 0, 1, 2
_CONFIG = Struct("<IIII")
_STAT = Struct("<HQ")
_REPORT_QUEUE_SIZE = 32
_PAGE = 4096
_SECOND = 10**9
_UNKNOWN = (1 << 64) - 1
_STAT_NAMES = (
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
)


@registry.register("virtio-balloon-device")
class VirtioBalloon(VirtioDevice):
    """The balloon. What the guest puts into it goes back to the host."""

    type_name = "virtio-balloon-device"
    category = "Misc"
    device_number = 5
    config_size = 16

    deflate_on_oom = Bool(False)
    page_poison = Bool(True)
    free_page_reporting = Bool(False)
    whole_config = Bool(False, name="qemu-4-0-config-size")
    guest_stats = Property("guest statistics", get=lambda self: self.statistics(), writable=False, show_default=False)
    polling_interval = Int(
        0,
        name="guest-stats-polling-interval",
        get=lambda self: self.interval,
        set=lambda self, seconds: self.set_interval(seconds),
        show_default=False,
    )

    interval = 0

    vmstate = VmState(
        u32("target_pages", "actual_pages", "_poison"),
        Field("_stats_kept", Maybe(Number(2, minimum=1))),
        timer("_timer"),
    )

    def realize(self) -> None:
        if self.board.balloon is not None:
            raise QobraError("Only one balloon device is supported")
        self.board.balloon = self
        for _ in range(3):
            self.add_queue(128)
        # Who reports pages has the queue behind those that there are (5.5.2).
        self._reports = self.add_queue(_REPORT_QUEUE_SIZE) if self.free_page_reporting else None
        # The word for poison came last, and was there at first whatever was offered.
        self.config_size = 16 if self.page_poison or self.whole_config else 8
        self.target_pages = 0
        self.actual_pages = 0
        self._poison = 0
        self._stats: dict[str, int] = dict.fromkeys(_STAT_NAMES, _UNKNOWN)
        self._stats_time = 0
        self._stats_buffer: Buffer | None = None
        self._timer = self.board.clock.timer(self._poll)

    def unrealize(self) -> None:
        board: Any = self.board
        board.balloon = None
        self._timer.cancel()
        self.queues.clear()

    def device_reset(self) -> None:
        self._stats_buffer = None
        self._poison = 0

    def device_features(self) -> int:
        offered = 1 << F_STATS_VQ
        for enabled, bit in (
            (self.deflate_on_oom, F_DEFLATE_ON_OOM),
            (self.page_poison, F_PAGE_POISON),
            (self.free_page_reporting, F_REPORTING),
        ):
            if enabled:
                offered |= 1 << bit
        return offered

    def read_config(self) -> bytes:
        return _CONFIG.pack(self.target_pages, self.actual_pages, 0, self._poison)[: self.config_size]

    def write_config(self, offset: int, data: bytes) -> None:
        config = bytearray(self.read_config().ljust(_CONFIG.size, b"\0"))
        config[offset : offset + len(data)] = data
        _target, actual, _hint, poison = _CONFIG.unpack(config)
        if self.has(F_PAGE_POISON):
            self._poison = poison
        if actual != self.actual_pages:
            self.actual_pages = actual
            self.machine.events.emit("BALLOON_CHANGE", {"actual": self.actual})

    # -- what users ask

    @property
    def actual(self) -> int:
        """Bytes that the guest has left."""
        return self._memory - self.actual_pages * _PAGE

    @property
    def _memory(self) -> int:
        # Modules that were plugged in are taken from as well.
        modules = (each["size"] for each in self.board.memory_devices() if each["kind"] == "dimm")
        return int(self.board.ram_size + sum(modules))

    def set_target(self, size: int) -> None:
        """Ask the guest to keep ``size`` bytes."""
        self.target_pages = (self._memory - min(size, self._memory)) // _PAGE
        self.notify_config()

    def statistics(self) -> dict[str, Any]:
        """What the guest told of its memory, and when."""
        if not self._stats_time and not self.interval:
            return {"stats": dict(self._stats), "last-update": 0}
        return {"stats": dict(self._stats), "last-update": self._stats_time}

    def set_interval(self, seconds: int) -> None:
        """Ask the guest for statistics every ``seconds``; 0: not at all."""
        if seconds < 0:
            raise QobraError("timer value must be greater than zero")
        if seconds > 0xFFFFFFFF:
            raise QobraError("timer value is too big")
        self.interval = seconds
        if seconds == 0:
            self._timer.cancel()
        else:
            self._timer.set(self.board.clock.now_ns())

    def settable_when_realized(self, name: str) -> bool:
        return name == "guest-stats-polling-interval"

    # -- queues

    def kicked(self, queue: Queue) -> None:
        if queue.number == _STATS:
            self._take_statistics(queue)
            return
        if queue is self._reports:
            self._take_report(queue)
            return
        for buffer in self.buffers(queue):
            pages = buffer.gather(1 << 20)
            if queue.number == _INFLATE:
                for at in range(0, len(pages) - 3, 4):
                    found = self.board.memory.at(int.from_bytes(pages[at : at + 4], "little") * _PAGE)
                    if found is not None and isinstance(found[0], Ram) and found[1] + _PAGE <= found[0].size:
                        self._discard(found[0], found[1], _PAGE)
            self.push(queue, buffer, 0)
        self.notify(queue)

    def _take_report(self, queue: Queue) -> None:
        # What the driver has no use for is what it lets the device write to. It finds zeroes there afterwards, so a
        # driver that fills free pages with something else keeps them (5.5.6.8.2).
        for buffer in self.buffers(queue):
            if not self._poison:
                for part in buffer.writable:
                    self._discard_part(part)
            self.push(queue, buffer, 0)
        self.notify(queue)

    def _discard_part(self, part: memoryview) -> None:
        for region in self.board.memory.regions():
            if isinstance(region, Ram) and not region.readonly and region.view.obj is part.obj:
                self._discard(region, address_of(part) - address_of(region.view), len(part))
                return

    @staticmethod
    def _discard(ram: Ram, offset: int, length: int) -> None:
        """Give memory back to the host, where it is whole pages that the guest may write."""
        if not ram.readonly and offset % _PAGE == 0 and length % _PAGE == 0:
            ram.discard(offset, length)

    def _take_statistics(self, queue: Queue) -> None:
        for buffer in self.buffers(queue):
            if self._stats_buffer is not None:
                # One at a time: the driver gave a second one without being asked.
                self.push(queue, self._stats_buffer, 0)
                self.notify(queue)
            self._stats_buffer = buffer
            data = buffer.gather(4096)
            self._stats = dict.fromkeys(_STAT_NAMES, _UNKNOWN)
            for at in range(0, len(data) - _STAT.size + 1, _STAT.size):
                tag, value = _STAT.unpack_from(data, at)
                if tag < len(_STAT_NAMES):
                    self._stats[_STAT_NAMES[tag]] = value
            self._stats_time = self.machine.clock.time_ns() // _SECOND
        if self.interval:
            self._timer.set(self.board.clock.now_ns() + self.interval * _SECOND)

    def _poll(self) -> None:
        buffer, self._stats_buffer = self._stats_buffer, None
        if buffer is None:
            if self.interval:
                self._timer.set(self.board.clock.now_ns() + self.interval * _SECOND)
            return
        queue = self.queues[_STATS]
        self.push(queue, buffer, 0)
        self.notify(queue)

    @property
    def _stats_kept(self) -> int | None:
        # The buffer that was taken last, and how many descriptors it has.
        return self._stats_buffer.count if self._stats_buffer is not None else None

    @_stats_kept.setter
    def _stats_kept(self, count: int | None) -> None:
        self._take_again = count

    def state_loaded(self) -> None:
        super().state_loaded()
        count, queue = self._take_again, self.queues[_STATS]
        self._stats_buffer = None
        if count is not None and queue.ring is not None:
            queue.ring.unpop(Buffer(0, count, [], []))
            self._stats_buffer = self.pop(queue)

    _take_again: int | None = None


class VirtioBalloonPciBase(VirtioPci):
    """virtio-balloon as a PCI function."""

    type_name = "virtio-balloon-pci-base"
    abstract = True
    backend_type = "virtio-balloon-device"
    device_id = 0x1002
    class_id = 0x00FF
    # It interrupts by its pin alone.
    vectors: Any = 0
    ioeventfd: Any = None


@registry.register("virtio-balloon-pci")
class VirtioBalloonPci(VirtioBalloonPciBase):
    """A balloon for old and new drivers."""

    type_name = "virtio-balloon-pci"


register_variants(VirtioBalloonPciBase, "virtio-balloon-pci")
