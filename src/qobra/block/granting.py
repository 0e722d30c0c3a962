"""Which permissions every user of the nodes of a graph ends up with, and who is in whose way."""

from __future__ import annotations

from qobra.block import permissions
from qobra.block.node import BlockNode
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend
    from qobra.block.graph import GraphState

    User = tuple[BlockNode | BlockBackend, str, int, int]
    """A user of a node, the name of the link, what it takes and what it shares."""
    Link = tuple[BlockNode | BlockBackend, str, BlockNode]
    """A user, the name of the link, and the node at its end."""

_WRITES = permissions.WRITE | permissions.WRITE_UNCHANGED


def compute_permissions(
    state: GraphState, order: list[BlockNode], recheck: set[BlockNode], refusals: dict[BlockNode, str]
) -> dict[BlockNode, tuple[int, int]]:
    """Work out what each link of ``state`` takes and shares, and what comes together at each node.

    ``order`` has the nodes with children before parents. Raises QobraError naming both users where two conflict, and
    where a node is read-only, unless it is in ``recheck``, from above to below; ``refusals`` has other words for that.
    """
    users: dict[BlockNode, list[User]] = {node: [] for node in order}
    cumulative: dict[BlockNode, tuple[int, int]] = {}
    result = state.permissions
    for root, (node, perm, shared) in state.roots.items():
        if root.gives_way and (node.inactive or node.layer.opens_inactive):
            # While the guest is elsewhere, its disks may be filled by others, even those that are active here.
            # A drive that waits for a device still reads.
            waits = root.device is None and node.layer.opens_inactive
            perm, shared = perm & permissions.CONSISTENT_READ if waits else 0, permissions.ALL
        users[node].append((root, "root", perm, shared))
        result[(root, "root")] = (perm, shared)
    for node in reversed(order):
        perm, shared = cumulative[node] = combine(users[node])
        if perm & ~shared:
            check_conflicts(node, users[node], state.ages)
        if node not in recheck:
            check_bears(node, perm)
        if node in refusals and node.read_only and perm & _WRITES:
            raise QobraError(refusals[node])
        node.has_users = bool(users[node])
        for name, (child, role) in state.links[node].items():
            child_perm, child_shared = node.asks_of(name, role, perm, shared)
            child_shared = node.lets(child_shared)
            users[child].append((node, name, child_perm, child_shared))
            result[(node, name)] = (child_perm, child_shared)
    return cumulative


def check_bears(node: BlockNode, perm: int) -> None:
    """Raise QobraError if ``node`` itself cannot let its users do what they come to ask for, ``perm`` in all."""
    if not perm & ~node.perm:
        return
    if node.refuses(perm):
        raise QobraError("Block node is read-only", node=node.node_name)
    unit = node.request_alignment
    below = max((child.request_alignment for child in node.children.values()), default=unit)
    if unit > below and perm & _WRITES and not perm & permissions.RESIZE and node.virtual_size % unit:
        # It writes larger blocks than what is under it, and of the last one some would go past the end.
        raise QobraError(
            "Cannot get 'write' permission without 'resize': Image size is not a multiple of request alignment"
        )


def check_conflicts(node: BlockNode, users: list[User], ages: dict[Link, int]) -> None:
    """Raise QobraError if one takes what another does not share. The latest to come is the first to be asked."""
    users = sorted(users, key=lambda user: ages.get((user[0], user[1], node), 0), reverse=True)
    for refuser in users:
        for taker in users:
            refused = taker[2] & ~refuser[3]
            if refused and taker is not refuser:
                raise QobraError(
                    f"Permission conflict on node '{node.node_name}': permissions '{permissions.texts(refused)}' are "
                    f"both required by {_user_text(taker[0], node, taker[1])} and unshared by "
                    f"{_user_text(refuser[0], node, refuser[1])}.",
                    node=node.node_name,
                )


def _user_text(user: BlockNode | BlockBackend, node: BlockNode, name: str) -> str:
    if isinstance(user, BlockNode):
        who = f"node '{user.node_name}'"
    else:
        who = user.description()
        name = user.edge_name
    return f"{who} (uses node '{node.node_name}' as '{name}' child)"


def combine(users: list[User]) -> tuple[int, int]:
    """What all of ``users`` together take, and what each of them shares."""
    perm, shared = 0, permissions.ALL
    for _user, _name, user_perm, user_shared in users:
        perm |= user_perm
        shared &= user_shared
    return perm, shared
