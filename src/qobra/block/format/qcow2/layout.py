"""What is on disk in a qcow2 image: structs, masks, limits (docs/interop/qcow2.txt of the QEMU project)."""

from __future__ import annotations

from struct import Struct

MAGIC = b"QFI\xfb"

HEADER_V2 = Struct(">4sIQIIQIIQQIIQ")
"""magic, version, backing offset, backing size, cluster bits, size, encryption method, L1 entries, L1 offset,
refcount table offset, refcount table clusters, number of snapshots, snapshot table offset."""
HEADER_V3 = Struct(">QQQII")
"""incompatible, compatible, autoclear features, refcount order, header length; follows HEADER_V2."""
V2_LENGTH = 72
V3_LENGTH = 104
FULL_LENGTH = 112
"""Length of a header with the compression type and its padding."""

EXTENSION = Struct(">II")
"""type, length of the data that follows, which is padded to 8 bytes."""
EXT_END = 0
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_CRYPTO = 0x0537BE77
EXT_DATA_FILE = 0x44415441

BITMAPS_EXTENSION = Struct(">IIQQ")
"""number of bitmaps, reserved, directory size in bytes, directory offset."""
CRYPTO_EXTENSION = Struct(">QQ")
"""offset and length of the encryption header in bytes."""
FEATURE_NAME = Struct(">BB46s")
"""kind (0 incompatible, 1 compatible, 2 autoclear), bit, name."""

SNAPSHOT = Struct(">QIHHIIQII")
"""L1 offset, L1 entries, id length, name length, seconds, nanoseconds, guest clock in ns, state size, extra length."""
SNAPSHOT_EXTRA = Struct(">QQQ")
"""state size in bytes, disk size in bytes, instruction count; later members may be missing."""

BITMAP_ENTRY = Struct(">QIIBBHI")
"""table offset, table entries, flags, type, granularity bits, name length, extra length."""

# Incompatible features.
DIRTY = 1
CORRUPT = 2
EXTERNAL_DATA = 4
COMPRESSION = 8
EXTENDED_L2 = 16
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2
# Compatible features.
LAZY_REFCOUNTS = 1
# Autoclear features.
BITMAPS_VALID = 1
RAW_EXTERNAL = 2
KNOWN_AUTOCLEAR = BITMAPS_VALID | RAW_EXTERNAL

FEATURES = (
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
)
"""What the feature name table of a new image says: kind, bit, name."""
MIN_FEATURE_NAMES_CLUSTER = 8192
"""In smaller clusters the table would leave no room for the names of files."""

CRYPT_NONE = 0
CRYPT_AES = 1
CRYPT_LUKS = 2

COMPRESSION_TYPES = ("zlib", "zstd")

# Entries of L1 and L2 tables.
COPIED = 1 << 63
COMPRESSED_FLAG = 1 << 62
ZERO_FLAG = 1
OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
L1_RESERVED = 0x7F00_0000_0000_01FF
L2_RESERVED = 0x3F00_0000_0000_01FE
REFTABLE_MASK = 0xFFFF_FFFF_FFFF_FE00
REFTABLE_RESERVED = 0x1FF

SUBCLUSTERS = 32
ALL_ALLOCATED = 0xFFFF_FFFF
"""Subcluster bitmap: all 32 allocated."""
ALL_ZERO = 0xFFFF_FFFF << 32
"""Subcluster bitmap: all 32 read as zeroes."""

# Limits, which are QEMU's.
MIN_CLUSTER_BITS = 9
MAX_CLUSTER_BITS = 21
MIN_EXTENDED_CLUSTER_BITS = 14
MAX_L1_BYTES = 32 << 20
MAX_L1_INDEX = (1 << 31) - 1
MAX_REFTABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 65536
MAX_SNAPSHOT_TABLE_BYTES = 64 << 20
MIN_SNAPSHOT_EXTRA = 16
"""Bytes that each entry of an image of version 3 has at least."""
MAX_SNAPSHOT_EXTRA = 1024
MAX_BITMAPS = 65535
MAX_BITMAP_DIRECTORY_BYTES = 64 << 20
MAX_BITMAP_NAME = 1023
MAX_BACKING_NAME = 1023
MAX_BACKING_FORMAT = 15
MAX_BITMAP_TABLE_ENTRIES = 0x8000000
MAX_REFCOUNT_ORDER = 6


def hexadecimal(number: int) -> str:
    """As C prints it: a zero has no 0x before it."""
    return f"{number:#x}" if number else "0"


def compressed_place(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Host offset and upper bound of the length in bytes of the compressed cluster that ``entry`` describes."""
    shift = 62 - (cluster_bits - 8)
    offset = entry & ((1 << shift) - 1)
    sectors = (entry >> shift & ((1 << (cluster_bits - 8)) - 1)) + 1
    return offset, sectors * 512 - (offset & 511)


def compressed_entry(offset: int, length: int, cluster_bits: int) -> int:
    """The L2 entry for ``length`` compressed bytes at host ``offset``."""
    shift = 62 - (cluster_bits - 8)
    sectors = ((offset + length - 1) >> 9) - (offset >> 9)
    return COMPRESSED_FLAG | sectors << shift | offset
