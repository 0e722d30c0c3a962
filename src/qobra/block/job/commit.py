"""Commit: the data of some images of a chain goes into one below, and they drop out of the chain (block-commit)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.bitmap import default_granularity
from qobra.block.copy.chunk import ChunkCopier, CopyFailed
from qobra.block.copy.ranges import allocated_above
from qobra.block.copy.slots import ThreadSlots
from qobra.block.filter.placing import insert_filter, take_out_filter
from qobra.block.job.block_job import REPORT, BlockJob, device_name
from qobra.block.job.chain import (
    chain,
    check_freezable,
    contains,
    find_by_name,
    find_overlay,
    make_read_only_again,
    next_below,
    record_backing,
    root_node,
    set_read_only,
    skip_filters,
)
from qobra.block.job.mirror_plan import MirrorPlan
from qobra.block.job.start_mirror import start_mirror
from qobra.block.job.sweep import Sweep
from qobra.errors import DEVICE_NOT_FOUND, QobraError

if TYPE_CHECKING:
    from qobra.block.graph import GraphChange
    from qobra.block.job.jobs import Jobs
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode

Options = dict[str, Any]


class CommitJob(BlockJob):
    """Copies what ``top`` and the images down to ``base`` hold into ``base``; ``top`` is not written by anyone.

    At the end those who use ``top`` as their backing file use ``base``.
    """

    kind = "commit"

    def __init__(
        self,
        jobs: Jobs,
        active: BlockNode,
        top: BlockNode,
        base: BlockNode,
        args: Options,
    ) -> None:
        self._top = top
        self._base = base
        self._on_error = args.get("on-error", "report")
        self._backing_file: str | None = args.get("backing-file")
        self._filter: BlockNode | None = None
        self._roots: list[BlockBackend] = []
        self._was_read_only = base.read_only
        super().__init__(
            jobs,
            args.get("job-id"),
            active,
            speed=args.get("speed", 0),
            auto_finalize=args.get("auto-finalize", True),
            auto_dismiss=args.get("auto-dismiss", True),
        )
        try:
            self._set_up(args)
        except BaseException:
            self.discard()
            raise

    def _set_up(self, args: Options) -> None:
        layer, top, base = self.layer, self._top, self._base
        set_read_only(layer, base, False)
        options: Options = {"driver": "commit_top", "backing": top.node_name, "read-only": True}
        if "filter-node-name" in args:
            options["node-name"] = args["filter-node-name"]
        self._filter, holder = insert_filter(layer, top, options)
        holder.remove()  # the overlay keeps it
        self.add_intermediate(top, base)
        self.add_node("base", base)
        perm = permissions.CONSISTENT_READ | permissions.WRITE
        if base.virtual_size < top.virtual_size:
            perm |= permissions.RESIZE
        self._hold(base, perm, permissions.CONSISTENT_READ | permissions.WRITE_UNCHANGED)
        self._hold(top, 0, permissions.ALL)
        self.layer.graph.frozen.freeze(self, self._filter, base)

    def _hold(self, node: BlockNode, perm: int, shared: int) -> None:
        root = BlockBackend(self.layer, perm=perm, shared=shared)
        root.insert(node)
        self._roots.append(root)

    def run(self) -> None:
        top, base = self._top, self._base
        self.total = top.length
        roots = (*self._edges, *self._roots)
        if base.virtual_size < top.virtual_size:
            slots = ThreadSlots(roots)
            with slots.entered():
                base.truncate(top.length)
            slots.close()
        copier = ChunkCopier(top, base)
        Sweep(self, roots, top, base).run(
            top.length,
            lambda start, end: list(allocated_above(top, base, start, end)),
            lambda offset, length: copier.copy(offset, length, carrier=self.carrier),
            self._failed,
        )

    def _failed(self, failure: CopyFailed) -> bool:
        if self.error_action(self._on_error, failure.is_read, failure.error) == REPORT:
            raise failure.error
        return True

    def prepare(self) -> None:
        layer, base, filter_node = self.layer, self._base, self._filter
        assert filter_node is not None
        with layer.drained():
            base.flush()
            for overlay, child in layer.graph.parents(filter_node):
                if overlay.roles[child] & permissions.ROLE_COW:
                    change_backing_file(layer, overlay, self._backing_file, base)
            with layer.graph.change() as change:
                self._let_go(change)
                change.replace(filter_node, base)
        self._filter = None

    def _let_go(self, change: GraphChange) -> None:
        for edge in self._edges:
            change.set_root(edge, None)
        for root in self._roots:
            change.set_root(root, None)

    def change_graph(self, change: GraphChange) -> None:
        self._let_go(change)
        if self._filter is not None:
            take_out_filter(change, self._filter)

    def clean(self) -> None:
        super().clean()
        self._roots.clear()
        if self._was_read_only and self.layer.graph.find(self._base.node_name) is self._base:
            make_read_only_again(self.layer, self._base)


def change_backing_file(layer: BlockLayer, overlay: BlockNode, name: str | None, base: BlockNode) -> None:
    """Record ``base`` as the backing file of ``overlay``, also where that is read-only. The layer is drained."""
    was_read_only = overlay.read_only
    set_read_only(layer, overlay, False)
    try:
        record_backing(overlay, base, name)
    finally:
        if was_read_only:
            set_read_only(layer, overlay, True)


def start_commit(jobs: Jobs, args: Options) -> BlockJob:
    """Make the job that block-commit's ``args`` ask for; the caller starts it. Raises QobraError in QEMU's words."""
    layer = jobs.layer
    active = _active_node(layer, args["device"])
    layer.check_blockers(active)
    top = _find_top(layer, active, args)
    base = _find_base(layer, top, args)
    for node in chain(top):
        layer.check_blockers(node)
        if node is base:
            break
    if top is base:
        raise QobraError("cannot commit an image into itself")
    is_active = skip_filters(top) is skip_filters(active)
    if is_active or top.perm & permissions.WRITE:
        if "backing-file" in args:
            reason = "'top' is the active layer" if is_active else "'top' has a writer on it"
            raise QobraError(f"'backing-file' specified, but {reason}")
        return _start_active(jobs, active, top, base, args)
    if skip_filters(top) is skip_filters(base):
        raise QobraError("Invalid files for merge: top and base are the same")
    check_freezable(top, base)
    overlay = find_overlay(active, top)
    if overlay is not None:
        layer.check_blockers(overlay)
    return CommitJob(jobs, active, top, base, args)


def _active_node(layer: BlockLayer, device: str) -> BlockNode:
    backend = layer.backends.get(device)
    if layer.graph.find(device) is None if backend is None else backend.node is None:
        # Clients tell by this class of error whether the command can commit the active image.
        raise QobraError(f"Device '{device}' not found", DEVICE_NOT_FOUND)
    return root_node(layer, device)


def _find_top(layer: BlockLayer, active: BlockNode, args: Options) -> BlockNode:
    name, file = args.get("top-node"), args.get("top")
    if name is not None and file is not None:
        raise QobraError("'top-node' and 'top' are mutually exclusive")
    top: BlockNode | None = active
    if name is not None:
        top = layer.find_node(name)
        if not contains(active, top):
            raise QobraError(f"'{name}' is not in this backing file chain")
    elif file is not None and active.filename != file:
        top = find_by_name(active, file)
    if top is None:
        raise QobraError(f"Top image file {file} not found")
    return top


def _find_base(layer: BlockLayer, top: BlockNode, args: Options) -> BlockNode:
    name, file = args.get("base-node"), args.get("base")
    if name is not None and file is not None:
        raise QobraError("'base-node' and 'base' are mutually exclusive")
    if name is not None:
        base = layer.find_node(name)
        if not contains(top, base):
            raise QobraError(f"'{name}' is not in this backing file chain")
        return base
    if file is not None:
        found = find_by_name(top, file)
        if found is None:
            raise QobraError(f"Can't find '{file}' in the backing chain")
        return found
    lowest = top
    while (below := next_below(lowest)) is not None:
        lowest = below
    return lowest


def _start_active(jobs: Jobs, active: BlockNode, top: BlockNode, base: BlockNode, args: Options) -> BlockJob:
    layer = jobs.layer
    plan = MirrorPlan("top", base, default_granularity(base))
    plan.may_refine = True
    plan.on_source_error = plan.on_target_error = args.get("on-error", "report")
    was_read_only = base.read_only
    set_read_only(layer, base, False)
    try:
        # If it is cancelled, the base stays writable.
        return start_mirror(
            jobs, top, base, plan, {**args, "job-id": args.get("job-id", device_name(layer, active))}, is_commit=True
        )
    except BaseException:
        set_read_only(layer, base, was_read_only)
        raise
