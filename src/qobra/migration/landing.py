"""The destination's part of ``postcopy-ram``: the guest runs here already, and the rest of its memory comes.

Where the channel breaks, that waits until the user names another way (``migrate-recover``).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.errors import QobraError, strerror
from qobra.migration.arrivals import Arrivals
from qobra.migration.ram import RUN, RamBlock
from qobra.migration.return_path import Answers
from qobra.migration.stream import BITMAPS, DELTA, END, MEMORY, RECOVER, StreamReader
from qobra.report import report_error

if TYPE_CHECKING:
    from qobra.migration.incoming import Incoming


class Landing:
    """Memory that is still to come into ``blocks``. The source is told what has arrived, and may keep it until then."""

    def __init__(self, incoming: Incoming, blocks: list[RamBlock], answers: Answers) -> None:
        self._incoming = incoming
        self.answers = answers
        self.arrivals = Arrivals(blocks, self._ask)
        self._thread: threading.Thread | None = None
        self._error: QobraError | None = None

    def expect(self, payload: bytes) -> None:
        """A record says which pages will come late. Raises QobraError."""
        if len(payload) != RUN.size:
            raise QobraError("Illegal RAM offset", errno=errno.EINVAL)
        self.arrivals.expect(*RUN.unpack(payload))

    def begin(self, go_on: Callable[[], None]) -> None:
        """Let the machine go on, in a thread of its own: it may need pages for that which are to be read here."""
        self.arrivals.watch()
        self._thread = threading.Thread(target=self._go_on, args=(go_on,), name="landing", daemon=True)
        self._thread.start()

    def receive(self, reader: StreamReader) -> None:
        """Take what comes until the end, over one channel or several. Raises QobraError, or GivenUp."""
        while True:
            try:
                self._receive(reader)
                break
            except (OSError, QobraError) as error:
                if self._error is not None:
                    raise self._error
                if isinstance(error, QobraError) and error.errno != errno.EIO:
                    raise
            reader = self._recover()
        self.arrivals.end()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _receive(self, reader: StreamReader) -> None:
        while (record := reader.record())[0] != END:
            kind, payload = record
            if kind in MEMORY and kind != DELTA:
                self.arrivals.place(kind, payload)
                self.answers.arrived(*RUN.unpack_from(payload))
            elif kind == BITMAPS and not self.arrivals.missing:
                self._incoming.take_bitmaps(payload)
            else:
                raise QobraError(f"Unexpected savevm section type {kind}", errno=errno.EINVAL)
        if self.arrivals.missing:
            raise QobraError("The migration stream ends without all of memory", errno=errno.EINVAL)

    def _recover(self) -> StreamReader:
        while True:
            self._incoming.hang_up()
            self.answers.detach()
            report_error("Detected IO failure for postcopy. Migration paused.")
            channel = self._incoming.reopen()
            try:
                reader = StreamReader(channel)
                reader.begin()
                if reader.record()[0] != RECOVER:
                    raise QobraError("Not the stream of a recovery", errno=errno.EINVAL)
                self._incoming.note_status("postcopy-recover")
                self.answers.attach(channel, self.arrivals.list_missing())
                self.arrivals.ask_again()
                self._incoming.note_status("postcopy-active")
                return reader
            except (OSError, QobraError) as error:
                report_error(strerror(error) if isinstance(error, OSError) else error)

    def _ask(self, block: int, first: int, count: int) -> None:
        try:
            self.answers.want(block, first, count)
        except OSError:
            pass  # it is asked again over the next channel

    def _go_on(self, go_on: Callable[[], None]) -> None:
        try:
            go_on()
        except QobraError as error:
            self._error = error
            self._incoming.hang_up()
