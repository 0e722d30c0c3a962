"""blockdev-mirror: what is checked before a mirror begins, and the filter put in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block.bitmap import default_granularity
from qobra.block.filter.mirror_top import MirrorTopNode
from qobra.block.filter.placing import insert_filter, remove_filter
from qobra.block.job.chain import backing_of, can_replace, contains, skip_filters, skip_implicit
from qobra.block.job.mirror import MirrorJob
from qobra.block.job.mirror_plan import DEFAULT_BUFFER, MirrorPlan
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.job.jobs import Jobs
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode

Options = dict[str, Any]


def mirror_plan(layer: BlockLayer, source: BlockNode, target: BlockNode, args: Options) -> MirrorPlan:
    """Check the members that blockdev-mirror and drive-mirror have in common, in QEMU's order and words."""
    granularity = args.get("granularity", 0)
    if granularity and not 512 <= granularity <= 64 << 20:
        raise QobraError("Parameter 'granularity' expects a value in range [512B, 64MB]")
    if granularity & (granularity - 1):
        raise QobraError("Parameter 'granularity' expects a power of 2")
    layer.check_blockers(source)
    layer.check_free(target)
    sync = args["sync"]
    if sync == "top" and backing_of(source) is None:
        sync = "full"
    replaces = args.get("replaces")
    if replaces is None:
        plain = skip_implicit(source)
        if plain is not source:
            replaces = plain.node_name
    if replaces is not None:
        node = replaceable(layer, source, replaces)
        if node.virtual_size != source.virtual_size:
            raise QobraError("cannot replace image with a mirror image of different size")
    if sync in ("incremental", "bitmap"):
        raise QobraError(f"Sync mode '{sync}' not supported")
    buffer = args.get("buf-size", DEFAULT_BUFFER)
    if buffer < 0:
        raise QobraError("Invalid parameter 'buf-size'")
    base = skip_filters(source).backing if sync == "top" else None
    least_unit = _least_unit(target)
    plan = MirrorPlan(sync, base, max(granularity or default_granularity(target), least_unit))
    plan.least_unit = least_unit
    plan.may_refine = not granularity
    plan.buffer = buffer or DEFAULT_BUFFER
    plan.unmap = args.get("unmap", True)
    plan.write_blocking = args.get("copy-mode", "background") == "write-blocking"
    plan.replaces = replaces
    plan.on_source_error = args.get("on-source-error", "report")
    plan.on_target_error = args.get("on-target-error", "report")
    return plan


def _least_unit(target: BlockNode) -> int:
    """The least that may be written to ``target``: a whole cluster where its backing file is not there yet.

    Else the rest of the cluster would be filled up with zeroes, and hide what the backing file has.
    """
    image = skip_filters(target)
    named = image.supports_backing and image.backing is None and image.backing_filename
    return image.cluster_size() if named else 0


def replaceable(layer: BlockLayer, source: BlockNode, name: str) -> BlockNode:
    """The node ``name``, whose place a mirror of ``source`` may take. Raises QobraError where it may not."""
    node = layer.graph.find(name)
    if node is None:
        raise QobraError(f"Failed to find node with node-name='{name}'")
    layer.check_free(node)
    if not can_replace(source, node):
        raise QobraError(
            f"Cannot replace '{name}' by a node mirrored from '{source.node_name}', because it cannot be guaranteed "
            "that doing so would not lead to an abrupt change of visible data"
        )
    return node


def start_mirror(
    jobs: Jobs, source: BlockNode, target: BlockNode, plan: MirrorPlan, args: Options, *, is_commit: bool = False
) -> MirrorJob:
    """Put the filter over ``source`` and make the job; the caller starts it.

    Raises QobraError; then nothing is left.
    """
    layer = jobs.layer
    if skip_filters(source) is skip_filters(target):
        raise QobraError("Can't mirror node into itself")
    onto_backing = contains(source, target)
    options: Options = {"driver": "mirror_top", "backing": source.node_name}
    if "filter-node-name" in args:
        options["node-name"] = args["filter-node-name"]

    def prepare(node: BlockNode) -> None:
        assert isinstance(node, MirrorTopNode)
        node.is_commit = onto_backing

    filter_node, holder = insert_filter(layer, source, options, prepare=prepare)
    assert isinstance(filter_node, MirrorTopNode)
    try:
        try:
            return MirrorJob(
                jobs,
                args.get("job-id"),
                filter_node,
                target,
                plan,
                kind="commit" if is_commit else "mirror",
                onto_backing=onto_backing,
                speed=args.get("speed", 0),
                auto_finalize=args.get("auto-finalize", True),
                auto_dismiss=args.get("auto-dismiss", True),
            )
        except BaseException:
            if layer.graph.find(filter_node.node_name) is filter_node:
                remove_filter(layer, filter_node)
            raise
    finally:
        holder.remove()
