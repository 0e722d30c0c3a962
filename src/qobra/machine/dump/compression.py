"""How pages of a kdump file are compressed: with zlib always, with LZO and Snappy where the host has their libraries.

The numbers are those of makedumpfile's page flags; the libraries are called through their C interfaces (lzo/lzo1x.h,
snappy-c.h), without the lock of the interpreter.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Callable

Compress = Callable[[bytes], bytes]

ZLIB, LZO, SNAPPY = 1, 2, 4
"""Flags of pages, and the bits of the header that say what may come."""

_LZO_WORK = 16384 * ctypes.sizeof(ctypes.c_void_p)
_LZO_VERSION = 0x20A0


def _zlib() -> Compress:
    return lambda page: zlib.compress(page, 1)


def _lzo() -> Compress:
    library = ctypes.CDLL("liblzo2.so.2")
    # It may check the sizes of nine C types; -1: not this one.
    if library.__lzo_init_v2(ctypes.c_uint(_LZO_VERSION), *(ctypes.c_int(-1) for _ in range(9))):
        raise OSError("liblzo2 does not fit this host")
    compress = library.lzo1x_1_compress
    work = ctypes.create_string_buffer(_LZO_WORK)

    def call(page: bytes) -> bytes:
        out = ctypes.create_string_buffer(len(page) + len(page) // 16 + 64 + 3)
        length = ctypes.c_size_t(len(out))
        if compress(page, ctypes.c_size_t(len(page)), out, ctypes.byref(length), work):
            return page
        return out.raw[: length.value]

    return call


def _snappy() -> Compress:
    library = ctypes.CDLL("libsnappy.so.1")
    compress, limit = library.snappy_compress, library.snappy_max_compressed_length
    limit.restype, limit.argtypes = ctypes.c_size_t, [ctypes.c_size_t]

    def call(page: bytes) -> bytes:
        out = ctypes.create_string_buffer(limit(len(page)))
        length = ctypes.c_size_t(len(out))
        if compress(page, ctypes.c_size_t(len(page)), out, ctypes.byref(length)):
            return page
        return out.raw[: length.value]

    return call


_FORMATS: dict[str, tuple[int, Callable[[], Compress]]] = {
    "kdump-zlib": (ZLIB, _zlib),
    "kdump-lzo": (LZO, _lzo),
    "kdump-snappy": (SNAPPY, _snappy),
}


def compressor(form: str) -> tuple[int, Compress] | None:
    """The flag and the function of a format of dump-guest-memory; None where the host lacks the library."""
    flag, load = _FORMATS[form]
    try:
        return flag, load()
    except (OSError, AttributeError):
        return None


def available() -> list[str]:
    """The compressed formats that can be written here."""
    return [form for form in _FORMATS if compressor(form) is not None]
