"""Nodes and backends over QMP: blockdev-add, blockdev-del, block_resize, and the block queries."""

from __future__ import annotations

from qobra.block import change_children, query
from qobra.block.named import add_drive, split_old_options
from qobra.block.reopen import reopen
from qobra.block.write_threshold import set_write_threshold
from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.registry import command, older_form

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@command("blockdev-add")
def blockdev_add(machine: Machine, args: dict[str, Any]) -> None:
    """Open a node and keep it until blockdev-del."""
    machine.block.add_node(args)


@older_form("blockdev-add", lambda args: args.keys() == {"options"} and isinstance(args["options"], dict))
def blockdev_add_options(machine: Machine, args: dict[str, Any]) -> None:
    """The form of QEMU 1.7 to 2.8, whose ``id`` makes a drive that holds the node."""
    from qobra.qapi.contract import contract

    name, options, policy, writeback = split_old_options(args["options"])
    if name is None and "node-name" not in options:
        raise QobraError("'id' and/or 'node-name' need to be specified for the root node")
    checked = contract().check("BlockdevOptions", options, path="options")
    if name is None:
        machine.block.add_node(checked)
    else:
        add_drive(machine.block, name, checked, policy, writeback=writeback)


@command("blockdev-reopen")
def blockdev_reopen(machine: Machine, args: dict[str, Any]) -> None:
    """Change options of open nodes, all or none."""
    reopen(machine.block, args["options"])


@command("x-blockdev-reopen")
def x_blockdev_reopen(machine: Machine, args: dict[str, Any]) -> None:
    """Change options of one open node: the form of 5.2."""
    reopen(machine.block, [args])


@command("x-blockdev-change")
def x_blockdev_change(machine: Machine, args: dict[str, Any]) -> None:
    """Add a child to a quorum, or take one from it."""
    block = machine.block
    parent = block.find_device_or_node(args["parent"])
    child, node_name = args.get("child"), args.get("node")
    if (child is None) == (node_name is None):
        if child is None:
            raise QobraError("Either child or node must be specified")
        raise QobraError("The parameters child and node are in conflict")
    if child is not None:
        change_children.remove(block, parent, child)
    elif node_name is not None:
        node = block.graph.find(node_name)
        if node is None:
            raise QobraError(f"Node '{node_name}' not found")
        change_children.add(block, parent, node)


@command("block-set-write-threshold")
def block_set_write_threshold(machine: Machine, args: dict[str, Any]) -> None:
    """Send BLOCK_WRITE_THRESHOLD once a write to the node goes past an offset."""
    node = machine.block.graph.find(args["node-name"])
    if node is None:
        raise QobraError(f"Device '{args['node-name']}' not found")
    set_write_threshold(node, args["write-threshold"])


@command("blockdev-del")
def blockdev_del(machine: Machine, args: dict[str, Any]) -> None:
    """Let go of a node that blockdev-add made."""
    machine.block.delete_node(args["node-name"])


@command("query-named-block-nodes")
def query_named_block_nodes(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """All nodes."""
    return query.named_block_nodes(machine.block, flat=args.get("flat", False))


@command("query-block")
def query_block(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """All drives, with what lies in them."""
    return query.block_info(machine.block)


@command("x-debug-query-block-graph")
def query_block_graph(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """Nodes, roots, and what each edge may do."""
    return query.block_graph(machine.block)


@command("query-blockstats")
def query_blockstats(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """Counters of every backend, or of every node."""
    block = machine.block
    if args.get("query-nodes", False):
        return [query.node_stats(node, chain=False) for node in block.graph.nodes.values()]
    return [query.backend_stats(backend) for backend in block.visible_backends()]


@command("block_resize")
def block_resize(machine: Machine, args: dict[str, Any]) -> None:
    """Change the size of a node, under everybody who uses it."""
    block = machine.block
    node = block.find_device(args.get("device"), args.get("node-name"))
    size = args["size"]
    if size < 0:
        raise QobraError("Parameter 'size' expects a >0 size")
    try:
        block.check_free(node)
    except QobraError:
        raise QobraError(f"Device '{args.get('device', '(null)')}' is in use")
    block.resize(node, size)
