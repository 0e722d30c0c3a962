"""Compressed clusters: raw deflate with a 4 KiB window, or zstd.

The codecs release the GIL, and nothing here takes the image's lock, so that many threads may work at once.
"""

from __future__ import annotations

import errno
import threading
import zlib

from qobra.errors import QobraError
from qobra.native import compiled
from qobra.packages import need

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from zstandard import ZstdCompressor, ZstdDecompressor

    from qobra.block.buffers import Buffer
    from qobra.native.deflate import Deflater

ZLIB, ZSTD = 0, 1
MAX_LEVELS = (9, 22)
"""Highest level of zlib and of zstd."""
DEFLATE_BITS = -12
"""zlib's window bits of the streams that are written: raw deflate, 4 KiB."""

DEFAULT_LEVEL = 6
"""QEMU's."""

_local = threading.local()


def require(kind: int) -> None:
    """Raises QobraError where there is nothing here that knows this kind of compression."""
    if kind == ZSTD:
        _zstandard()


def compress(data: Buffer, kind: int, level: int | None = None) -> bytes | None:
    """``data``, a whole cluster, compressed; None where that would not make it smaller."""
    return compress_clusters(data, len(data), kind, level)[0]


def compress_clusters(data: Buffer, size: int, kind: int, level: int | None = None) -> list[bytes | None]:
    """Each cluster, of ``size`` bytes, of ``data`` compressed; None where that would not make it smaller."""
    if kind == ZLIB and (native := _deflater()) is not None:
        return native.compress(data, size, *(_QUICK if level is None else _EFFORTS[level]))
    view = memoryview(data)
    packed = [_compress(view[start : start + size], kind, level) for start in range(0, len(view), size)]
    return [each if len(each) < size else None for each in packed]


def _compress(data: Buffer, kind: int, level: int | None) -> bytes:
    if kind == ZSTD:
        return _zstd_compressor(level or 3).compress(data)
    return quick_deflate(data) if level is None else pure_deflate(data, level)


def decompress(data: Buffer, size: int, kind: int) -> bytes:
    """The ``size`` bytes of a cluster that ``data`` begins with; what follows in ``data`` is not looked at.

    Raises QobraError (EIO) for bad data. Takes no more memory than ``size`` asks for.
    """
    try:
        if kind == ZSTD:
            result = _zstd_read(data, size)
        else:
            result = _inflate(data, size)
    except Exception as error:
        raise QobraError(f"Could not decompress a cluster: {error}", errno=errno.EIO)
    if len(result) != size:
        raise QobraError("Could not decompress a cluster: it is shorter than a cluster", errno=errno.EIO)
    return result


def quick_deflate(data: Buffer) -> bytes:
    """A raw deflate stream with a window of 4 KiB, by ISA-L where it is installed."""
    try:
        from isal import igzip_lib
    except ImportError:
        return pure_deflate(data, DEFAULT_LEVEL)
    packed: bytes = igzip_lib.compress(data, 3, igzip_lib.COMP_DEFLATE, igzip_lib.MEM_LEVEL_EXTRA_LARGE, 12)
    return packed


def pure_deflate(data: Buffer, level: int) -> bytes:
    """A raw deflate stream with a window of 4 KiB, by zlib."""
    stream = zlib.compressobj(level, zlib.DEFLATED, DEFLATE_BITS, 9)
    return stream.compress(data) + stream.flush()


def _deflater() -> Deflater | None:
    """The compiled form, for the calling thread."""
    if not hasattr(_local, "deflater"):
        native = compiled("deflate")
        _local.deflater = native.Deflater() if native is not None else None
    deflater: Deflater | None = _local.deflater
    return deflater


_QUICK = (0, 0, 0)
"""The effort of the compiled form's quick way, which is about as small as zlib's level 6."""
_EFFORTS = (
    (1, 16, 0), (1, 16, 0), (2, 32, 0), (4, 32, 0), (4, 32, 8), (8, 64, 16), (16, 128, 32), (24, 128, 32),
    (64, 258, 64), (256, 258, 258),
)  # fmt: skip
"""By level of zlib, how hard the compiled form looks for matches. That of 6 is as much as it takes to be no larger."""


def _inflate(data: Buffer, size: int) -> bytes:
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib.decompressobj(-15).decompress(data, size)
    result: bytes = isal_zlib.decompressobj(-15).decompress(data, size)
    return result


_codec: list[Any] = []
_loading = threading.Lock()


def _zstandard() -> Any:
    """The ``zstandard`` package, or its compiled part alone.

    The package itself imports ``platform`` to choose its part, which takes longer than a small image.
    """
    if not _codec:
        with _loading:
            _codec.append(_compiled_part() or need("zstandard", "zstd compression"))
    return _codec[0]


def _compiled_part() -> ModuleType | None:
    import sys
    from importlib.machinery import ExtensionFileLoader, PathFinder

    name = "zstandard.backend_c"
    package = PathFinder.find_spec("zstandard")
    if name in sys.modules or package is None or package.submodule_search_locations is None:
        return sys.modules.get(name)
    spec = PathFinder.find_spec(name, package.submodule_search_locations)
    if spec is None or not isinstance(spec.loader, ExtensionFileLoader):
        return None
    module: ModuleType = spec.loader.create_module(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def _zstd_compressor(level: int) -> ZstdCompressor:
    zstandard = _zstandard()
    made: dict[int, ZstdCompressor] | None = getattr(_local, "zstd", None)
    if made is None:
        made = _local.zstd = {}
    if level not in made:
        made[level] = zstandard.ZstdCompressor(level=level)
    compressor: ZstdCompressor = made[level]
    return compressor


def _zstd_read(data: Buffer, size: int) -> bytes:
    zstandard = _zstandard()
    # A header may claim any size, and that much would be allocated; one that fits, or claims none, is harmless.
    claimed = zstandard.get_frame_parameters(data).content_size
    if claimed <= size or claimed == zstandard.CONTENTSIZE_UNKNOWN:
        made: ZstdDecompressor | None = getattr(_local, "unzstd", None)
        if made is None:
            made = _local.unzstd = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        result: bytes = made.decompress(data, max_output_size=size)
        return result
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(bytes(data))
    parts = []
    while size:
        part = reader.read(size)
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class ClusterCache:
    """The clusters that were decompressed last, by L2 entry's place: small reads often come back for more of one."""

    def __init__(self, cluster_size: int) -> None:
        self._capacity = max(1, min(16, (4 << 20) // cluster_size))
        self._clusters: dict[tuple[int, int], bytes] = {}
        self._lock = threading.Lock()

    def get(self, place: tuple[int, int]) -> bytes | None:
        """The contents of the cluster at (host offset, length), if it is here."""
        return self._clusters.get(place)

    def put(self, place: tuple[int, int], data: bytes) -> None:
        """Remember a cluster."""
        with self._lock:
            while len(self._clusters) >= self._capacity:
                del self._clusters[next(iter(self._clusters))]
            self._clusters[place] = data

    def clear(self) -> None:
        """Forget all: compressed data has been written, perhaps where other data was."""
        with self._lock:
            self._clusters.clear()
