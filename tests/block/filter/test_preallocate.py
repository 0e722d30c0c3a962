"""A file that grows in large steps while it is in use, and has its own size afterwards."""

from __future__ import annotations

import os

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError

STEP = 1 << 20


@pytest.fixture
def layer():
    made = BlockLayer()
    yield made
    made.close()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"a" * 4096)
    return path


def _user(layer, path, **options):
    options = {"prealloc-size": STEP, "prealloc-align": 65536, **options}
    file = {"driver": "file", "filename": str(path)}
    node = layer.add_node({"driver": "preallocate", "node-name": "p", "file": file, **options})
    user = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE | permissions.RESIZE)
    user.insert(node)
    return node, user


def test_a_write_past_the_end_takes_a_step_ahead(layer, path):
    node, user = _user(layer, path)
    user.write(4096, b"b" * 100)
    assert node.length == 4196
    assert os.path.getsize(path) == -(-(4196 + STEP) // 65536) * 65536
    size = os.path.getsize(path)
    user.write(8192, b"c")
    assert node.length == 8193 and os.path.getsize(path) == size
    assert user.read(4096, 4097) == b"b" * 100 + bytes(3996) + b"c"
    user.remove()
    layer.delete_node("p")
    assert path.read_bytes() == b"a" * 4096 + b"b" * 100 + bytes(3996) + b"c"


def test_what_was_taken_is_given_back_with_the_right_to_resize(layer, path):
    _node, user = _user(layer, path)
    user.write(4096, b"b")
    user.set_permissions(permissions.CONSISTENT_READ, permissions.ALL)
    assert os.path.getsize(path) == 4097


def test_other_kinds_of_growth_take_no_more_than_without_the_filter(layer, path):
    node, user = _user(layer, path)
    user.write(4096, b"b")
    node.truncate(64 * STEP)
    assert os.stat(path).st_blocks * 512 < STEP
    node.truncate(64 * STEP + 4096, preallocation="falloc")
    assert os.path.getsize(path) == 64 * STEP + 4096 == node.length


def test_what_was_taken_is_given_back_before_the_image_is_handed_over(layer, path):
    node, user = _user(layer, path)
    user.write(4096, b"b")
    node.inactivate()
    assert os.path.getsize(path) == 4097


def test_a_format_above_grows_through_it(layer, path):
    path.write_bytes(b"")
    node, user = _user(layer, path)
    user.remove()
    from qobra.block.format.qcow2.node import Qcow2Node

    user.insert(node)
    Qcow2Node.create({"size": STEP}, node)
    user.remove()
    image = layer.add_node({"driver": "qcow2", "node-name": "q", "file": "p"})
    guest = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    guest.insert(image)
    guest.write(0, b"x" * (STEP // 2))
    assert os.path.getsize(path) > node.length >= STEP // 2
    assert guest.read(STEP // 2 - 5, 5) == b"x" * 5
    guest.remove()
    layer.delete_node("q")
    assert os.path.getsize(path) == node.length


@pytest.mark.parametrize("align", [0, 1, 513])
def test_alignment_is_in_sectors(layer, path, align):
    with pytest.raises(QobraError, match="prealloc-align parameter of preallocate filter is not aligned to 512"):
        _user(layer, path, **{"prealloc-align": align})


@pytest.mark.parametrize("name", ["prealloc-align", "prealloc-size"])
def test_steps_below_zero_are_refused(layer, path, name):
    with pytest.raises(QobraError, match=f"Parameter '{name}' expects a non-negative number below"):
        _user(layer, path, **{name: -1})
