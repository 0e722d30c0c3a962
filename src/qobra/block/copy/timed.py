"""Copies that a guest's write waits for only so long."""

from __future__ import annotations

import errno
import os
import threading
import time

from qobra.block.copy.chunk import CopyFailed
from qobra.block.slots import Gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.layer import BlockLayer


class TimedCopies:
    """Has copies made by threads of their own, so that a writer can give up while its copy goes on.

    A drain waits for them like for requests.
    """

    def __init__(self, layer: BlockLayer) -> None:
        self._layer = layer
        self._gate = Gate()
        layer.gates.append(self._gate)

    def close(self) -> None:
        """No more copies are made, and none is under way."""
        self._layer.gates.remove(self._gate)

    def run(self, copy: Callable[[int, int], None], offset: int, length: int, deadline: float) -> None:
        """Call ``copy`` and return what it does, or fail with ETIMEDOUT at ``deadline`` (monotonic, seconds).

        The caller is inside a slot. Raises CopyFailed.
        """
        ended = threading.Event()
        failures: list[CopyFailed] = []
        flight = self._layer.flight
        slot = flight.slot(self._gate)
        # Not by the gate: who drains waits for the caller, who waits for the copy.
        slot.busy = flight.words.epoch

        def carry_out() -> None:
            try:
                copy(offset, length)
            except CopyFailed as failure:
                failures.append(failure)
            finally:
                slot.leave()
                slot.close()
                ended.set()

        threading.Thread(target=carry_out, name="timed copy", daemon=True).start()
        if not ended.wait(max(0.0, deadline - time.monotonic())):
            raise timed_out()
        if failures:
            raise failures[0]


def timed_out() -> CopyFailed:
    """What a writer that has waited long enough is told."""
    return CopyFailed(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)), False)
