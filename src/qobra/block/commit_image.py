"""Commit without a job: what an image holds goes into its backing file, while everything waits."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.copy.ranges import allocated_above, in_chunks
from qobra.block.job.chain import backing_of, set_read_only, skip_filters
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode

_CHUNK = 1 << 20


def commit_image(layer: BlockLayer, node: BlockNode) -> None:
    """Put what ``node`` holds into the node under it, and empty it. Raises OSError or QobraError."""
    top = skip_filters(node)
    base, below = backing_of(top), top.backing
    if base is None or below is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    try:
        for each in (top, base):
            layer.check_blockers(each)
    except QobraError:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    was_read_only = base.read_only
    user = BlockBackend(layer, perm=permissions.WRITE | permissions.RESIZE, description="commit")
    keeper = BlockBackend(layer, perm=0, description="commit")
    with layer.drained():
        try:
            if was_read_only:
                set_read_only(layer, base, False)
            ranges = list(allocated_above(top, base))
            # Apart, as whoever lies on an image lets nobody write to it.
            with layer.graph.change() as change:
                change.set_root(user, base)
                change.set_root(keeper, below)
                change.detach(top, "backing")
            if base.length < top.length:
                base.truncate(top.length)
            for offset, length in in_chunks(ranges, _CHUNK):
                base.write(offset, top.read(offset, length))
            base.flush()
            if top.make_empty():
                top.flush()
        finally:
            user.remove()
            if top.backing is None:
                with layer.graph.change() as change:
                    change.attach(top, "backing", below, permissions.ROLE_COW)
            keeper.remove()
            if was_read_only and not base.read_only:
                set_read_only(layer, base, True)
