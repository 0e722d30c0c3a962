"""A virtio device whose queues another process serves: memory, queues and notifications on their way there and back."""

from __future__ import annotations

import os
import select
import threading
from typing import TYPE_CHECKING

from qobra.chardev.vhost_user import MemoryRegion, VhostUserFrontEnd
from qobra.errors import QobraError
from qobra.machine.memory import AddressSpace, Ram
from qobra.report import report_error

if TYPE_CHECKING:
    from qobra.machine.virtio.device import VirtioDevice

_MAX_REGIONS = 8
_ONE = (1).to_bytes(8, "little")


def shared_memory(space: AddressSpace) -> list[MemoryRegion]:
    """The guest's memory that other processes can map: what has a descriptor and is shared."""
    regions: list[MemoryRegion] = []
    for start, end, region, offset in space.flat():
        if not isinstance(region, Ram) or region.fd < 0 or region.readonly or not region.shared:
            continue
        if regions:
            guest, size, before, fd = regions[-1]
            if guest + size == start and before + size == offset and fd == region.fd:
                regions[-1] = (guest, size + end - start, before, fd)
                continue
        regions.append((start, end - start, offset, region.fd))
    return regions


def _notify(kick: int) -> None:
    try:
        os.write(kick, _ONE)
    except BlockingIOError:
        pass  # the process was told, and has filled the counter up itself


class Vhost:
    """What has ``count`` queues of ``device`` served, while its driver is ready and the machine runs."""

    def __init__(self, device: VirtioDevice, front_end: VhostUserFrontEnd, count: int) -> None:
        self._device = device
        self.front_end = front_end
        self._count = count
        self._memory: list[MemoryRegion] = []
        self._bases = [0] * count
        self._kicks: list[int] = []
        self._calls: list[int] = []
        self._stop = -1
        self._thread: threading.Thread | None = None
        self.active = False
        self._lost = False
        """The process that served the queues is gone, and nothing was done about it yet."""
        front_end.on_lost = self._went_away
        front_end.on_connected = self._came_back
        front_end.on_close = self._halt
        device.board.memory.listeners.append(self._memory_changed)
        self._unsubscribe = device.machine.run_state.subscribe(lambda _running, _state: self.update())

    def close(self) -> None:
        """Have nothing served any more."""
        self._unsubscribe()
        self._device.board.memory.listeners.remove(self._memory_changed)
        self._halt()

    # -- following the driver and the machine

    def update(self) -> None:
        """Start or stop, as the driver's readiness and the run state say."""
        wanted = self._device.running and self._device.machine.run_state.running and self.front_end.connected
        if wanted and not self.active:
            try:
                self._start()
            except (QobraError, OSError) as error:
                self._complain(error)
                self._halt()
        elif self.active and not wanted:
            self._halt()

    def forget(self) -> None:
        """The driver starts anew: its queues begin at the beginning."""
        self._halt()
        self._bases = [0] * self._count

    def kick(self, number: int) -> None:
        """The driver made buffers available in queue ``number``."""
        if self.active and number < len(self._kicks):
            _notify(self._kicks[number])

    def _complain(self, error: Exception) -> None:
        report_error(f"{self._device.type_name}: {error}")

    def _start(self) -> None:
        device, front_end = self._device, self.front_end
        front_end.set_features(device.features)
        self._memory = shared_memory(device.board.memory)
        self._check_memory()
        front_end.set_memory(self._memory)
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self._stop = os.eventfd(0, flags)
        for _ in range(self._count):
            self._kicks.append(os.eventfd(0, flags))
            self._calls.append(os.eventfd(0, flags))
        self.active = True
        for queue in device.queues[: self._count]:
            if queue.descriptors:
                number = queue.number
                addresses = (queue.descriptors, queue.driver_area, queue.device_area)
                front_end.start_queue(
                    number, queue.size, self._bases[number], addresses, self._kicks[number], self._calls[number]
                )
                _notify(self._kicks[number])  # what the driver said before the process listened
        self._thread = threading.Thread(
            target=self._listen, args=(self._stop, tuple(self._calls)), name="vhost", daemon=True
        )
        self._thread.start()

    def _check_memory(self) -> None:
        if not self._memory:
            raise QobraError(
                "Failed initializing vhost-user memory map, consider using -object memory-backend-file share=on"
            )
        if len(self._memory) > _MAX_REGIONS:
            raise QobraError("vhost-user: too many pieces of memory")

    def _halt(self) -> None:
        if not self._kicks:
            return
        self.active = False
        for queue in self._device.queues[: self._count]:
            if queue.descriptors and self.front_end.connected and not self._lost:
                try:
                    self._bases[queue.number] = self.front_end.stop_queue(queue.number)
                except (QobraError, OSError) as error:
                    self._complain(error)
                    break
        os.write(self._stop, _ONE)
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        for fd in (self._stop, *self._kicks, *self._calls):
            os.close(fd)
        self._stop = -1
        self._kicks.clear()
        self._calls.clear()

    def _went_away(self) -> None:
        self._lost = True
        self._device.machine.control.post(self._forget_process)

    def _came_back(self) -> None:
        # Not in the thread that reads the replies.
        control = self._device.machine.control
        threading.Thread(target=control.post, args=(self._greet,), name="vhost", daemon=True).start()

    def _forget_process(self) -> None:
        if self._lost:
            self._halt()
            self._lost = False

    def _greet(self) -> None:
        self._forget_process()
        if self.front_end.connected and not self.active:
            try:
                self.front_end.negotiate()
            except (QobraError, OSError) as error:
                self._complain(error)
                return
            self.update()

    def _memory_changed(self) -> None:
        if not self.active:
            return
        memory = shared_memory(self._device.board.memory)
        if memory != self._memory:
            self._memory = memory
            try:
                self._check_memory()
                self.front_end.set_memory(memory)
            except (QobraError, OSError) as error:
                self._complain(error)
                self._halt()

    # -- the thread

    def _listen(self, stop: int, calls: tuple[int, ...]) -> None:
        device = self._device
        poller = select.poll()
        for fd in (stop, *calls):
            poller.register(fd, select.POLLIN)
        while True:
            for fd, _event in poller.poll():
                if fd == stop:
                    return
                try:
                    os.read(fd, 8)
                except BlockingIOError:
                    continue
                device.transport.notify_queue(device.queues[calls.index(fd)])
