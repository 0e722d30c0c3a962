"""How large an image will be (BlockMeasureInfo), by the sizes of its parts."""

from __future__ import annotations

import errno

from qobra.block.extents import ZERO, resolve
from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.create import cluster_bits, refcount_order
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.node import BlockNode, Options

_STEP = 1 << 36
"""Bytes of the source that are resolved at a time."""


def measure(options: Options, source: BlockNode | None) -> Options:
    """BlockMeasureInfo of an image made as ``options`` (those of creation; ``size`` only without a source) say.

    With ``source``, what it holds is counted and the size is its own; on a backing file all of it is.
    """
    extended = bool(options.get("extended-l2", False))
    bits = cluster_bits(options.get("cluster-size", 65536), extended)
    cluster = 1 << bits
    version = 2 if options.get("version", "v3") == "v2" else 3
    order = refcount_order(options.get("refcount-bits", 16), version)
    preallocation = options.get("preallocation", "off")
    size = source.length if source is not None else -(-options["size"] // 512) * 512
    size = -(-size // cluster) * cluster
    entry = 16 if extended else 8
    l2_tables = -(-size // cluster) * entry
    if -(-l2_tables // cluster) > layout.MAX_L1_BYTES // 8:
        raise QobraError("The image size is too large (try using a larger cluster size)", errno=errno.EINVAL)
    if preallocation in ("falloc", "full") or (source is not None and "backing-file" in options):
        required = size  # the backing file may have none of what the source shows
    elif source is not None:
        required = _allocated(source, cluster)
    else:
        required = 0
    full = _preallocated_size(size, cluster, order, entry) + _encryption_bytes(options.get("encrypt"), cluster)
    result: Options = {"required": full - size + required, "fully-allocated": full}
    if version >= 3 and source is not None and _keeps_bitmaps(source):
        result["bitmaps"] = _bitmap_bytes(source, cluster)
    return result


def _encryption_bytes(encrypt: Options | None, cluster: int) -> int:
    """Bytes of the clusters that the encryption header takes."""
    if encrypt is None or encrypt["format"] != "luks":
        return 0
    from qobra.crypto.luks import plan_header

    return -(-plan_header(encrypt).payload_offset // cluster) * cluster


def _keeps_bitmaps(source: BlockNode) -> bool:
    from qobra.block.format.qcow2.disk import Qcow2Disk

    return isinstance(source, Qcow2Disk) and source.header.version >= 3


def _allocated(source: BlockNode, cluster: int) -> int:
    """Bytes of the clusters that hold data in ``source``."""
    blocks = source.packed_map(0, source.length)
    if blocks is not None:
        from qobra.block.format.qcow2.packed import data_bytes

        return data_bytes(blocks, cluster)
    required = 0
    done = 0
    for start in range(0, source.length, _STEP):
        for run in resolve(source, start, min(_STEP, source.length - start), want_zero=True):
            end = run.start + run.length
            if run.kind == ZERO or end <= done:
                continue
            low = max(run.start, done)
            high = -(-end // cluster) * cluster
            required += high - low + low % cluster
            done = high
    return required


def _preallocated_size(size: int, cluster: int, order: int, entry: int) -> int:
    """Size of an image file in which every cluster is allocated."""
    aligned = -(-size // cluster) * cluster
    per_table = cluster // entry
    l2_entries = -(-(aligned // cluster) // per_table) * per_table
    l1_entries = -(-(l2_entries * entry // cluster) // (cluster // 8)) * (cluster // 8)
    metadata = cluster + l2_entries * entry + l1_entries * 8
    clusters = (metadata + aligned) // cluster
    blocks = table = 0
    while True:
        need_blocks = -(-(clusters + table + blocks) // ((cluster * 8) >> order))
        need_table = -(-need_blocks // (cluster // 8))
        if (need_blocks, need_table) == (blocks, table):
            break
        blocks, table = need_blocks, need_table
    return metadata + (blocks + table) * cluster + aligned


def _bitmap_bytes(source: BlockNode, cluster: int) -> int:
    """Bytes that the persistent bitmaps of ``source`` would take."""
    total = directory = 0
    for bitmap in source.bitmaps.values():
        if not bitmap.persistent or bitmap.inconsistent:
            continue
        granules = (source.length + bitmap.granularity - 1) // bitmap.granularity
        data = (granules + 7) // 8
        clusters = -(-data // cluster)
        total += clusters * cluster + -(-clusters * 8 // cluster) * cluster
        directory += (
            -(-(layout.BITMAP_ENTRY.size + len((bitmap.name or "").encode("utf-8", "surrogateescape"))) // 8) * 8
        )
    return total + -(-directory // cluster) * cluster
