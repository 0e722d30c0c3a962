"""The source's part of ``postcopy-ram``: the guest runs on the other side, and the rest of its memory follows.

What somebody waits for there goes first. A channel that breaks pauses this; over a new one the destination tells what
it lacks, and the rest follows.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.migration.pacer import Pacer
from qobra.migration.page_coding import PAGE
from qobra.migration.page_set import PageSet
from qobra.migration.ram import RUN, RamSender
from qobra.migration.return_path import ALL_LACKING, ARRIVED, LACKING, TAKEN_OVER, WANTED, Run, read_answer
from qobra.migration.stream import LATER, RECOVER, StreamWriter

if TYPE_CHECKING:
    from qobra.migration.ways import AnyChannel

_MAX_RUN = 4096
"""Pages in one answer."""
_RUN_PAGES = 16
"""Pages that are sent at once: who waits for others has to wait for these."""


class Postcopy:
    """Sends the pages of ``ram`` that are in ``later``. ``requests`` counts how often some were asked for.

    ``release``: those that have arrived, as the destination tells then, are given back to the host.
    """

    def __init__(self, ram: RamSender, later: PageSet, pacer: Pacer, *, release: bool) -> None:
        self._ram = ram
        self._later = later
        self._pacer = pacer
        self._release = release
        self.requests = 0

    def announce(self, out: StreamWriter) -> None:
        """Tell which pages will come later."""
        for run in self._later.all_runs():
            out.record(LATER, RUN.pack(*run))

    def recover(self, channel: AnyChannel, out: StreamWriter) -> None:
        """Begin again over ``channel``. Raises OSError, QobraError, GivenUp."""
        out.begin()
        out.record(RECOVER)
        lacking = PageSet([block.pages for block in self._ram.blocks])
        while (answer := read_answer(channel))[0] != ALL_LACKING:
            if answer[0] == LACKING and self._exists(*answer[1]):
                lacking.add(*answer[1])
            else:
                raise QobraError("The destination lacks pages that there are not", errno=errno.EINVAL)
        self._later = lacking
        self._ram.remaining = lacking.count * PAGE

    def send(self, channel: AnyChannel, out: StreamWriter) -> None:
        """Send all that is left. Raises OSError, QobraError, GivenUp."""
        while (run := self._later.next_run(_RUN_PAGES)) is not None:
            wait = self._pacer.wait()
            if channel.readable(wait):
                kind, asked = read_answer(channel)
                self._take(kind, asked)
                if kind == WANTED:
                    self.requests += 1
                    self._send(out, *asked)
            elif not wait:
                self._pacer.charge(run[2] * PAGE)
                self._send(out, *run)

    def finish(self, channel: AnyChannel) -> None:
        """Wait until the destination says that it has all. Raises OSError, QobraError, GivenUp."""
        while (answer := read_answer(channel))[0] != TAKEN_OVER:
            self._take(*answer)

    def _take(self, kind: int, run: Run) -> None:
        block, first, count = run
        if kind not in (WANTED, ARRIVED) or not self._exists(*run) or count > _MAX_RUN:
            raise QobraError("The destination asks for what there is not", errno=errno.EINVAL)
        if kind == ARRIVED and self._release and not self._later.any(*run):
            ram = self._ram.blocks[block].ram
            ram.discard(first * PAGE, min(count * PAGE, ram.size - first * PAGE))

    def _send(self, out: StreamWriter, block: int, first: int, count: int) -> None:
        for start, size in list(self._later.runs(block, first, count)):
            self._ram.send_late(out, block, start, size)
            self._later.remove(block, start, size)

    def _exists(self, block: int, first: int, count: int) -> bool:
        return block < len(self._ram.blocks) and first + count <= self._ram.blocks[block].pages
