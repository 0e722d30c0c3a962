"""Changing some options of open nodes and keeping the others."""

from __future__ import annotations

import pytest

from qobra.block.backend import BlockBackend
from qobra.block.change_options import change_options, parse_changes
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError
from qobra.testing.images import ImageLab


@pytest.fixture
def layer():
    made = BlockLayer()
    yield made
    made.close()


@pytest.fixture
def top(layer, tmp_path):
    lab = ImageLab(tmp_path)
    base = lab.create("base", size=1 << 20)
    middle = lab.create("middle", size=1 << 20, backing_file=base, backing_fmt="qcow2")
    path = lab.create("top", size=1 << 20, backing_file=middle, backing_fmt="qcow2")
    backend = BlockBackend(layer, "d")
    layer.open_image(path, {"driver": "qcow2", "cache": {"no-flush": True}}, root=backend)
    layer.backends["d"] = backend
    return backend.node


def _change(node, text):
    change_options(node, parse_changes(node, text))


def test_children_change_too_and_take_what_they_do_not_say_from_above(top):
    _change(top, "backing.detect-zeroes=on,file.cache.no-flush=off,cache.direct=on")
    assert top.backing.detect_zeroes == "on" and top.detect_zeroes == "off"
    assert (top.cache_direct, top.cache_no_flush) == (True, True)
    assert (top.file.cache_direct, top.file.cache_no_flush) == (True, False)
    assert (top.backing.cache_direct, top.backing.cache_no_flush) == (True, True)
    _change(top, "lazy-refcounts=on")
    assert (top.cache_direct, top.cache_no_flush, top.backing.detect_zeroes) == (True, True, "on")
    _change(top, "cache.no-flush=on,cache.direct=off")  # what a child was given it does not take from above any more
    assert (top.file.cache_direct, top.file.cache_no_flush) == (False, False)


@pytest.mark.parametrize(
    "text, refusal",
    [
        ("node-name=foo", "Cannot change the option 'node-name'"),
        ("file.node-name=foo", "Cannot change the option 'node-name'"),
        ("backing.driver=file", "Cannot change the option 'driver'"),
        ("backing.x.y=1", "Cannot change the option 'x.y'"),
        ("backing.read-only=perhaps", "Parameter 'read-only' expects 'on' or 'off'"),
        (
            "overlap-check=all,overlap-check.template=none",
            "Conflicting values for qcow2 options 'overlap-check' ('all') and 'overlap-check.template' ('none')",
        ),
        ("cache-clean-interval=-1", "Cache clean interval too big"),
        ("refcount-cache-size=256T", "Refcount cache size too big"),
    ],
)
def test_what_cannot_be_changed(top, text, refusal):
    with pytest.raises(QobraError) as error:
        _change(top, text)
    assert str(error.value) == refusal


def test_new_cache_sizes_take_the_place_of_old_ones_that_contradict_them(top):
    for text in ("cache-size=1M", "l2-cache-size=64k", "refcount-cache-size=256k"):
        _change(top, text)
    assert "cache-size" not in top.options and top.options["l2-cache-size"] == 65536
    _change(top, "cache-size=1M")
    assert "l2-cache-size" not in top.options and "refcount-cache-size" not in top.options
    with pytest.raises(QobraError, match="may not be set at the same time"):
        _change(top, "cache-size=1M,l2-cache-size=64k,refcount-cache-size=256k")


def test_a_backing_node_follows_its_new_parent_once_what_lay_between_is_gone(layer, top):
    base = top.backing.backing
    with layer.graph.change() as change:
        change.attach(top, "backing", base, top.roles["backing"])
    _change(top, "backing.detect-zeroes=on")
    assert base.detect_zeroes == "on"


def test_a_child_with_a_name_of_its_own_is_changed_by_that_name_only(layer):
    layer.add_node({"driver": "null-co", "node-name": "below", "size": 512})
    node = layer.add_node({"driver": "raw", "node-name": "above", "file": "below"})
    with pytest.raises(QobraError, match="Cannot change the option 'file.detect-zeroes'"):
        _change(node, "file.detect-zeroes=on")
