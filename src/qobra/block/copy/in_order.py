"""Copy between local files in order: one thread finds and reads what comes next while the other writes.

Two threads that each read and write would be as quick, but would scatter what the target allocates.
"""

from __future__ import annotations

from _queue import SimpleQueue

from qobra.block.buffers import new_buffer
from qobra.block.copy.chunk import ChunkCopier, CopyFailed
from qobra.block.copy.ranges import in_chunks, may_read_past, whole
from qobra.block.extents import ABSENT, ZERO, resolve
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qobra.block.copy.engine import OnError, Progress
    from qobra.block.copy.zeroes import Piece
    from qobra.block.extents import Run

BUFFERS = 4
BUFFER_SIZE = 1 << 20
"""Bytes that are read, and if nothing in them is zero written, together."""
STEP = 64 << 20
"""Bytes of the source whose places are looked up together."""

Part = tuple[int, int, bytearray | None, "list[Piece] | CopyFailed"]
"""(start, length, buffer or None where all is zero, what in it is zero or why nothing was read)."""


def copy_in_order(
    copier: ChunkCopier,
    ranges: Iterable[tuple[int, int]] | None = None,
    *,
    progress: Progress | None = None,
    throttle: Callable[[int], None] | None = None,
    on_error: OnError | None = None,
    buffers: int = BUFFERS,
) -> None:
    """Copy ``ranges`` (default: all) as ``copier`` is set to. The options are those of :func:`copy_ranges`.

    Up to ``buffers`` pieces are read ahead of what is written. The nodes are nobody else's meanwhile.
    """
    reader = _Reader(copier, ranges if ranges is not None else whole(copier.source.length), buffers)
    try:
        while True:
            part = reader.full.get()
            if part is None:
                if reader.crash is not None:
                    raise reader.crash
                return
            start, length, buffer, found = part
            failure = None
            if isinstance(found, CopyFailed):
                failure = found
            else:
                try:
                    copier.write_pieces(start, memoryview(buffer or b"")[:length], found)
                except CopyFailed as error:
                    failure = error
            if buffer is not None:
                reader.free.put(buffer)
            if failure is not None and not (on_error is not None and on_error(failure, start, length)):
                raise failure.error
            if progress is not None:
                progress(length)
            if throttle is not None and buffer is not None:
                throttle(length)
    finally:
        reader.stop()


class _Reader:
    """A thread that reads ahead into a few buffers and looks for the zeroes in them, as writing takes longest."""

    def __init__(self, copier: ChunkCopier, ranges: Iterable[tuple[int, int]], buffers: int) -> None:
        self._copier = copier
        self._source = copier.source
        self._past = may_read_past(copier.source)
        self._ranges = ranges
        self.full: SimpleQueue[Part | None] = SimpleQueue()
        self.free: SimpleQueue[bytearray] = SimpleQueue()
        self.crash: BaseException | None = None
        for _ in range(buffers):
            self.free.put(new_buffer(BUFFER_SIZE))
        self._stopped = False
        from threading import Thread

        self._thread = Thread(target=self._run, name="copy reader", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end, and wait until it has."""
        self._stopped = True
        self.free.put(new_buffer(BUFFER_SIZE))
        self._thread.join()

    def _run(self) -> None:
        try:
            for offset, length in in_chunks(self._ranges, STEP):
                if self._stopped:
                    return
                self._read_range(offset, length)
        except BaseException as error:
            self.crash = error  # raised to whoever waits for the copy
        finally:
            self.full.put(None)

    def _read_range(self, offset: int, length: int) -> None:
        inside = max(0, min(length, self._source.length - offset))
        if inside:
            try:
                runs = resolve(self._source, offset, inside, want_zero=True)
            except (OSError, QobraError) as error:
                self.full.put((offset, length, None, CopyFailed(error, True)))
                return
            for run in runs:
                if run.kind in (ZERO, ABSENT):
                    self.full.put((run.start, run.length, None, [(0, run.length, True)]))
                elif self._past:
                    self._read_run(run)
                else:
                    self._read_places(run)
        if inside < length:
            self.full.put((offset + inside, length - inside, None, [(0, length - inside, True)]))

    def _read_places(self, run: Run) -> None:
        """Read what the map says is data from where it has to be read."""
        try:
            places = resolve(self._source, run.start, run.length)
        except (OSError, QobraError) as error:
            self.full.put((run.start, run.length, None, CopyFailed(error, True)))
            return
        for place in places:
            self._read_run(place)

    def _read_run(self, run: Run) -> None:
        position = 0
        while position < run.length and not self._stopped:
            size = min(BUFFER_SIZE, run.length - position)
            buffer = self.free.get()
            found: list[Piece] | CopyFailed
            try:
                found = self._copier.read_pieces(run, position, buffer, size)
            except (OSError, QobraError) as error:
                found = CopyFailed(error, True)
            self.full.put((run.start + position, size, buffer, found))
            position += size
