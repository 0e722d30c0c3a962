"""The header of a qcow2 image with its extensions: parse and check it, and put it together again.

Parsing refuses what QEMU refuses, in its words, and keeps what it does not know (extensions, further header fields)
so that writing the header gives it back.
"""

from __future__ import annotations

import errno

from qobra.block.format.qcow2 import layout
from qobra.errors import QobraError
from qobra.units import signed32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    ReadBytes = Callable[[int, int], bytes]
    """Gives ``length`` bytes from ``offset`` of the image file, zeroes past its end."""


class Header:
    """The fields of a header; sizes and offsets in bytes, tables in entries."""

    def __init__(self) -> None:
        self.version = 3
        self.cluster_bits = 16
        self.size = 0
        self.crypt_method = layout.CRYPT_NONE
        self.l1_entries = 0
        self.l1_offset = 0
        self.reftable_offset = 0
        self.reftable_clusters = 0
        self.snapshot_count = 0
        self.snapshot_offset = 0
        self.incompatible = 0
        self.compatible = 0
        self.autoclear = 0
        self.refcount_order = 4
        self.compression = 0
        self.unknown_fields = b""
        """What follows the compression type in a header longer than we know."""
        self.backing_file = ""
        self.backing_format = ""
        self.data_file: str | None = None
        self.bitmaps: tuple[int, int, int] | None = None
        """(number of bitmaps, directory offset, directory bytes) or None without the extension."""
        self.stale_bitmaps = False
        """There is an extension of bitmaps that were not kept up to date, and so mean nothing."""
        self.crypto: tuple[int, int] | None = None
        """(offset, length) of the encryption header."""
        self.feature_names: dict[tuple[int, int], str] = {}
        self.unknown_extensions: list[tuple[int, bytes]] = []

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def extended_l2(self) -> bool:
        """Whether L2 entries are 128 bits, with subclusters."""
        return bool(self.incompatible & layout.EXTENDED_L2)

    @property
    def external_data(self) -> bool:
        """Whether guest clusters lie in another file."""
        return bool(self.incompatible & layout.EXTERNAL_DATA)

    def pack(self) -> bytes:
        """The header, its extensions and the backing file's name, as they stand at the image's start.

        Raises QobraError (ENOSPC) where they do not fit into the first cluster.
        """
        extensions = self._pack_extensions()
        fixed_length = layout.V2_LENGTH
        if self.version >= 3:
            fixed_length = layout.FULL_LENGTH + len(self.unknown_fields)
        backing = self.backing_file.encode("utf-8", "surrogateescape")
        backing_offset = fixed_length + len(extensions) if backing else 0
        fixed = layout.HEADER_V2.pack(
            layout.MAGIC,
            self.version,
            backing_offset,
            len(backing),
            self.cluster_bits,
            self.size,
            self.crypt_method,
            self.l1_entries,
            self.l1_offset,
            self.reftable_offset,
            self.reftable_clusters,
            self.snapshot_count,
            self.snapshot_offset,
        )
        if self.version >= 3:
            fixed += layout.HEADER_V3.pack(
                self.incompatible, self.compatible, self.autoclear, self.refcount_order, fixed_length
            )
            fixed += bytes((self.compression, 0, 0, 0, 0, 0, 0, 0)) + self.unknown_fields
        data = fixed + extensions + backing
        if len(data) > self.cluster_size:
            raise QobraError("The image header does not fit into the first cluster", errno=errno.ENOSPC)
        return data

    def _pack_extensions(self) -> bytes:
        parts = []
        if self.backing_format:
            parts.append((layout.EXT_BACKING_FORMAT, self.backing_format.encode()))
        if self.external_data and self.data_file:
            parts.append((layout.EXT_DATA_FILE, self.data_file.encode("utf-8", "surrogateescape")))
        if self.crypto is not None:
            parts.append((layout.EXT_CRYPTO, layout.CRYPTO_EXTENSION.pack(*self.crypto)))
        if self.version >= 3 and self.cluster_size >= layout.MIN_FEATURE_NAMES_CLUSTER:
            names = (layout.FEATURE_NAME.pack(kind, bit, name.encode()) for kind, bit, name in layout.FEATURES)
            parts.append((layout.EXT_FEATURE_NAMES, b"".join(names)))
        if self.bitmaps is not None:
            count, offset, size = self.bitmaps
            parts.append((layout.EXT_BITMAPS, layout.BITMAPS_EXTENSION.pack(count, 0, size, offset)))
        parts += self.unknown_extensions
        packed = b"".join(layout.EXTENSION.pack(kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in parts)
        return packed + layout.EXTENSION.pack(layout.EXT_END, 0)


def parse_header(read: ReadBytes, *, check_features: bool = True, check_snapshots: bool = True) -> Header:
    """The header of the image that ``read`` reads. Raises QobraError in QEMU's words for what cannot be opened.

    Without ``check_features``, unknown incompatible features are let through (for repair tools that only look), without
    ``check_snapshots`` more snapshots than there may be.
    """
    header = Header()
    raw = read(0, layout.FULL_LENGTH)
    (
        magic,
        header.version,
        backing_offset,
        backing_size,
        header.cluster_bits,
        header.size,
        header.crypt_method,
        header.l1_entries,
        header.l1_offset,
        header.reftable_offset,
        header.reftable_clusters,
        header.snapshot_count,
        header.snapshot_offset,
    ) = layout.HEADER_V2.unpack_from(raw)
    if magic != layout.MAGIC:
        raise QobraError("Image is not in qcow2 format", errno=errno.EINVAL)
    if header.version not in (2, 3):
        raise QobraError(f"Unsupported qcow2 version {header.version}", errno=errno.ENOTSUP)
    if not layout.MIN_CLUSTER_BITS <= header.cluster_bits <= layout.MAX_CLUSTER_BITS:
        raise QobraError(f"Unsupported cluster size: 2^{header.cluster_bits}", errno=errno.EINVAL)
    length = layout.V2_LENGTH
    if header.version >= 3:
        header.incompatible, header.compatible, header.autoclear, header.refcount_order, length = (
            layout.HEADER_V3.unpack_from(raw, layout.V2_LENGTH)
        )
        if length < layout.V3_LENGTH:
            raise QobraError("qcow2 header too short", errno=errno.EINVAL)
        if length > header.cluster_size:
            raise QobraError("qcow2 header exceeds cluster size", errno=errno.EINVAL)
        if length > layout.V3_LENGTH:
            header.compression = raw[layout.V3_LENGTH]
        if length > layout.FULL_LENGTH:
            header.unknown_fields = read(layout.FULL_LENGTH, length - layout.FULL_LENGTH)
    if backing_offset > header.cluster_size:
        raise QobraError("Invalid backing file offset", errno=errno.EINVAL)
    _check_compression(header)
    end = backing_offset or header.cluster_size
    unknown = header.incompatible & ~layout.KNOWN_INCOMPATIBLE
    _parse_extensions(header, read, length, end, lenient=bool(unknown))
    if unknown and check_features:
        raise QobraError(f"Unsupported qcow2 feature(s): {_feature_text(header, unknown)}", errno=errno.ENOTSUP)
    if backing_offset:
        header.backing_file = _backing_name(header, read, backing_offset, backing_size)
    check_header(header, check_snapshots=check_snapshots)
    return header


def _backing_name(header: Header, read: ReadBytes, offset: int, size: int) -> str:
    if size > min(layout.MAX_BACKING_NAME, header.cluster_size - offset):
        raise QobraError("Backing file name too long", errno=errno.EINVAL)
    return read(offset, size).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def check_header(header: Header, *, check_snapshots: bool = True) -> None:
    """Refuse a header whose fields are out of bounds or contradict one another."""
    if header.refcount_order > layout.MAX_REFCOUNT_ORDER:
        raise QobraError("Reference count entry width too large; may not exceed 64 bits", errno=errno.EINVAL)
    if header.extended_l2 and header.cluster_bits < layout.MIN_EXTENDED_CLUSTER_BITS:
        raise QobraError("Unsupported subcluster size", errno=errno.EINVAL)
    check_table(
        header,
        header.reftable_offset,
        header.reftable_clusters << header.cluster_bits,
        layout.MAX_REFTABLE_BYTES,
        "Reference count table",
    )
    check_table(
        header,
        header.snapshot_offset,
        header.snapshot_count * layout.SNAPSHOT.size if check_snapshots else 0,
        layout.MAX_SNAPSHOTS * layout.SNAPSHOT.size,
        "Snapshot table",
    )
    check_table(header, header.l1_offset, header.l1_entries * 8, layout.MAX_L1_BYTES, "Active L1 table")
    if header.size > (1 << 63) - 512:
        raise QobraError("Image size is too large", errno=errno.EFBIG)
    if l1_entries_for(header, header.size) > layout.MAX_L1_INDEX:
        raise QobraError("Image is too big", errno=errno.EFBIG)
    if header.l1_entries < l1_entries_for(header, header.size):
        raise QobraError("L1 table is too small", errno=errno.EINVAL)
    if header.crypt_method > layout.CRYPT_LUKS:
        raise QobraError(f"Unsupported encryption method {signed32(header.crypt_method)}", errno=errno.EINVAL)


def check_table(header: Header, offset: int, size: int, limit: int, name: str) -> None:
    """Refuse a table of ``size`` bytes at ``offset`` that is too large, or not on a cluster."""
    if size > limit:
        raise QobraError(f"{name} too large", errno=errno.EFBIG)
    if offset > (1 << 63) - 1 - size or offset & (header.cluster_size - 1):
        raise QobraError(f"{name} offset invalid", errno=errno.EINVAL)


def l1_entries_for(header: Header, size: int) -> int:
    """Entries that an L1 table needs for ``size`` bytes of guest data."""
    shift = l1_shift(header)
    return (size + (1 << shift) - 1) >> shift


def l1_shift(header: Header) -> int:
    """Bits of a guest offset below those that index the L1 table."""
    return 2 * header.cluster_bits - (4 if header.extended_l2 else 3)


def _check_compression(header: Header) -> None:
    if header.compression >= len(layout.COMPRESSION_TYPES):
        raise QobraError(f"qcow2: unknown compression type: {header.compression}", errno=errno.ENOTSUP)
    flagged = bool(header.incompatible & layout.COMPRESSION)
    if header.compression == 0 and flagged:
        raise QobraError("qcow2: Compression type incompatible feature bit must not be set", errno=errno.EINVAL)
    if header.compression and not flagged:
        raise QobraError("qcow2: Compression type incompatible feature bit must be set", errno=errno.EINVAL)


def _parse_extensions(header: Header, read: ReadBytes, start: int, end: int, *, lenient: bool) -> None:
    """Take the extensions between ``start`` and ``end``; ``lenient``: only for the sake of feature names."""
    area = read(start, end - start) if end > start else b""
    position = 0
    while position < len(area):
        if position + layout.EXTENSION.size > len(area):
            raise QobraError("Header extension too large", errno=errno.EINVAL)
        kind, length = layout.EXTENSION.unpack_from(area, position)
        position += layout.EXTENSION.size
        if position > len(area) or length > len(area) - position:
            raise QobraError("Header extension too large", errno=errno.EINVAL)
        data = area[position : position + length]
        position += length + (-length % 8)
        if kind == layout.EXT_END:
            return
        if kind == layout.EXT_FEATURE_NAMES:
            size = layout.FEATURE_NAME.size
            for at in range(0, length, size):
                feature, bit, name = layout.FEATURE_NAME.unpack(data[at : at + size].ljust(size, b"\0"))
                header.feature_names.setdefault((feature, bit), name.split(b"\0", 1)[0].decode("utf-8", "replace"))
        elif not lenient:
            _take_extension(header, kind, data)


def _take_extension(header: Header, kind: int, data: bytes) -> None:
    if kind == layout.EXT_BACKING_FORMAT:
        if len(data) > layout.MAX_BACKING_FORMAT:
            raise QobraError(f"ERROR: ext_backing_format: len={len(data)} too large (>=16)", errno=errno.EINVAL)
        header.backing_format = data.split(b"\0", 1)[0].decode("utf-8", "replace")
    elif kind == layout.EXT_DATA_FILE:
        header.data_file = data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    elif kind == layout.EXT_CRYPTO:
        _take_crypto(header, data)
    elif kind == layout.EXT_BITMAPS:
        _take_bitmaps(header, data)
    else:
        header.unknown_extensions.append((kind, data))


def _take_crypto(header: Header, data: bytes) -> None:
    if header.crypt_method != layout.CRYPT_LUKS:
        raise QobraError("CRYPTO header extension only expected with LUKS encryption method", errno=errno.EINVAL)
    if len(data) != layout.CRYPTO_EXTENSION.size:
        raise QobraError(
            f"CRYPTO header extension size {len(data)}, but expected size {layout.CRYPTO_EXTENSION.size}",
            errno=errno.EINVAL,
        )
    offset, length = layout.CRYPTO_EXTENSION.unpack(data)
    if offset % header.cluster_size:
        raise QobraError(
            f"Encryption header offset '{offset}' is not a multiple of cluster size '{header.cluster_size}'",
            errno=errno.EINVAL,
        )
    header.crypto = (offset, length)


def _take_bitmaps(header: Header, data: bytes) -> None:
    if len(data) != layout.BITMAPS_EXTENSION.size:
        raise QobraError("bitmaps_ext: Invalid extension length", errno=errno.EINVAL)
    if not header.autoclear & layout.BITMAPS_VALID:
        header.stale_bitmaps = True  # some program that does not know bitmaps wrote to the image
        return
    count, reserved, size, offset = layout.BITMAPS_EXTENSION.unpack(data)
    if reserved:
        raise QobraError("bitmaps_ext: Reserved field is not zero", errno=errno.EINVAL)
    if count > layout.MAX_BITMAPS:
        raise QobraError(
            f"bitmaps_ext: image has {count} bitmaps, exceeding the QEMU supported maximum of {layout.MAX_BITMAPS}",
            errno=errno.EINVAL,
        )
    if not count:
        raise QobraError("found bitmaps extension with zero bitmaps", errno=errno.EINVAL)
    if offset & (header.cluster_size - 1):
        raise QobraError("bitmaps_ext: invalid bitmap directory offset", errno=errno.EINVAL)
    if size > layout.MAX_BITMAP_DIRECTORY_BYTES:
        raise QobraError(
            f"bitmaps_ext: bitmap directory size ({size}) exceeds the maximum supported size "
            f"({layout.MAX_BITMAP_DIRECTORY_BYTES})",
            errno=errno.EINVAL,
        )
    header.bitmaps = (count, offset, size)


def _feature_text(header: Header, mask: int) -> str:
    names = []
    for bit in range(64):
        if mask >> bit & 1 and (0, bit) in header.feature_names:
            names.append(header.feature_names[0, bit])
            mask &= ~(1 << bit)
    if mask:
        names.append(f"Unknown incompatible feature: {mask:x}")
    return ", ".join(names)
