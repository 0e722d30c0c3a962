"""drive-backup and drive-mirror: the older commands, which make or open their target by a file name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.filename import parse_filename
from qobra.block.job.chain import root_node, skip_filters, skip_implicit
from qobra.block.job.mirror import MirrorJob
from qobra.block.job.mirror_plan import OPEN_BACKING, SOURCE_BACKING
from qobra.block.job.start_backup import start_backup
from qobra.block.job.start_mirror import mirror_plan, start_mirror
from qobra.block.snapshot import create_image, open_image_over
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.job.backup import BackupJob
    from qobra.block.job.group import JobGroup
    from qobra.block.job.jobs import Jobs
    from qobra.block.node import BlockNode

Options = dict[str, Any]


def start_drive_backup(jobs: Jobs, args: Options, group: JobGroup | None = None) -> BackupJob:
    """Make the target and the job; the caller starts it. The layer is drained. Raises QobraError in QEMU's words."""
    layer = jobs.layer
    source = layer.find_device_or_node(args["device"])
    existing = args.get("mode", "absolute-paths") == "existing"
    fmt = _target_format(source, args)
    layer.check_blockers(source)
    sync = args["sync"]
    backing = None
    if sync == "top":
        backing = skip_filters(source).backing
        if backing is None:
            sync = "full"
    if sync == "none":
        backing = source
    below = skip_implicit(backing) if backing is not None and not existing else None
    if not existing:
        assert fmt is not None
        create_image(layer, args["target"], fmt, source.length, below)
    options: Options = {"discard": "unmap", "detect-zeroes": "unmap"}
    if fmt is not None:
        options["driver"] = fmt
    if sync == "none":
        options["backing"] = None
    holder = BlockBackend(layer, perm=0, description="a backup's target")
    target = open_image_over(layer, args["target"], options, source, holder, below)
    try:
        if sync == "none":
            if not target.supports_backing:
                raise QobraError(
                    f"Driver '{target.driver}' of node '{target.node_name}' does not support backing files"
                )
            with layer.graph.change() as change:
                change.attach(target, "backing", source, permissions.ROLE_COW)
        return start_backup(jobs, source, target, {**args, "sync": sync}, group)
    finally:
        holder.remove()


def _target_format(source: BlockNode, args: Options) -> str | None:
    """The driver of the target; None where it is told from the image that is there."""
    if "format" in args:
        return str(args["format"])
    if args.get("mode", "absolute-paths") != "existing":
        return source.driver
    return parse_filename(args["target"])["driver"] if source.is_protocol() else None


def start_drive_mirror(jobs: Jobs, args: Options) -> MirrorJob:
    """Make the target and the job; the caller starts it. The layer is drained. Raises QobraError in QEMU's words."""
    layer = jobs.layer
    source = root_node(layer, args["device"])
    layer.check_blockers(source)
    existing = args.get("mode", "absolute-paths") == "existing"
    fmt = _target_format(source, args)
    sync = args["sync"]
    backing = skip_filters(source).backing
    if backing is None and sync == "top":
        sync = "full"
    if sync == "none":
        backing = source
    if "replaces" in args and "node-name" not in args:
        raise QobraError("a node-name must be provided when replacing a named node of the graph")
    below = skip_implicit(backing) if backing is not None and sync != "full" and not existing else None
    if not existing:
        assert fmt is not None
        create_image(layer, args["target"], fmt, source.length, below)
    options: Options = {"backing": None}
    if fmt is not None:
        options["driver"] = fmt
    if "node-name" in args:
        options["node-name"] = args["node-name"]
    holder = BlockBackend(layer, perm=0, description="a mirror's target")
    target = open_image_over(layer, args["target"], options, source, holder, below)
    try:
        arguments = {**args, "sync": sync}
        plan = mirror_plan(layer, source, target, arguments)
        plan.backing_mode = OPEN_BACKING if existing else SOURCE_BACKING
        plan.zero_target = sync == "full" and (existing or not target.has_zero_init())
        return start_mirror(jobs, source, target, plan, arguments)
    finally:
        holder.remove()
