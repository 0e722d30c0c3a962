"""What the destination tells the source: that it has taken the machine over, which pages it wants, which it lacks."""

from __future__ import annotations

import errno
import os
import threading
from typing import Protocol

from qobra.errors import QobraError
from qobra.migration.ram import RUN

TAKEN_OVER, WANTED, LACKING, ALL_LACKING, ARRIVED = range(1, 6)
"""Messages: a byte each, and a run of pages with most."""

_WITH_RUN = (WANTED, LACKING, ARRIVED)

Run = tuple[int, int, int]
"""Number of the block, first page, how many."""


class TwoWay(Protocol):
    """A channel that can be read and written."""

    def read(self, length: int) -> bytes:
        """The next ``length`` bytes; fewer only at the end."""
        ...

    def write(self, data: bytes) -> None:
        """Write all of ``data``."""
        ...


class Answers:
    """The destination's end of a return path. From any thread; each call raises OSError where nobody listens."""

    def __init__(self, channel: TwoWay) -> None:
        self._channel: TwoWay | None = channel
        self._lock = threading.Lock()

    def detach(self) -> None:
        """The channel is broken, or will be closed."""
        with self._lock:
            self._channel = None

    def attach(self, channel: TwoWay, lacking: list[Run]) -> None:
        """There is another channel. The first that is told there is that these pages are missing, and no others."""
        told = b"".join(bytes((LACKING,)) + RUN.pack(*run) for run in lacking)
        with self._lock:
            channel.write(told + bytes((ALL_LACKING,)))
            self._channel = channel

    def taken_over(self) -> None:
        """The machine is here."""
        self._write(bytes((TAKEN_OVER,)))

    def want(self, *run: int) -> None:
        """Somebody waits for these pages."""
        self._write(bytes((WANTED,)) + RUN.pack(*run))

    def arrived(self, *run: int) -> None:
        """These pages are here."""
        self._write(bytes((ARRIVED,)) + RUN.pack(*run))

    def _write(self, data: bytes) -> None:
        with self._lock:
            if self._channel is None:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            self._channel.write(data)


def read_answer(channel: TwoWay) -> tuple[int, Run]:
    """The next message, and its run of pages. Raises QobraError where there is none."""
    kind = channel.read(1)
    run = channel.read(RUN.size) if kind and kind[0] in _WITH_RUN else bytes(RUN.size)
    if not kind or len(run) < RUN.size:
        raise QobraError("The destination has left", errno=errno.EIO)
    if not TAKEN_OVER <= kind[0] <= ARRIVED:
        raise QobraError(f"Unknown message {kind[0]} from the destination", errno=errno.EINVAL)
    return kind[0], RUN.unpack(run)


def expect_taken_over(channel: TwoWay) -> None:
    """Wait until the destination says that the machine is there. Raises QobraError where it says anything else."""
    if channel.read(1) != bytes((TAKEN_OVER,)):
        raise QobraError("The destination did not take the machine over", errno=errno.EINVAL)
