"""virtio-rng: entropy for the guest (virtio 1.2, section 5.4)."""

from __future__ import annotations

from functools import partial
from typing import Any

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.rng import RngBackend
from qobra.machine.virtio.device import VirtioDevice
from qobra.machine.virtio.pci import VirtioPci, register_variants
from qobra.machine.virtio.queue import Queue
from qobra.machine.vmstate import VmState, timer, u64
from qobra.machine.worker import DeviceWorker
from qobra.object.property import Int, Link

_CHUNK = 64 << 10
_MS = 1_000_000


@registry.register("virtio-rng-device")
class VirtioRng(VirtioDevice):
    """Fills buffers with random bytes, at most ``max_bytes`` in each ``period`` of milliseconds."""

    type_name = "virtio-rng-device"
    category = "Misc"
    device_number = 4

    max_bytes = Int((1 << 63) - 1, type="uint64")
    period = Int(1 << 16, type="uint32")
    rng = Link("rng-backend")

    vmstate = VmState(u64("_quota"), timer("_timer"))

    def realize(self) -> None:
        if self.period <= 0:
            raise QobraError("'period' parameter expects a positive integer")
        if self.max_bytes >= 1 << 63:
            raise QobraError("'max-bytes' parameter must be non-negative, and less than 2^63")
        source = self.rng
        if source is None:
            cls: Any = self.tree.find_type("rng-builtin")
            source = cls(self.tree)
            self.add_child("default-backend", source)
            source.complete()
            self.values["rng"] = source
        self._source: RngBackend = source
        self._source.in_use += 1
        self.add_queue(8)
        self._worker = DeviceWorker("rng")
        self._quota = self.max_bytes
        self._epoch = 0
        self._timer = self.board.clock.timer(self._new_period)
        self._unsubscribe = self.machine.run_state.subscribe(lambda _running, _state: self._run_state_changed())

    def unrealize(self) -> None:
        self._unsubscribe()
        self._epoch += 1
        self._source.wake()
        self._timer.cancel()
        self._source.in_use -= 1
        self._worker.close()
        self.queues.clear()

    def device_reset(self) -> None:
        self._epoch += 1
        self._source.wake()

    def kicked(self, queue: Queue) -> None:
        self._worker.run(partial(self._serve, queue, self._epoch))

    def _new_period(self) -> None:
        self._quota = self.max_bytes
        self._go_on()

    def _run_state_changed(self) -> None:
        self._source.wake()
        if self.machine.run_state.running:
            self._go_on()

    def _go_on(self) -> None:
        if self.queues and self.running:
            self._worker.run(partial(self._serve, self.queues[0], self._epoch))

    def _serve(self, queue: Queue, epoch: int) -> None:
        limited = self.max_bytes < 1 << 62
        served = False
        while epoch == self._epoch and self._quota > 0 and self.running:
            buffer = self.pop(queue)
            if buffer is None:
                break
            length = min(buffer.writable_length, self._quota, _CHUNK)
            data = self._source.random(length, lambda: self._waits(epoch)) if length else b""
            if length and not data:
                if queue.ring is not None and epoch == self._epoch:
                    queue.ring.unpop(buffer)
                break
            self._quota -= len(data)
            self.push(queue, buffer, buffer.scatter(data))
            served = True
        if limited and self._quota <= 0:
            self.machine.control.post(self._arm)
        if served and epoch == self._epoch:
            self.notify(queue)

    def _waits(self, epoch: int) -> bool:
        """Whether the buffers of ``epoch`` wait for a source that has nothing: not while the guest stands still."""
        return epoch == self._epoch and self.machine.run_state.running

    def _arm(self) -> None:
        if self.realized:
            self._timer.set(self.board.clock.now_ns() + self.period * _MS)

    @property
    def working(self) -> bool:
        return self._worker.busy


class VirtioRngPciBase(VirtioPci):
    """virtio-rng as a PCI function."""

    type_name = "virtio-rng-pci-base"
    abstract = True
    backend_type = "virtio-rng-device"
    device_id = 0x1005
    class_id = 0x00FF


@registry.register("virtio-rng-pci")
class VirtioRngPci(VirtioRngPciBase):
    """Entropy for old and new drivers."""

    type_name = "virtio-rng-pci"


register_variants(VirtioRngPciBase, "virtio-rng-pci")
