"""Limits, histograms and threads of block devices over QMP."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from qobra.block import accounting
from qobra.block.media import find_backend, leave_throttle
from qobra.block.object.pr_manager_helper import PRManagerHelper
from qobra.block.throttle import Membership, limits_from_throttle
from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.registry import command


@command("block_set_io_throttle")
def block_set_io_throttle(machine: Machine, args: dict[str, Any]) -> None:
    """Limit the I/O of a device, alone or as a member of a group; all zeroes end that."""
    backend = find_backend(machine.block, args.get("device"), args.get("id"))
    if backend.node is None:
        raise QobraError("Device has no medium")
    limits = limits_from_throttle(args)
    if not limits.enabled():
        leave_throttle(backend)
        return
    current = backend.throttle.group.name if isinstance(backend.throttle, Membership) else None
    name = args.get("group", current or args.get("device") or args.get("id") or "")
    if name != current:
        leave_throttle(backend)
        backend.throttle = Membership(machine.block.throttle_group(name))
    assert isinstance(backend.throttle, Membership)
    backend.throttle.group.set_limits(limits)


_HISTOGRAMS = (("read", accounting.READ), ("write", accounting.WRITE), ("flush", accounting.FLUSH))


@command("block-latency-histogram-set")
def block_latency_histogram_set(machine: Machine, args: dict[str, Any]) -> None:
    """Count latencies by intervals from now on; without boundaries, stop."""
    backend = machine.block.find_qdev(args["id"])
    stats = backend.accounting
    common = args.get("boundaries")
    single = {kind: args.get(f"boundaries-{name}") for name, kind in _HISTOGRAMS}
    if common is None and not any(each is not None for each in single.values()):
        for _name, kind in _HISTOGRAMS:
            stats.set_histogram(kind, None)
        return
    for name, kind in _HISTOGRAMS:
        boundaries = single[kind] if single[kind] is not None else common
        if boundaries is None:
            continue
        if (boundaries and boundaries[0] <= 0) or any(low >= high for low, high in pairwise(boundaries)):
            raise QobraError(f"Device '{args['id']}' set {name} boundaries fail")
        stats.set_histogram(kind, boundaries)


@command("x-blockdev-set-iothread")
def x_blockdev_set_iothread(machine: Machine, args: dict[str, Any]) -> None:
    """Take a node and what it is connected with into an iothread; I/O goes on as before (:mod:`qobra.block.iothreads`).

    A device, or an export with ``fixed-iothread``, keeps it where it is.
    """
    block = machine.block
    node = block.graph.find(args["node-name"])
    if node is None:
        raise QobraError(f"Failed to find node with node-name='{args['node-name']}'")
    # What a job holds of its nodes is no backend.
    backends = [root for root in block.graph.roots_of(node) if root.job is None]
    if backends and not args.get("force", False):
        raise QobraError(
            f"Node {node.node_name} is associated with a BlockBackend and could be in use "
            "(use force=true to override this check)"
        )
    name = args["iothread"]
    iothread = None
    if name is not None:
        iothread = block.find_iothread(name)
        if iothread is None:
            raise QobraError(f"Cannot find iothread {name}")
    block.set_iothread(node, iothread)


@command("query-pr-managers")
def query_pr_managers(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The persistent reservation managers, and whether their helpers are there."""
    return [
        {"id": each.id, "connected": each.is_connected()}
        for each in machine.objects.objects.children.values()
        if isinstance(each, PRManagerHelper)
    ]
