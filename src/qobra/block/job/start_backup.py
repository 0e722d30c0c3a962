"""blockdev-backup: what is checked before a backup begins, and the filter put in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block.copy.engine import suggested_helpers
from qobra.block.filter.copy_before_write import CopyBeforeWriteNode, copy_cluster
from qobra.block.filter.placing import insert_filter, remove_filter
from qobra.block.job.backup import BackupJob
from qobra.block.job.block_job import device_name
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.bitmap import DirtyBitmap
    from qobra.block.filter.placing import Holder
    from qobra.block.job.group import JobGroup
    from qobra.block.job.jobs import Jobs
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode

Options = dict[str, Any]

MAX_HELPERS = 16
"""Chunks in flight that are of any use, however many ``x-perf`` allows."""


def start_backup(
    jobs: Jobs, source: BlockNode, target: BlockNode, args: Options, group: JobGroup | None = None
) -> BackupJob:
    """Make the job that ``args`` (BackupCommon) describe, from ``source`` to ``target``; the caller starts it.

    Everything that can be refused is refused here, in QEMU's order and words. The layer is drained.
    """
    sync, bitmap, mode = _check_bitmap(source, args)
    workers, max_chunk = _check_ends(jobs.layer, source, target, args, bitmap if mode != "never" else None)
    filter_node, holder = _insert_filter(jobs.layer, source, target, args)
    try:
        return BackupJob(
            jobs,
            args.get("job-id"),
            filter_node,
            target,
            sync=sync,
            bitmap=bitmap,
            bitmap_mode=mode,
            on_source_error=args.get("on-source-error", "report"),
            on_target_error=args.get("on-target-error", "report"),
            helpers=min(workers, MAX_HELPERS, suggested_helpers(source, target, args.get("compress", False))),
            max_chunk=max_chunk,
            speed=args.get("speed", 0),
            group=group,
            auto_finalize=args.get("auto-finalize", True),
            auto_dismiss=args.get("auto-dismiss", True),
        )
    except BaseException:
        if jobs.layer.graph.find(filter_node.node_name) is filter_node:
            remove_filter(jobs.layer, filter_node)
        raise
    finally:
        holder.remove()


def _check_ends(
    layer: BlockLayer, source: BlockNode, target: BlockNode, args: Options, changed: DirtyBitmap | None
) -> tuple[int, int]:
    """``max-workers`` and ``max-chunk``. ``changed``: the bitmap that changes at the end. Raises QobraError."""
    if source is target:
        raise QobraError("Source and target cannot be the same")
    if args.get("compress", False) and not can_compress(target):
        raise QobraError(f"Compression is not supported for this drive {device_name(layer, target)}")
    layer.check_blockers(source)
    layer.check_blockers(target)
    perf = args.get("x-perf") or {}
    workers = perf.get("max-workers", 64)
    max_chunk = perf.get("max-chunk", 0)
    if not 1 <= workers <= (1 << 31) - 1:
        raise QobraError("max-workers must be between 1 and 2147483647")
    if max_chunk < 0:
        raise QobraError("max-chunk must be zero (which means no limit) or positive")
    if changed is not None:
        changed.check()
    if source.virtual_size != target.virtual_size:
        raise QobraError("Source and target image have different sizes")
    cluster = copy_cluster(target)
    if max_chunk and max_chunk < cluster:
        raise QobraError(f"Required max-chunk ({max_chunk}) is less than backup cluster size ({cluster})")
    return workers, max_chunk


def _insert_filter(
    layer: BlockLayer, source: BlockNode, target: BlockNode, args: Options
) -> tuple[CopyBeforeWriteNode, Holder]:
    """The filter over ``source``, and what holds it until the job does."""

    def prepare(node: BlockNode) -> None:
        assert isinstance(node, CopyBeforeWriteNode)
        node.set_up(args.get("compress", False), (args.get("x-perf") or {}).get("use-copy-range", True))

    options: Options = {"driver": "copy-before-write", "file": source.node_name, "target": target.node_name}
    if "filter-node-name" in args:
        options["node-name"] = args["filter-node-name"]
    refusals = "Could not create node: ", "Could not replace node: "
    filter_node, holder = insert_filter(layer, source, options, prepare=prepare, implicit=False, refusals=refusals)
    assert isinstance(filter_node, CopyBeforeWriteNode)
    filter_node.guards = True
    return filter_node, holder


def _check_bitmap(source: BlockNode, args: Options) -> tuple[str, DirtyBitmap | None, str]:
    """The sync mode, the bitmap and what becomes of it. Raises QobraError where they do not go together."""
    sync = args["sync"]
    name = args.get("bitmap")
    mode = args.get("bitmap-mode")
    if sync in ("bitmap", "incremental") and name is None:
        raise QobraError(f"must provide a valid bitmap name for '{sync}' sync mode")
    if sync == "incremental":
        if mode not in (None, "on-success"):
            raise QobraError("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'")
        sync, mode = "bitmap", "on-success"
    if name is None:
        if mode is not None:
            raise QobraError("Cannot specify bitmap sync mode without a bitmap")
        return sync, None, "never"
    bitmap = source.bitmaps.get(name)
    if bitmap is None:
        raise QobraError(f"Bitmap '{name}' could not be found")
    if mode is None:
        raise QobraError("Bitmap sync mode must be given when providing a bitmap")
    bitmap.check(read_only=False)
    if sync == "none":
        raise QobraError("sync mode 'none' does not produce meaningful bitmap outputs")
    if mode == "never" and sync != "bitmap":
        raise QobraError(f"Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '{sync}'")
    return sync, bitmap, mode


def can_compress(node: BlockNode) -> bool:
    """Whether ``node``, and what it shows, takes compressed writes."""
    while node.can_compress and node.filtered is not None:
        node = node.filtered
    return node.can_compress
