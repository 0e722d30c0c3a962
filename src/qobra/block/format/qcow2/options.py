"""The open options of qcow2 (BlockdevOptionsQcow2) that need more than a look, and those that may be changed."""

from __future__ import annotations

import errno

from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.image import CacheSizes
from qobra.block.format.qcow2.overlap import CHECKS, TEMPLATES
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.format.qcow2.disk import Qcow2Disk
    from qobra.block.format.qcow2.header import Header
    from qobra.block.node import Options

DEFAULT_L2_CACHE = 32 << 20
DEFAULT_REFCOUNT_CACHE = 2 << 20
_MAX_ENTRIES = (1 << 31) - 1
_SLICE_LIMIT = 64 << 10
"""Bytes of a slice unless the user says otherwise: whole L2 tables, up to this."""

_SIZES = ("cache-size", "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size")

CHANGEABLE = frozenset(
    {
        "lazy-refcounts",
        "pass-discard-request",
        "pass-discard-snapshot",
        "pass-discard-other",
        "overlap-check",
        "cache-size",
        "l2-cache-size",
        "l2-cache-entry-size",
        "refcount-cache-size",
        "cache-clean-interval",
    }
)
"""What blockdev-reopen may change."""


def cache_sizes(header: Header, options: Options) -> CacheSizes:
    """How large the caches are to be. Raises QobraError in QEMU's words for sizes that contradict one another."""
    for name in _SIZES:
        if options.get(name, 0) < 0:
            raise QobraError(f"Parameter '{name}' expects a non-negative number below 2^64", errno=errno.EINVAL)
    total = options.get("cache-size")
    l2 = options.get("l2-cache-size")
    refcount = options.get("refcount-cache-size")
    entry = options.get("l2-cache-entry-size")
    cluster = header.cluster_size
    # No more than all of the disk's L2 entries.
    needed = -(-header.size // cluster) * (16 if header.extended_l2 else 8)
    if total is not None:
        if l2 is not None and refcount is not None:
            raise QobraError(
                "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time", errno=errno.EINVAL
            )
        if l2 is not None and l2 > total:
            raise QobraError("l2-cache-size may not exceed cache-size", errno=errno.EINVAL)
        if refcount is not None and refcount > total:
            raise QobraError("refcount-cache-size may not exceed cache-size", errno=errno.EINVAL)
        if l2 is None and refcount is None:
            # L2 tables come first, but for the least that counts need.
            l2 = min(needed, max(total - 4 * cluster, 0))
        if l2 is not None:
            refcount = total - min(l2, needed)
        else:
            l2 = total - refcount
    if entry is None:
        entry = min(cluster, _SLICE_LIMIT)
    elif entry < 512 or entry > cluster or entry & (entry - 1):
        raise QobraError(
            f"L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})",
            errno=errno.EINVAL,
        )
    l2 = DEFAULT_L2_CACHE if l2 is None else l2
    refcount = DEFAULT_REFCOUNT_CACHE if refcount is None else refcount
    # What is left of both beside that of counts is taken as it is.
    if (l2 if total is not None and "l2-cache-size" not in options else min(l2, needed)) // entry > _MAX_ENTRIES:
        raise QobraError("L2 cache size too big", errno=errno.EINVAL)
    if refcount // cluster > _MAX_ENTRIES:
        raise QobraError("Refcount cache size too big", errno=errno.EINVAL)
    if not 0 <= options.get("cache-clean-interval", 0) < 1 << 32:
        raise QobraError("Cache clean interval too big", errno=errno.EINVAL)
    return CacheSizes(l2, entry, max(refcount, 4 * cluster))


def overlap_checks(options: Options) -> frozenset[str]:
    """The overlap checks that the ``overlap-check`` option (a template, or flags over one) asks for."""
    wanted = options.get("overlap-check")
    if wanted is None:
        return TEMPLATES["cached"]
    if isinstance(wanted, str):
        return _template(wanted)
    chosen = set(_template(wanted.get("template", "cached")))
    for name in CHECKS:
        if name in wanted:
            (chosen.add if wanted[name] else chosen.discard)(name)
    return frozenset(chosen)


def _template(name: str) -> frozenset[str]:
    if name not in TEMPLATES:
        raise QobraError(
            f"Unsupported value '{name}' for qcow2 option 'overlap-check'. Allowed are any of the following: none, "
            "constant, cached, all",
            errno=errno.EINVAL,
        )
    return TEMPLATES[name]


def take_behaviour(disk: Qcow2Disk, options: Options) -> None:
    """Set what the options say of refcounts and discards. Raises QobraError."""
    header = disk.header
    disk.lazy_refcounts = bool(options.get("lazy-refcounts", header.compatible & layout.LAZY_REFCOUNTS))
    if disk.lazy_refcounts and header.version < 3:
        raise QobraError(
            "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level", errno=errno.EINVAL
        )
    disk.pass_discard = bool(options.get("pass-discard-request", disk.discard_unmap))
    disk.pass_discard_snapshot = bool(options.get("pass-discard-snapshot", True))
    disk.pass_discard_other = bool(options.get("pass-discard-other", False))


def drop_overridden(options: Options, new: Options) -> None:
    """Drop from ``options`` the sizes of caches that no longer hold beside those of ``new``."""
    sizes = {"cache-size", "l2-cache-size", "refcount-cache-size"}
    if sizes <= new.keys():
        return  # to be refused
    if "cache-size" in new:
        for name in sizes - new.keys():
            options.pop(name, None)
    elif sizes <= options.keys():
        del options["cache-size"]
