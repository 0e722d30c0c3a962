"""Pages of memory that are still to come to a machine that runs already (``postcopy-ram``).

Whoever touches one asks the source for it, and waits. What counts as touching is that memory is reached, through
:meth:`~qobra.machine.memory.Ram.piece`, which every device and monitor does: so it needs no help of the kernel's
(userfaultfd, which would stop all of this process's threads, as the one that waits holds the interpreter).
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from functools import partial

from qobra.errors import QobraError
from qobra.migration.page_coding import PAGE
from qobra.migration.page_set import PageSet
from qobra.migration.ram import RUN, RamBlock, take_pages

_AHEAD = 16
"""Pages that are asked for at once, if they are missing: what lies beside is often next."""


class Arrivals:
    """The pages of ``blocks`` that are missing. ``ask`` sends a request for a run of pages, or does nothing.

    From any thread, in the strand (whoever touches memory) and outside (what brings it).
    """

    def __init__(self, blocks: list[RamBlock], ask: Callable[[int, int, int], None]) -> None:
        self._blocks = blocks
        self._ask = ask
        self._missing = PageSet([block.pages for block in blocks])
        self._changed = threading.Condition()
        self._asked: dict[tuple[int, int], int] = {}
        self._given_up = False
        self.waited_ns = 0
        """How long somebody was kept waiting, in all."""

    @property
    def missing(self) -> int:
        """How many pages."""
        return self._missing.count

    def expect(self, block: int, first: int, count: int) -> None:
        """Pages will come later. Raises QobraError where there are none such."""
        if block >= len(self._blocks) or first + count > self._blocks[block].pages:
            raise QobraError("Illegal RAM offset", errno=errno.EINVAL)
        if not self._blocks[block].late:
            raise QobraError(f"Memory '{self._blocks[block].name}' cannot come late", errno=errno.EINVAL)
        self._missing.add(block, first, count)

    def watch(self) -> None:
        """From now on, who touches what is missing waits for it."""
        for number, block in enumerate(self._blocks):
            if self._missing.any(number, 0, block.pages):
                block.ram.awaited.append(partial(self._need, number))

    def place(self, kind: int, payload: bytes) -> None:
        """Pages have come, in a record; what is there already is left alone. Raises QobraError for a wrong record."""
        block, first, count = RUN.unpack_from(payload) if len(payload) >= RUN.size else (len(self._blocks), 0, 0)
        if block >= len(self._blocks) or first + count > self._blocks[block].pages:
            raise QobraError("Illegal RAM offset", errno=errno.EINVAL)
        runs = list(self._missing.runs(block, first, count))
        if not runs:
            return  # again, after a recovery
        if runs != [(first, count)]:
            raise QobraError("Some pages of a record have come already", errno=errno.EINVAL)
        take_pages(kind, payload, self._blocks)
        with self._changed:
            self._missing.remove(block, first, count)
            self._changed.notify_all()

    def list_missing(self) -> list[tuple[int, int, int]]:
        """The runs that are missing: block, first page, number of pages."""
        return list(self._missing.all_runs())

    def ask_again(self) -> None:
        """Repeat the requests that have no answer."""
        with self._changed:
            asked = [(block, first, count) for (block, first), count in self._asked.items()]
        for each in asked:
            self._ask(*each)

    def end(self) -> None:
        """All is there, or nothing will come any more: nobody waits from now on."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()
        for block in self._blocks:
            block.ram.awaited.clear()

    def _need(self, block: int, offset: int, length: int) -> None:
        first = offset // PAGE
        count = -(-(offset + length) // PAGE) - first
        missing = self._missing
        if length <= 0 or not missing.any(block, first, count):
            return
        started = time.monotonic_ns()
        while not self._given_up and missing.any(block, first, count):
            run = next(missing.runs(block, first, max(count, _AHEAD)), None)
            if run is not None:  # it may have come just now
                self._fetch(block, run[0], min(run[1], _AHEAD))
        self.waited_ns += time.monotonic_ns() - started

    def _fetch(self, block: int, first: int, count: int) -> None:
        with self._changed:
            self._asked[block, first] = count
        self._ask(block, first, count)
        with self._changed:
            while not self._given_up and self._missing.any(block, first, count):
                self._changed.wait()
            self._asked.pop((block, first), None)
