"""The requests of one storage device: carried out by a worker, finished in the control strand.

A worker never touches guest memory: what it read is handed to the device in the strand, which may since have been reset
and then takes nothing. Failures go through the backend's error policy; what stopped the machine is kept and carried out
again when the machine runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.worker import DeviceWorker

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend
    from qobra.machine.blockdev import BlockFrontEnd

Operation = Callable[["BlockBackend"], Any]
Done = Callable[[Any, "Exception | None"], None]


class BlockRequests:
    """The requests of ``device``, which has its backend. All methods are called inside the strand."""

    def __init__(self, device: BlockFrontEnd) -> None:
        self._device = device
        self._worker = DeviceWorker(f"blk {device.qom_path}")
        self._epoch = 0
        self._held: list[_Request] = []
        self._ended: deque[tuple[_Request, Any, Exception | None]] = deque()
        self._unsubscribe = device.machine.run_state.subscribe(self._run_state_changed)
        self.pending = 0
        """Requests that were begun and have not ended, held ones included."""

    @property
    def working(self) -> bool:
        """Whether requests are under way that are not held."""
        return self.pending > len(self._held)

    def submit(self, operation: Operation, done: Done, *, is_read: bool) -> None:
        """Run ``operation(backend)`` in the worker, then ``done(result, error)`` in the strand.

        ``error`` is None if it worked, or if the policy says to ignore that it did not; the result is None then.
        """
        self.pending += 1
        self._run(_Request(operation, done, is_read, self._epoch))

    def cancel(self) -> None:
        """Forget what is under way: nothing of it is reported any more."""
        self._epoch += 1
        self._held.clear()
        self.pending = 0

    def drain(self) -> None:
        """Wait until what is under way has ended, and what follows from it; held requests stay held."""
        while self.working:
            self._worker.wait()
            if not self._ended:
                return
            self._deliver()

    def close(self) -> None:
        """Forget everything, and wait until the worker has stopped."""
        self.cancel()
        self._unsubscribe()
        self._worker.close()

    def _run(self, request: _Request) -> None:
        self._worker.run(partial(self._carry_out, request))

    def _carry_out(self, request: _Request) -> None:
        # In the worker.
        backend = self._device.backend
        result: Any = None
        failure: Exception | None = None
        if backend is None or request.epoch != self._epoch:
            return
        try:
            result = request.operation(backend)
        except (OSError, QobraError) as error:
            failure = error
            policy = backend.policy
            action = policy.decide(error, is_read=request.is_read) if policy is not None else "report"
            if action == "ignore":
                failure = None
            elif action == "stop":
                self._device.machine.control.post(self._hold, request)
                return
        self._ended.append((request, result, failure))
        self._device.machine.control.post(self._deliver)

    def _deliver(self) -> None:
        while self._ended:
            self._finish(*self._ended.popleft())

    def _finish(self, request: _Request, result: Any, failure: Exception | None) -> None:
        if request.epoch == self._epoch:
            self.pending -= 1
            request.done(result, failure)

    def _hold(self, request: _Request) -> None:
        if request.epoch != self._epoch:
            return
        if self._device.machine.run_state.running:
            self._run(request)  # someone let the machine go on in between
        else:
            self._held.append(request)

    def _run_state_changed(self, running: bool, _state: str) -> None:
        if running and self._held:
            held, self._held = self._held, []
            backend = self._device.backend
            if backend is not None and backend.policy is not None:
                backend.policy.reset()
            for request in held:
                self._run(request)


class _Request:
    __slots__ = ("done", "epoch", "is_read", "operation")

    def __init__(self, operation: Operation, done: Done, is_read: bool, epoch: int) -> None:
        self.operation = operation
        self.done = done
        self.is_read = is_read
        self.epoch = epoch
