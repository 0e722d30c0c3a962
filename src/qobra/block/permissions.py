"""What the users of a node may do with it, and what they let others do (BlockPermission in the schema)."""

from __future__ import annotations

CONSISTENT_READ = 1
WRITE = 2
WRITE_UNCHANGED = 4
RESIZE = 8
GRAPH_MOD = 16
ALL = 31

NAMES = {
    CONSISTENT_READ: "consistent-read",
    WRITE: "write",
    WRITE_UNCHANGED: "write-unchanged",
    RESIZE: "resize",
    GRAPH_MOD: "graph-mod",
}
_TEXTS = {
    CONSISTENT_READ: "consistent read",
    WRITE: "write",
    WRITE_UNCHANGED: "write unchanged",
    RESIZE: "resize",
    GRAPH_MOD: "change children",
}

# Roles of a child.
ROLE_DATA = 1
ROLE_METADATA = 2
ROLE_FILTERED = 4
ROLE_COW = 8
ROLE_PRIMARY = 16
ROLE_IMAGE = ROLE_DATA | ROLE_METADATA | ROLE_PRIMARY

_PASSTHROUGH = CONSISTENT_READ | WRITE | WRITE_UNCHANGED | RESIZE


def names(mask: int) -> list[str]:
    """The schema's names of the permissions in ``mask``, in the schema's order."""
    return [name for bit, name in NAMES.items() if mask & bit]


def texts(mask: int) -> str:
    """The permissions in ``mask`` as error texts list them."""
    return ", ".join(text for bit, text in _TEXTS.items() if mask & bit)


def default_child_permissions(role: int, writable: bool, perm: int, shared: int) -> tuple[int, int]:
    """What a node asks of a child with ``role``, given what its own users ask of it (``perm``) and share.

    ``writable``: whether the node is open for writing, so that it may touch its metadata on its own account.
    """
    if role & ROLE_FILTERED:
        return perm & _PASSTHROUGH, (shared & _PASSTHROUGH) | GRAPH_MOD
    if role & ROLE_COW:
        # Only ever read; its data may change only if this node's users can live with changing data.
        return perm & CONSISTENT_READ, (
            (WRITE | RESIZE if shared & WRITE else 0) | CONSISTENT_READ | GRAPH_MOD | WRITE_UNCHANGED
        )
    perm, shared = perm & _PASSTHROUGH, (shared & _PASSTHROUGH) | GRAPH_MOD
    if role & ROLE_METADATA:
        if writable:
            perm |= WRITE | RESIZE
        # Metadata that changes under a driver is never consistent, so nobody else may write.
        perm |= CONSISTENT_READ
        shared &= ~(WRITE | RESIZE)
    elif role & ROLE_DATA:
        if perm & WRITE_UNCHANGED:
            perm |= WRITE
        if perm & WRITE:
            perm |= RESIZE
        shared &= ~RESIZE
    return perm, shared
