"""The stream that carries a machine: a header, then records of a type, a length and a checksum.

It is Qobra's own; docs/migration.md describes it. The reader trusts nothing: a record is bounded before it is read,
and what is wrong is one :class:`~qobra.errors.QobraError`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import Struct
from typing import Protocol
from zlib import crc32

from qobra.errors import QobraError

MAGIC = b"QOBRAVM\n"
VERSION = 1

CONFIGURATION, BLOCKS, PAGES, ZEROES, MACHINE, DEVICE, BITMAPS, SWITCH, END, DELTA, DEFLATED, ANSWER = range(1, 13)
CAPABILITY, LATER, RECOVER, CHANNELS, SYNC, ZSTD, DISKS = range(13, 20)
"""Types of records."""

MEMORY = frozenset((PAGES, ZEROES, DELTA, DEFLATED, ZSTD))
"""Those that have pages."""

MAX_RECORD = 64 << 20
"""Bytes of the longest record."""

_HEADER = Struct("<8sI")
_RECORD = Struct("<BII")


class Sink(Protocol):
    """Where a stream is written to."""

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        """Write all of ``data``. Raises OSError or QobraError."""
        ...


class Source(Protocol):
    """Where a stream is read from."""

    def read(self, length: int) -> bytes:
        """The next ``length`` bytes; fewer only at the end. Raises OSError or QobraError."""
        ...


class StreamWriter:
    """Writes records. ``sent`` counts bytes; ``pace`` is told of each record's before it is written."""

    def __init__(self, sink: Sink, pace: Callable[[int], None] | None = None) -> None:
        self._sink = sink
        self._pace = pace
        self.sent = 0

    def begin(self) -> None:
        """Write the header."""
        self._write(_HEADER.pack(MAGIC, VERSION))

    def record(self, kind: int, *payload: bytes | bytearray | memoryview) -> None:
        """Write a record whose payload is all of ``payload``."""
        length, check = 0, 0
        for each in payload:
            length += len(each)
            check = crc32(each, check)
        if length > MAX_RECORD:
            raise QobraError(f"a part of the machine's state is too long for a stream: {length} bytes")
        if self._pace is not None:
            self._pace(length)
        self._write(_RECORD.pack(kind, length, check))
        for each in payload:
            self._write(each)

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        self._sink.write(data)
        self.sent += len(data)


class StreamReader:
    """Reads records. ``received`` counts bytes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.received = 0

    def begin(self) -> None:
        """Read and check the header."""
        magic, version = _HEADER.unpack(self._read(_HEADER.size))
        if magic != MAGIC:
            raise QobraError("Not a migration stream", errno=errno.EINVAL)
        if version != VERSION:
            raise QobraError(f"Unsupported migration stream version {version}", errno=errno.ENOTSUP)

    def record(self) -> tuple[int, bytes]:
        """The type and the payload of the next record."""
        kind, length, check = _RECORD.unpack(self._read(_RECORD.size))
        if not CONFIGURATION <= kind <= DISKS or length > MAX_RECORD:
            raise QobraError(f"Unknown savevm section type {kind}", errno=errno.EINVAL)
        payload = self._read(length)
        if crc32(payload) != check:
            raise QobraError("The migration stream is damaged: wrong checksum", errno=errno.EINVAL)
        return kind, payload

    def _read(self, length: int) -> bytes:
        data = self._source.read(length)
        if len(data) < length:
            raise QobraError("The migration stream ends too early", errno=errno.EIO)
        self.received += length
        return data
