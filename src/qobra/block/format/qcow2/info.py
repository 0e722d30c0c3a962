"""What ``qemu-img info`` and query-named-block-nodes say of a qcow2 image."""

from __future__ import annotations

from qobra.block.format.qcow2 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.disk import Qcow2Disk
    from qobra.block.format.qcow2.snapshots import Snapshot
    from qobra.block.node import Options


def image_info(node: Qcow2Disk) -> Options:
    """The members of ImageInfo that the format gives, with ImageInfoSpecificQCow2."""
    header = node.header
    specific: Options = {"compat": "0.10" if header.version < 3 else "1.1"}
    if header.version >= 3:
        if header.external_data:
            if header.data_file is not None:
                specific["data-file"] = header.data_file
            specific["data-file-raw"] = bool(header.autoclear & layout.RAW_EXTERNAL)
        specific["extended-l2"] = header.extended_l2
        specific["lazy-refcounts"] = bool(header.compatible & layout.LAZY_REFCOUNTS)
        specific["corrupt"] = bool(header.incompatible & layout.CORRUPT)
    specific["compression-type"] = layout.COMPRESSION_TYPES[header.compression]
    specific["refcount-bits"] = 1 << header.refcount_order
    if node.has_bitmaps and (bitmaps := node.stored_bitmaps.info()):
        specific["bitmaps"] = bitmaps
    info: Options = {"cluster-size": header.cluster_size, "format-specific": {"type": "qcow2", "data": specific}}
    if header.crypt_method != layout.CRYPT_NONE:
        from qobra.block.format.qcow2.crypt import crypt_info

        info["encrypted"] = True
        specific["encrypt"] = crypt_info(node)
    info["dirty-flag"] = bool(header.incompatible & layout.DIRTY)
    if node.snapshots.entries:
        info["snapshots"] = [snapshot_info(each) for each in node.snapshots.entries]
    return info


def snapshot_info(snapshot: Snapshot) -> Options:
    """SnapshotInfo of a snapshot."""
    info: Options = {
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.seconds,
        "date-nsec": snapshot.nanoseconds,
        "vm-clock-sec": snapshot.vm_clock // 1_000_000_000,
        "vm-clock-nsec": snapshot.vm_clock % 1_000_000_000,
    }
    if snapshot.icount is not None:
        info["icount"] = snapshot.icount
    return info
