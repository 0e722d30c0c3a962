"""What queries tell of nodes and backends: BlockDeviceInfo, ImageInfo, BlockStats, the graph with its permissions."""

from __future__ import annotations

from qobra.block import permissions
from qobra.block.accounting import Accounting
from qobra.block.backend import BlockBackend
from qobra.block.filename import full_backing_filename
from qobra.block.graph import GraphState
from qobra.block.layer import BlockLayer
from qobra.block.node import BlockNode
from qobra.errors import QobraError
from qobra.units import signed64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object


Info = dict[str, Any]

_NO_LIMITS = {"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}


def without_implicit(node: BlockNode) -> BlockNode:
    """``node``, or the first below it that no job put in unasked."""
    while node.implicit and node.filtered is not None:
        node = node.filtered
    return node


def cow_backing(node: BlockNode) -> BlockNode | None:
    """The backing node as a user sees it: below implicit filters."""
    backing = node.backing if node.supports_backing else None
    return without_implicit(backing) if backing is not None else None


def backing_depth(node: BlockNode, *, implicit: bool = True) -> int:
    """How many images lie under ``node``, backing files and filters, and the ``implicit`` ones too if so wanted."""
    depth = 0
    current = _filtered_or_backing(node, implicit)
    while current is not None:
        depth += 1
        current = _filtered_or_backing(current, implicit)
    return depth


def image_info(node: BlockNode) -> Info:
    """ImageInfo of ``node`` without its backing chain. Raises OSError or QobraError where the image cannot be read."""
    info: Info = {
        "filename": node.filename,
        "format": node.driver,
        "virtual-size": node.virtual_size,
    }
    actual = node.allocated_size()
    if actual is not None:
        info["actual-size"] = actual
    cluster = node.cluster_size()
    if cluster:
        info["cluster-size"] = cluster
    if _reports_info(node):
        info["dirty-flag"] = False
    info.update(node.info())
    keeper = node.snapshot_keeper()
    if keeper not in (None, node) and (snapshots := keeper.snapshot_list()):
        info["snapshots"] = snapshots
    if node.backing_filename:
        info["backing-filename"] = node.backing_filename
        try:
            info["full-backing-filename"] = full_backing_filename(node)
        except QobraError:
            pass
        if node.backing_format:
            info["backing-filename-format"] = node.backing_format
    return info


def _reports_info(node: BlockNode) -> bool:
    below = node.filtered
    while below is not None or node.driver == "raw":
        node = below or node.file
        below = node.filtered
    return node.reports_info


def image_chain(
    node: BlockNode, *, flat: bool, known: dict[BlockNode, Info] | None = None, implicit: bool = True
) -> Info:
    """ImageInfo of ``node``, with ``backing-image`` all the way down unless ``flat``; ``implicit``: see backing_depth.

    ``known`` keeps the answers of one query, so that a chain of many images is told of in a time that is not the square
    of its length.
    """
    if flat:
        return image_info(node)
    if known is None:
        known = {}
    chain: list[BlockNode] = []
    current: BlockNode | None = node
    while current is not None and current not in known:
        chain.append(current)
        current = _filtered_or_backing(current, implicit)
    for each in reversed(chain):
        info = known[each] = image_info(each)
        below = _filtered_or_backing(each, implicit)
        if below is not None:
            info["backing-image"] = known[below]
    return known[node]


def _filtered_or_backing(node: BlockNode, implicit: bool) -> BlockNode | None:
    """What a chain of images goes on with: for a filter what it shows, for others their backing file."""
    below = node.filtered if node.is_filter else node.backing if node.supports_backing else None
    return below if below is None or implicit else without_implicit(below)


def device_info(
    node: BlockNode,
    *,
    flat: bool = False,
    backend: BlockBackend | None = None,
    known: dict[BlockNode, Info] | None = None,
) -> Info:
    """BlockDeviceInfo of ``node``; with ``backend``, as its user sees it, with the limits of its throttle group.

    ``known``: see :func:`image_chain`.
    """
    backing = cow_backing(node)
    info: Info = {
        "file": node.filename,
        "node-name": node.node_name,
        "ro": node.read_only,
        "drv": node.driver,
        **({"backing_file": backing.filename} if backing is not None else {}),
        "encrypted": bool(node.info().get("encrypted", False)),
        "encryption_key_missing": False,
        "cache": {
            "writeback": backend.writeback if backend is not None else True,
            "direct": node.cache_direct,
            "no-flush": node.cache_no_flush,
        },
        "detect_zeroes": node.detect_zeroes,
        "write_threshold": signed64(node.write_threshold),
        "backing_file_depth": 0 if flat else backing_depth(node, implicit=backend is None),
        **_NO_LIMITS,
        "image": image_chain(node, flat=flat, known=known, implicit=backend is None),
    }
    if node.bitmaps:
        info["dirty-bitmaps"] = dirty_bitmaps(node)
    if backend is not None and backend.throttle is not None:
        info.update(backend.throttle.limits())
    return info


def dirty_bitmaps(node: BlockNode) -> list[Info]:
    """The ``dirty-bitmaps`` member of what is said of ``node``: newest first, as QEMU lists them."""
    bitmaps = tuple(reversed(node.bitmaps.values()))
    apart = [info for bitmap in bitmaps if (info := bitmap.info_since_frozen()) is not None]
    return apart + [bitmap.info() for bitmap in bitmaps]


def named_block_nodes(layer: BlockLayer, *, flat: bool) -> list[Info]:
    """The answer of query-named-block-nodes: all nodes, newest first as QEMU lists them."""
    known: dict[BlockNode, Info] = {}
    return [device_info(node, flat=flat, known=known) for node in reversed(layer.graph.nodes.values())]


def block_info(layer: BlockLayer) -> list[Info]:
    """The answer of query-block: BlockInfo of every backend that has a name or a device."""
    return [_backend_info(backend) for backend in layer.visible_backends()]


def _backend_info(backend: BlockBackend) -> Info:
    device = backend.device
    info: Info = {
        "device": backend.name,
        "type": "unknown",
        "removable": device is None or device.is_removable,
        "locked": device is not None and device.medium_locked,
    }
    if device is not None:
        info["qdev"] = device.qom_path
        if device.has_tray:
            info["tray_open"] = device.tray_open
    if backend.policy is not None and (status := backend.policy.shown_status) is not None:
        info["io-status"] = status
    if backend.node is not None:
        node = without_implicit(backend.node)
        info["inserted"] = device_info(node, backend=backend)
        if node.bitmaps:
            info["dirty-bitmaps"] = dirty_bitmaps(node)
    return info


def block_graph(layer: BlockLayer) -> Info:
    """XDbgBlockGraph: nodes, jobs and roots, the latest first, and what each edge takes and shares."""
    state: GraphState = layer.graph.state
    numbers: dict[object, int] = {}

    def number(vertex: object) -> int:
        return numbers.setdefault(vertex, len(numbers) + 1)

    nodes: list[Info] = []
    edges: list[Info] = []
    jobs: dict[Any, None] = {}
    for root in [*state.roots, *(each for each in layer.visible_backends() if each not in state.roots)]:
        if root.job is not None:
            jobs[root.job] = None
        else:
            nodes.append({"id": number(root), "type": "block-backend", "name": root.name or root.device_path()})
    # Also those that have ended and hold no node any more.
    for job in {**jobs, **dict.fromkeys(layer.jobs.block_jobs())}:
        nodes.append({"id": number(job), "type": "block-job", "name": job.id or ""})
    for node in state.nodes.values():
        nodes.append({"id": number(node), "type": "block-driver", "name": node.node_name})
    for (user, name), (perm, shared) in state.permissions.items():
        if isinstance(user, BlockNode):
            child = state.links[user][name][0]
        else:
            child, name = state.roots[user][0], user.edge_name
        edges.append(
            {
                "parent": number(user if isinstance(user, BlockNode) else user.job or user),
                "child": number(child),
                "name": name,
                "perm": permissions.names(perm)[::-1],
                "shared-perm": permissions.names(shared & ~permissions.GRAPH_MOD)[::-1],
            }
        )
    # The latest first, as QEMU has them; edges as their parents come, those of one parent as its children do.
    edges.sort(key=lambda edge: -edge["parent"])
    return {"nodes": nodes[::-1], "edges": edges}


def node_stats(node: BlockNode, *, chain: bool) -> Info:
    """BlockStats of a node, with that of its file under ``parent``; ``chain``: as for a device, with its backing."""
    if chain:
        node = without_implicit(node)
    stats = Accounting().stats()
    # Only devices are accounted.
    stats["account_invalid"] = stats["account_failed"] = False
    stats["wr_highest_offset"] = node.highest_write()
    info: Info = {"stats": stats, "node-name": node.node_name}
    specific = node.stats()
    if specific is not None:
        info["driver-specific"] = specific
    primary = node.primary()
    if primary is not None:
        info["parent"] = node_stats(primary, chain=chain)
    below = _filtered_or_backing(node, not chain)
    if chain and below is not None:
        info["backing"] = node_stats(below, chain=True)
    return info


def backend_stats(backend: BlockBackend) -> Info:
    """BlockStats of a named backend and of the chain in it."""
    info: Info = {"device": backend.name}
    if backend.node is not None:
        node = without_implicit(backend.node)
        info.update(node_stats(node, chain=True))
        highest = node.highest_write()
    else:
        highest = 0
    info["stats"] = backend.accounting.stats()
    info["stats"]["wr_highest_offset"] = highest
    qdev = backend.device_path()
    if qdev:
        info["qdev"] = qdev
    return info
