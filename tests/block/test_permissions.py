"""What nodes ask of their children, by role, and how permissions are named."""

from __future__ import annotations

import pytest

from qobra.block.permissions import (
    ALL,
    CONSISTENT_READ,
    GRAPH_MOD,
    RESIZE,
    ROLE_COW,
    ROLE_DATA,
    ROLE_FILTERED,
    ROLE_IMAGE,
    ROLE_METADATA,
    ROLE_PRIMARY,
    WRITE,
    WRITE_UNCHANGED,
    default_child_permissions,
    names,
    texts,
)

READ_WRITE = CONSISTENT_READ | WRITE
NOTHING = 0


def test_names_come_in_the_order_of_the_schema():
    assert names(ALL) == ["consistent-read", "write", "write-unchanged", "resize", "graph-mod"]
    assert names(RESIZE | CONSISTENT_READ) == ["consistent-read", "resize"]
    assert texts(ALL) == "consistent read, write, write unchanged, resize, change children"
    assert names(NOTHING) == [] and texts(NOTHING) == ""


@pytest.mark.parametrize(
    ("role", "writable", "perm", "shared", "asked", "left"),
    [
        # A filter asks for what it is asked for, and bears changes of the graph below it.
        (ROLE_FILTERED | ROLE_PRIMARY, True, ALL, ALL, ALL & ~GRAPH_MOD, ALL),
        (ROLE_FILTERED | ROLE_PRIMARY, True, RESIZE, WRITE, RESIZE, WRITE | GRAPH_MOD),
        # A backing file is only read, and may be written where users bear that their data changes.
        (ROLE_COW, True, ALL, ALL, CONSISTENT_READ, ALL),
        (ROLE_COW, True, WRITE, NOTHING, NOTHING, CONSISTENT_READ | GRAPH_MOD | WRITE_UNCHANGED),
        (ROLE_COW, True, READ_WRITE, ALL & ~WRITE, CONSISTENT_READ, CONSISTENT_READ | GRAPH_MOD | WRITE_UNCHANGED),
        # An image's metadata is its driver's alone.
        (ROLE_IMAGE, True, NOTHING, ALL, READ_WRITE | RESIZE, ALL & ~(WRITE | RESIZE)),
        (ROLE_METADATA, False, NOTHING, ALL, CONSISTENT_READ, ALL & ~(WRITE | RESIZE)),
        (ROLE_METADATA, False, WRITE_UNCHANGED, NOTHING, CONSISTENT_READ | WRITE_UNCHANGED, GRAPH_MOD),
        # Who writes to data may have to make the file longer, so nobody else may change its length.
        (ROLE_DATA, True, NOTHING, ALL, NOTHING, ALL & ~RESIZE),
        (ROLE_DATA, True, CONSISTENT_READ, WRITE, CONSISTENT_READ, WRITE | GRAPH_MOD),
        (ROLE_DATA, True, WRITE, ALL, WRITE | RESIZE, ALL & ~RESIZE),
        (ROLE_DATA, True, WRITE_UNCHANGED, ALL, WRITE_UNCHANGED | WRITE | RESIZE, ALL & ~RESIZE),
    ],
)
def test_what_a_node_asks_of_a_child(role, writable, perm, shared, asked, left):
    assert default_child_permissions(role, writable, perm, shared) == (asked, left)
