"""Changing what can be changed of an image that exists: version, refcount width, lazy refcounts, size."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.check import Checker
from qobra.block.format.qcow2.expand import expand_zero_clusters, has_compressed_clusters
from qobra.block.format.qcow2.repair import rebuild_refcounts
from qobra.errors import QobraError, errno_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.node import Qcow2Node
    from qobra.block.node import Options

Progress = Callable[[int, int], None]
"""Told (bytes or clusters done, all of them)."""


def amend(node: Qcow2Node, options: Options, progress: Progress | None = None, *, force: bool = False) -> None:
    """Amend the image (the node is drained) as ``options`` say: those of creation that are to change.

    ``force`` lets encryption keys be overwritten and the last of them be erased.

    Raises QobraError in QEMU's words for what cannot be changed.
    """
    header = node.header
    tell = progress or (lambda _done, _total: None)
    version = {None: header.version, "v2": 2, "v3": 3}[options.get("version")]
    width = options.get("refcount-bits")
    if width is not None and (not 1 <= width <= 64 or width & (width - 1)):
        raise QobraError("Refcount width must be a power of two and may not exceed 64 bits", errno=errno.EINVAL)
    order = header.refcount_order if width is None else width.bit_length() - 1
    _check_fixed(node, options)
    if options.get("lazy-refcounts") and version < 3:
        raise QobraError(
            "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
            errno=errno.EINVAL,
        )
    if version < 3 and width is not None and width != 16:
        raise QobraError(
            "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
            errno=errno.EINVAL,
        )
    if version < 3 and order != 4:
        raise QobraError("compat=0.10 requires refcount_bits=16", errno=errno.ENOTSUP)
    image = node.image
    image.writeback.settle()
    if version > header.version:
        _upgrade(node)
    if order != header.refcount_order:
        _change_width(node, order, tell)
    if "lazy-refcounts" in options:
        _set_lazy(node, bool(options["lazy-refcounts"]))
    if options.get("data-file-raw") is False and header.autoclear & layout.RAW_EXTERNAL:
        header.autoclear &= ~layout.RAW_EXTERNAL
        node.data_file_raw = False
        image.writeback.write_header()
    if "data-file" in options:
        header.data_file = options["data-file"] or None
        image.writeback.write_header()
    if "size" in options and options["size"] != node.length:
        node.truncate(options["size"])
    if version < header.version:
        _downgrade(node, tell)
    if options.get("encrypt") is not None:
        from qobra.block.format.qcow2.crypt import amend_crypt

        amend_crypt(node, options["encrypt"], force=force)
    tell(1, 1)


def _check_fixed(node: Qcow2Node, options: Options) -> None:
    """Refuse the options that an existing image cannot change."""
    header = node.header
    if "data-file" in options and not header.external_data:
        raise QobraError("data-file can only be set for images that use an external data file", errno=errno.EINVAL)
    if options.get("data-file-raw") and not header.autoclear & layout.RAW_EXTERNAL:
        raise QobraError("data-file-raw cannot be set on existing images", errno=errno.EINVAL)
    given = options.get("backing-file"), options.get("backing-fmt")
    if given != (None, None) and given != (header.backing_file or None, header.backing_format or None):
        raise QobraError("Cannot amend the backing file", errno=errno.EINVAL)


def _upgrade(node: Qcow2Node) -> None:
    """Version 2 to 3: snapshots get the extra data that version 3 asks for, then the header changes."""
    header = node.header
    if node.snapshots.entries:
        from qobra.block.format.qcow2.snapshot_ops import rewrite_table

        rewrite_table(node)
    header.version = 3
    node.image.writeback.write_header()


def _set_lazy(node: Qcow2Node, lazy: bool) -> None:
    header = node.header
    if lazy:
        header.compatible |= layout.LAZY_REFCOUNTS
    else:
        header.compatible &= ~layout.LAZY_REFCOUNTS
        node.image.writeback.mark_clean()
    node.lazy_refcounts = lazy
    node.image.writeback.write_header()


def _change_width(node: Qcow2Node, order: int, tell: Progress) -> None:
    """Write all refcounts anew in another width, then let the header refer to them."""
    image = node.image
    checker = Checker(node, lambda _text: None)
    checker.run()
    maximum = (1 << (1 << order)) - 1
    # Counts that are too low are put right by this; those of one bit may have been too small for the truth.
    if checker.corruptions > len(checker.too_low):
        raise QobraError("The image is damaged; repair it first", errno=errno.EIO)
    if max(checker.seen.low, default=0) > min(maximum, 254) or checker.seen.large:
        for cluster in range(len(checker.seen)):
            count = checker.seen.get(cluster)
            if count > maximum:
                raise QobraError(
                    f"Cannot decrease refcount entry width to {1 << order} bits: Cluster at offset "
                    f"{cluster << image.cluster_bits:#x} has a refcount of {count}",
                    errno=errno.EINVAL,
                )
    tell(0, 1)
    rebuild_refcounts(checker, order)
    image.reload()


def _downgrade(node: Qcow2Node, tell: Progress) -> None:
    """Version 3 to 2, which knows no features, no zero clusters and no other widths."""
    image = node.image
    header = image.header
    if header.external_data:
        raise QobraError("Cannot downgrade an image with a data file", errno=errno.ENOTSUP)
    if header.compression and has_compressed_clusters(node):
        kind = layout.COMPRESSION_TYPES[header.compression]
        raise QobraError(
            f"Cannot downgrade an image with {kind} compression type and existing compressed clusters",
            errno=errno.ENOTSUP,
        )
    others = header.incompatible & ~(layout.DIRTY | layout.COMPRESSION)
    if others:
        raise QobraError(f"Cannot downgrade an image with incompatible features {others:#x} set", errno=errno.ENOTSUP)
    if any(each.disk_size != node.length for each in node.snapshots.entries):
        raise QobraError("Internal snapshots prevent downgrade of image", errno=errno.ENOTSUP)
    image.writeback.settle()
    image.writeback.mark_clean()
    node.lazy_refcounts = False
    try:
        expand_zero_clusters(node, tell)
    except (OSError, QobraError) as error:
        reason = os.strerror(errno_of(error))
        raise QobraError(f"Failed to turn zero into data clusters: {reason}", errno=errno_of(error))
    header.compatible = header.autoclear = header.incompatible = 0
    header.bitmaps = None
    header.compression = 0
    header.unknown_fields = b""
    header.version = 2
    image.writeback.write_header()
