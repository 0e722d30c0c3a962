"""The end of a mirror that was asked to complete: its target takes the place of what was copied."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from qobra.block import permissions
from qobra.block.job.chain import can_replace, set_read_only
from qobra.block.job.mirror_plan import OPEN_BACKING, SOURCE_BACKING
from qobra.errors import QobraError
from qobra.report import report_error

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend
    from qobra.block.graph import GraphChange
    from qobra.block.job.mirror_plan import MirrorPlan
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode


def check_place(source: BlockNode, target: BlockNode, named: BlockNode | None) -> None:
    """Raise OSError where ``named``, which is to be replaced rather than ``source``, may not show the same any more."""
    if named is not None and not can_replace(source, named):
        report_error(
            f"Can no longer replace '{named.node_name}' by '{target.node_name}', because it can no longer be "
            "guaranteed that doing so would not lead to an abrupt change of visible data"
        )
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def match_read_only(layer: BlockLayer, root: BlockBackend, target: BlockNode, replaced: BlockNode) -> None:
    """Let the target, at which the job writes by ``root``, be as writable as what it replaces, where that can be."""
    if target.read_only == replaced.read_only:
        return
    if replaced.read_only:
        root.set_permissions(0, permissions.ALL)
    try:
        set_read_only(layer, target, replaced.read_only)
    except QobraError:
        pass  # users that need it otherwise refuse to be given the target


def set_target_backing(
    layer: BlockLayer, change: GraphChange, source: BlockNode, target: BlockNode, plan: MirrorPlan
) -> None:
    """Give the target the backing chain that the plan wants. Raises QobraError if its own cannot be opened."""
    if plan.backing_mode == SOURCE_BACKING:
        backing = source if plan.sync == "none" else plan.base
        if target.backing is backing:
            return
        if backing is not None:
            change.attach(target, "backing", backing, permissions.ROLE_COW)
        else:
            # It was made an overlay of something else while it was written.
            change.detach(target, "backing")
    elif plan.backing_mode == OPEN_BACKING and target.supports_backing and target.backing is None:
        options = layer.opener.backing_options(target)
        if options is not None:
            opened: list[BlockNode] = []
            backing = layer.opener.open_reference(options, opened, {"read-only": True, "auto-read-only": False})
            for node in opened:
                change.insert(node)
            change.attach(target, "backing", backing, permissions.ROLE_COW)
