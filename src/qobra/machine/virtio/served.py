"""Devices whose requests may block: they are served by a worker, and tried again when a stopped machine goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from qobra.machine.virtio.device import VirtioDevice
from qobra.machine.virtio.queue import Buffer, Queue, VirtioError, held_again, held_places
from qobra.machine.vmstate import Field, Listed, Number, Together, VmState
from qobra.machine.worker import DeviceWorker, Worker
from qobra.object.property import Link

if TYPE_CHECKING:
    from qobra.block.error_policy import ErrorPolicy

_MAX_HELD = 1 << 16


class ServedDevice(VirtioDevice):
    """Requests are served in the iothread, or in a thread of the device's own.

    Models call :meth:`start_serving`, :meth:`stop_serving` and :meth:`forget_requests`, and fill in :meth:`serve_one`.
    """

    abstract = True

    iothread = Link("iothread")

    # Requests that wait after an I/O error go along, and are tried again at the other side.
    vmstate = VmState(Field("_held_places", Listed(Together(Number(2), Number(2)), _MAX_HELD)), partial=True)

    def start_serving(self, name: str) -> None:
        """Be ready for requests; ``name`` is that of the thread."""
        self._own_worker = DeviceWorker(name) if self.iothread is None else None
        self._worker: Worker = self._own_worker or self.iothread
        if self.iothread is not None:
            self.iothread.in_use += 1
        # Telling the guest may run what was posted to the strand in this very thread, a reset among it.
        self._busy = threading.RLock()
        self._epoch = 0
        self._held: list[tuple[Queue, Buffer]] = []
        self._unsubscribe = self.machine.run_state.subscribe(self._run_state_changed)

    def stop_serving(self) -> None:
        """Serve no more, and let the worker go."""
        self._unsubscribe()
        self.device_reset()
        if self._own_worker is not None:
            self._own_worker.close()
        else:
            self.iothread.in_use -= 1

    def forget_requests(self) -> None:
        """A reset: nothing of what was asked for is answered any more."""
        self._epoch += 1
        self._held.clear()
        # What the worker has begun ends before the guest's memory is another's.
        with self._busy:
            pass

    def serve(self, queue: Queue) -> None:
        """The guest has put requests into ``queue``."""
        self._worker.run(partial(self._serve, queue, self._epoch))

    def hold(self, queue: Queue, buffer: Buffer) -> None:
        """Storage failed and the machine stops for it: try the request again when it goes on."""
        self._held.append((queue, buffer))

    # -- for models to fill in

    def serve_one(self, queue: Queue, buffer: Buffer) -> None:
        """Carry out a request and push its answer, or hold it. Raises VirtioError for what is none. In the worker."""
        raise NotImplementedError

    def policies(self) -> Iterator[ErrorPolicy | None]:
        """What decides on errors of the storage behind the device."""
        raise NotImplementedError

    # -- the worker

    def _run_state_changed(self, running: bool, _state: str) -> None:
        if running and self._held:
            for policy in self.policies():
                if policy is not None:
                    policy.reset()
            self._worker.run(partial(self._retry, self._epoch))

    def _retry(self, epoch: int) -> None:
        with self._busy:
            held, self._held = self._held, []
            for queue, buffer in held:
                if epoch == self._epoch:
                    self.serve_one(queue, buffer)
                    self.notify(queue)

    def _serve(self, queue: Queue, epoch: int) -> None:
        with self._busy:
            while epoch == self._epoch and (buffer := self.pop(queue)) is not None:
                try:
                    self.serve_one(queue, buffer)
                except VirtioError as error:
                    self.machine.control.post(self.fail, error)
                    return
            if epoch == self._epoch:
                self.notify(queue)

    @property
    def working(self) -> bool:
        return self._worker.busy

    # -- state

    @property
    def _held_places(self) -> list[tuple[int, int]]:
        return held_places(self._held)

    @_held_places.setter
    def _held_places(self, places: list[tuple[int, int]]) -> None:
        self._places_to_hold = places

    _places_to_hold: list[tuple[int, int]] = []

    def state_loaded(self) -> None:
        super().state_loaded()
        self._held = held_again(self.queues, self._places_to_hold)
