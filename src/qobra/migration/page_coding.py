"""Shorter forms of pages: changes to what the other side has (``xbzrle``), and packed runs of them."""

from __future__ import annotations

import errno
import re
import threading
import zlib
from typing import Any

from qobra.errors import QobraError

PAGE = 4096
AS_ZLIB, AS_ZSTD = range(2)
"""How pages are packed."""
_RUNS = re.compile(rb"\0+|[^\0]+")
_CONTINUES = 0x80


def encode_delta(old: bytes, new: bytes) -> bytes | None:
    """What makes ``new`` of ``old``; empty where they are the same, None where it would be no shorter than a page.

    Lengths of what stays and of what comes, in turn, as unsigned LEB128; after the latter, what comes.
    """
    if old == new:
        return b""
    difference = (int.from_bytes(old, "little") ^ int.from_bytes(new, "little")).to_bytes(len(new), "little")
    out = bytearray()
    for run in _RUNS.finditer(difference):
        start, end = run.span()
        if difference[start]:
            if not out:
                _put_length(out, 0)
            _put_length(out, end - start)
            out += new[start:end]
        elif end < len(new):
            _put_length(out, end - start)
        if len(out) >= PAGE:
            return None
    return bytes(out)


def apply_delta(page: memoryview, delta: bytes | memoryview) -> None:
    """Change ``page`` as ``delta`` says. Raises QobraError where that would leave the page."""
    at = position = 0
    while position < len(delta):
        stays, position = _take_length(delta, position)
        comes, position = _take_length(delta, position)
        at += stays
        if not comes or at + comes > len(page) or position + comes > len(delta):
            raise QobraError("Failed to decode a page: its changes do not fit", errno=errno.EINVAL)
        page[at : at + comes] = delta[position : position + comes]
        at, position = at + comes, position + comes


def _put_length(out: bytearray, length: int) -> None:
    while length >= _CONTINUES:
        out.append(length & 0x7F | _CONTINUES)
        length >>= 7
    out.append(length)


def _take_length(delta: bytes | memoryview, position: int) -> tuple[int, int]:
    length = shift = 0
    while position < len(delta) and shift < 14:
        byte = delta[position]
        length |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < _CONTINUES:
            return length, position
    raise QobraError("Failed to decode a page: a length has no end", errno=errno.EINVAL)


class DeltaCache:
    """Pages as they were sent last, up to ``size`` bytes of them; the oldest make room."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._pages: dict[tuple[int, int], bytes] = {}
        self._encoded_bytes = self._encoded = self._misses = self._overflows = self._asked = 0

    def encode(self, place: tuple[int, int], page: bytes) -> bytes | None:
        """The delta to what was sent of the page at ``place``; None where the page has to be sent as it is."""
        self._asked += 1
        old = self._pages.pop(place, None)
        if old is None:
            self._misses += 1
            if len(self._pages) >= self._size // PAGE:
                del self._pages[next(iter(self._pages))]
        self._pages[place] = page
        if old is None:
            return None
        delta = encode_delta(old, page)
        if delta is None:
            self._overflows += 1
        elif delta:
            self._encoded += 1
            self._encoded_bytes += len(delta)
        return delta

    def forget(self, block: int, first: int, count: int) -> None:
        """Pages were sent in another way."""
        for page in range(first, first + count) if self._pages else ():
            self._pages.pop((block, page), None)

    def describe(self) -> dict[str, Any]:
        """XBZRLECacheStats of the reference."""
        return {
            "cache-size": self._size,
            "bytes": self._encoded_bytes,
            "pages": self._encoded,
            "cache-miss": self._misses,
            "cache-miss-rate": self._misses / self._asked if self._asked else 0,
            "encoding-rate": self._encoded * PAGE / self._encoded_bytes if self._encoded_bytes else 0,
            "overflow": self._overflows,
        }


class Packer:
    """Packs runs of pages: ``kind`` is AS_ZLIB or AS_ZSTD, ``level`` the format's. From any thread."""

    def __init__(self, kind: int, level: int) -> None:
        self.kind = kind
        self._level = level
        self._lock = threading.Lock()
        self._pages = self._size = self._busy = self._asked = 0

    def pack(self, data: bytes | memoryview) -> bytes | None:
        """``data``, whole pages, packed; None where that is no shorter."""
        packed: bytes | None
        if self.kind == AS_ZLIB:
            packed = zlib.compress(data, self._level)
        else:
            from qobra.block.format.qcow2 import compressed

            packed = compressed.compress(data, compressed.ZSTD, self._level)
        if packed is None or len(packed) >= len(data):
            return None
        with self._lock:
            self._pages += len(data) // PAGE
            self._size += len(packed)
        return packed

    def note(self, *, busy: bool) -> None:
        """Something was to be packed, and no thread was free."""
        self._asked += 1
        self._busy += busy

    def describe(self) -> dict[str, Any]:
        """CompressionStats of the reference."""
        return {
            "pages": self._pages,
            "busy": self._busy,
            "busy-rate": self._busy / self._asked if self._asked else 0,
            "compressed-size": self._size,
            "compression-rate": self._pages * PAGE / self._size if self._size else 0,
        }


def unpack(kind: int, data: bytes | memoryview, length: int) -> bytes:
    """The ``length`` bytes that ``data`` was packed from. Raises QobraError where they are fewer."""
    if kind == AS_ZLIB:
        return inflate(data, length)
    from qobra.block.format.qcow2 import compressed

    try:
        return compressed.decompress(data, length, compressed.ZSTD)
    except QobraError:
        raise QobraError("Failed to decompress pages", errno=errno.EINVAL)


def inflate(data: bytes | memoryview, length: int) -> bytes:
    """The ``length`` bytes that ``data`` was deflated from. Raises QobraError for any other length."""
    try:
        stream = zlib.decompressobj()
        plain = stream.decompress(data, length + 1)
    except zlib.error:
        plain = b""
    if len(plain) != length or not stream.eof:
        raise QobraError("Failed to decompress pages", errno=errno.EINVAL)
    return plain
