"""Where pages go on their way out: into the stream as they are, packed by several threads, or over several channels."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.migration.lanes import Lanes
from qobra.migration.page_coding import AS_ZLIB, AS_ZSTD, Packer
from qobra.migration.stream import CHANNELS, DEFLATED, PAGES, SYNC, ZSTD, Sink, StreamWriter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qobra.migration.migration import Migration
    from qobra.migration.ways import AnyChannel

PACKED = (DEFLATED, ZSTD)
"""The types of records with pages that were packed as AS_ZLIB and AS_ZSTD."""

HELLO = b"QOBRACH\n"
"""What another channel begins with; the token of its migration and its number (1) follow."""

TOKEN_SIZE = 16

_Run = tuple[bytes, bytes]


class PageOut:
    """Writes memory to the stream ``out``."""

    def __init__(self, out: StreamWriter) -> None:
        self._out = out

    packer: Packer | None = None
    """What packs pages."""

    @property
    def beside(self) -> int:
        """Bytes that were sent beside the stream."""
        return 0

    def record(self, kind: int, head: bytes, *payload: bytes | memoryview) -> None:
        """Send a record with pages."""
        self._out.record(kind, head, *payload)

    def end_pass(self) -> None:
        """What is sent from now on may be the same pages again."""

    def close(self) -> None:
        """It is over."""


class PackedOut(PageOut):
    """Packs pages in ``threads`` threads (``compress``).

    While all of them are busy pages wait, or go as they are if they are not to ``wait``.
    """

    def __init__(self, out: StreamWriter, packer: Packer, threads: int, *, wait: bool) -> None:
        super().__init__(out)
        self.packer = self._packer = packer
        self._wait = wait
        self._lock = threading.Lock()
        self._lanes: Lanes[_Run] = Lanes(threads, self._pack)

    def record(self, kind: int, head: bytes, *payload: bytes | memoryview) -> None:
        if kind == PAGES:
            busy = self._lanes.full
            self._packer.note(busy=busy)
            if self._lanes.put((head, b"".join(payload)), wait=self._wait):
                return
        with self._lock:
            self._out.record(kind, head, *payload)

    def end_pass(self) -> None:
        self._lanes.drain()
        self._out.record(SYNC)

    def close(self) -> None:
        self._lanes.close()

    def _pack(self, _lane: int, run: _Run) -> None:
        head, data = run
        packed = self._packer.pack(data)
        with self._lock:
            if packed is None:
                self._out.record(PAGES, head, data)
            else:
                self._out.record(PACKED[self._packer.kind], head, packed)


class MultiOut(PageOut):
    """Sends pages over ``channels`` beside the stream, a thread each (``multifd``), ``packer`` packing them."""

    def __init__(
        self,
        out: StreamWriter,
        channels: Sequence[Sink],
        packer: Packer | None,
        pace: Callable[[int], None],
    ) -> None:
        super().__init__(out)
        self.packer = packer
        self._pace = pace
        self._writers = [StreamWriter(channel) for channel in channels]
        self._lanes: Lanes[_Run] = Lanes(len(channels), self._send)

    @property
    def beside(self) -> int:
        return sum(writer.sent for writer in self._writers)

    def record(self, kind: int, head: bytes, *payload: bytes | memoryview) -> None:
        if kind == PAGES:
            data = b"".join(payload)
            self._pace(len(data))
            self._lanes.put((head, data))
        else:
            self._out.record(kind, head, *payload)

    def end_pass(self) -> None:
        self._lanes.drain()
        for writer in self._writers:
            writer.record(SYNC)
        self._out.record(SYNC)

    def close(self) -> None:
        self._lanes.close()

    def _send(self, lane: int, run: _Run) -> None:
        head, data = run
        packed = self.packer.pack(data) if self.packer is not None else None
        if packed is None or self.packer is None:
            self._writers[lane].record(PAGES, head, data)
        else:
            self._writers[lane].record(PACKED[self.packer.kind], head, packed)


def open_pages(
    owner: Migration, out: StreamWriter, open_channel: Callable[[], AnyChannel], pace: Callable[[int], None]
) -> PageOut:
    """Where pages go as the capabilities say. Raises OSError, QobraError, GivenUp."""
    parameters = owner.settings.parameters
    if owner.capability("multifd"):
        token, count = os.urandom(TOKEN_SIZE), parameters["multifd-channels"]
        out.record(CHANNELS, token + bytes((count,)))
        channels = []
        for number in range(count):
            # The other side looks at one after the other.
            channels.append(open_channel())
            channels[-1].write(HELLO + token + bytes((number,)))
        method, packer = parameters["multifd-compression"], None
        if method != "none":
            packer = Packer(AS_ZLIB if method == "zlib" else AS_ZSTD, parameters[f"multifd-{method}-level"])
        return MultiOut(out, channels, packer, pace)
    if owner.capability("compress"):
        packer = Packer(AS_ZLIB, parameters["compress-level"])
        return PackedOut(out, packer, parameters["compress-threads"], wait=parameters["compress-wait-thread"])
    return PageOut(out)
