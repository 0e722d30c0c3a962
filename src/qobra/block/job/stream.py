"""Stream: an image takes up what it has from its backing files, and does without them then (block-stream)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.copy.chunk import CopyFailed
from qobra.block.copy.ranges import allocated_above
from qobra.block.filter.copy_on_read import CopyOnReadNode
from qobra.block.filter.placing import insert_filter, remove_filter, take_out_filter
from qobra.block.job.block_job import REPORT, STOP, BlockJob
from qobra.block.job.chain import (
    chain,
    check_freezable,
    contains,
    find_by_name,
    find_overlay,
    make_read_only_again,
    next_below,
    record_backing,
    set_read_only,
    skip_filters,
)
from qobra.block.job.sweep import Sweep
from qobra.errors import DEVICE_NOT_FOUND, QobraError

if TYPE_CHECKING:
    from qobra.block.graph import GraphChange
    from qobra.block.job.jobs import Jobs
    from qobra.block.node import BlockNode

Options = dict[str, Any]

SHARE = 128
"""A stream's share of a processor beside guests (see :mod:`.pace`). Nothing that it has copied is copied again, so that
a longer stream does no more; and guests wait for its flush at the end, which is less of a longer one."""

_SHARED = permissions.CONSISTENT_READ | permissions.WRITE_UNCHANGED


class StreamJob(BlockJob):
    """Copies into ``filter_node.file`` what it has from the nodes between it and ``base`` (None: from all)."""

    kind = "stream"

    def __init__(
        self,
        jobs: Jobs,
        filter_node: CopyOnReadNode,
        base: BlockNode | None,
        above_base: BlockNode,
        args: Options,
        was_read_only: bool,
    ) -> None:
        self._filter: CopyOnReadNode = filter_node
        self._in_place = True
        self._ignored: QobraError | OSError | None = None
        self._target = filter_node.file
        self._root: BlockBackend | None = None
        self._base = base
        self._above_base = above_base
        self._on_error = args.get("on-error", "report")
        self._backing_file: str | None = args.get("backing-file")
        self._was_read_only = was_read_only
        super().__init__(
            jobs,
            args.get("job-id"),
            filter_node,
            speed=args.get("speed", 0),
            auto_finalize=args.get("auto-finalize", True),
            auto_dismiss=args.get("auto-dismiss", True),
        )
        try:
            self._root = BlockBackend(self.layer, perm=permissions.CONSISTENT_READ, shared=_SHARED | permissions.WRITE)
            self._root.insert(filter_node)
            self.add_node("active node", self._target, 0, _SHARED | permissions.WRITE)
            for node in chain(next_below(self._target)):
                if node is base:
                    break
                self.add_node("intermediate node", node, 0, _SHARED)
            self.layer.graph.frozen.freeze(self, self._target, above_base)
        except BaseException:
            self.discard()
            raise

    def run(self) -> None:
        target, base = skip_filters(self._target), self._base
        below = next_below(target)
        if target is self._above_base or below is None or (base and skip_filters(below) is skip_filters(base)):
            return  # there is nothing between the two, or but filters
        self.total = self._target.length
        self.pace.share = SHARE
        Sweep(self, self._edges, target, target).run(
            self.total,
            lambda start, end: list(allocated_above(below, base, start, end)),
            lambda offset, length: self._filter.copy_up(offset, length, base, self.carrier),
            self._failed,
        )
        if self._ignored is not None:
            # The image is not complete, so it must keep its backing file.
            raise self._ignored

    def _failed(self, failure: CopyFailed) -> bool:
        action = self.error_action(self._on_error, True, failure.error)
        if action == REPORT:
            raise failure.error
        if action == STOP:
            return True
        self._ignored = self._ignored or failure.error
        return False

    def prepare(self) -> None:
        layer = self.layer
        target = skip_filters(self._target)
        # What was put between them meanwhile stays.
        base = next_below(self._above_base)
        had_backing = target.backing is not None
        with layer.drained():
            with layer.graph.change() as change:
                self._let_go(change)
                take_out_filter(change, self._filter)
                if target.backing is not None:
                    if base is None:
                        change.detach(target, "backing")
                    elif target.backing is not base:
                        change.attach(target, "backing", base, permissions.ROLE_COW)
            self._in_place = False
            if had_backing:
                image = skip_filters(base) if base is not None else None
                if image is None:
                    target.change_backing_file("", "")
                else:
                    record_backing(target, image, self._backing_file)

    def _let_go(self, change: GraphChange) -> None:
        for edge in self._edges:
            change.set_root(edge, None)
        if self._root is not None:
            # The job is not done with the image yet, and may be the last that has it.
            change.set_root(self._root, self._target, 0, permissions.ALL)

    def change_graph(self, change: GraphChange) -> None:
        if self._in_place:
            self._let_go(change)
            take_out_filter(change, self._filter)

    def clean(self) -> None:
        super().clean()
        if self._was_read_only:
            make_read_only_again(self.layer, self._target)
        if self._root is not None:
            self._root.remove()


def start_stream(jobs: Jobs, args: Options) -> StreamJob:
    """Make the job that block-stream's ``args`` ask for; the caller starts it. Raises QobraError in QEMU's words."""
    layer = jobs.layer
    for one, two in (("base", "base-node"), ("base", "bottom"), ("bottom", "base-node")):
        if one in args and two in args:
            raise QobraError(f"'{one}' and '{two}' cannot be specified at the same time")
    device = args["device"]
    node = layer.find_device_or_node(device, DEVICE_NOT_FOUND)
    if isinstance(node, CopyOnReadNode) and node.implicit and not node.by_job:
        node = node.file  # a drive's own copy-on-read
    base, bottom = _find_ends(jobs, node, args)
    end = next_below(bottom) if bottom is not None else base
    for each in chain(node):
        if each is end:
            break
        layer.check_blockers(each)
    if base is None and "backing-file" in args:
        raise QobraError("backing file specified, but streaming the entire chain")
    above = bottom if bottom is not None else find_overlay(node, base)
    if base is not None and (above is None or skip_filters(base) is skip_filters(node)):
        raise QobraError(f"'{base.node_name}' is not in the backing chain of '{node.node_name}'")
    assert above is not None
    check_freezable(node, above)
    was_read_only = node.read_only
    set_read_only(layer, node, False)
    options: Options = {"driver": "copy-on-read", "file": node.node_name}
    overlay = above
    while overlay.is_filter and overlay is not node:
        found = find_overlay(node, overlay)
        assert found is not None
        overlay = found
    if not overlay.is_filter:
        options["bottom"] = overlay.node_name
    if "filter-node-name" in args:
        options["node-name"] = args["filter-node-name"]

    def prepare(filter_node: BlockNode) -> None:
        assert isinstance(filter_node, CopyOnReadNode)
        filter_node.serve_job()

    try:
        refusals = "Could not create node: ", "Could not replace node: "
        filter_node, holder = insert_filter(layer, node, options, prepare=prepare, refusals=refusals)
    except BaseException:
        set_read_only(layer, node, was_read_only)
        raise
    assert isinstance(filter_node, CopyOnReadNode)
    try:
        try:
            return StreamJob(jobs, filter_node, end, above, args, was_read_only)
        except BaseException:
            if layer.graph.find(filter_node.node_name) is filter_node:
                remove_filter(layer, filter_node)
            set_read_only(layer, node, was_read_only)
            raise
    finally:
        holder.remove()


def _find_ends(jobs: Jobs, node: BlockNode, args: Options) -> tuple[BlockNode | None, BlockNode | None]:
    layer, device = jobs.layer, args["device"]
    if "base" in args:
        base = find_by_name(node, args["base"])
        if base is None:
            raise QobraError(f"Can't find '{args['base']}' in the backing chain")
        return base, None
    if "base-node" in args:
        name = args["base-node"]
        base = layer.find_node(name)
        if base is node or not contains(node, base):
            raise QobraError(f"Node '{name}' is not a backing image of '{device}'")
        return base, None
    if "bottom" in args:
        name = args["bottom"]
        bottom = layer.find_node(name)
        if bottom.is_filter:
            raise QobraError(f"Node '{name}' is a filter, use a non-filter node as 'bottom'")
        if not contains(node, bottom):
            raise QobraError(f"Node '{name}' is not in a chain starting from '{device}'")
        return None, bottom
    return None, None
