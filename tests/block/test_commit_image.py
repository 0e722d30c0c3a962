"""The human monitor's commit: what an image holds goes down, and the graph is as it was."""

from __future__ import annotations

import errno

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.commit_image import commit_image
from qobra.block.creation._image import plan
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError

MIB = 1 << 20


@pytest.fixture
def layer():
    made = BlockLayer()
    yield made
    made.close()


@pytest.fixture
def chain(layer, tmp_path):
    """``chain(base_size, read_only=...)``: an overlay of 2 MiB over a base that holds ``b`` in its first 64 KiB."""

    def make(size=2 * MIB, **options):
        for name, length in (("base", size), ("top", 2 * MIB)):
            plan(layer, str(tmp_path / name), "qcow2", size=length).run(layer)
        base = {"driver": "qcow2", "file": {"driver": "file", "filename": str(tmp_path / "base")}}
        node = layer.add_node({**base, "node-name": "base"})
        node.write(0, b"b" * 65536)
        layer.delete_node("base")
        layer.add_node({**base, "node-name": "base", **options})
        file = {"driver": "file", "filename": str(tmp_path / "top")}
        return layer.add_node({"driver": "qcow2", "node-name": "top", "file": file, "backing": "base"})

    return make


@pytest.mark.parametrize("is_read_only", [False, True])
def test_what_an_image_holds_goes_into_its_backing_file(layer, chain, is_read_only):
    top = chain(**{"read-only": is_read_only})
    base = layer.find_node("base")
    top.write(512, b"t" * 512)
    top.write(MIB, b"e" * 65536)
    commit_image(layer, top)
    expected = b"b" * 512 + b"t" * 512 + b"b" * (65536 - 1024)
    assert base.read(0, 65536) == expected and base.read(MIB, 65536) == b"e" * 65536
    assert base.read_only == is_read_only
    # The image is empty, and lies on what it lay on.
    assert top.backing is base and not layer.graph.state.roots
    assert all(extent.kind == "absent" or extent.child is None for extent in top.map(0, 2 * MIB))
    assert top.read(0, 65536) == expected
    top.write(0, b"again")
    commit_image(layer, top)
    assert base.read(0, 8) == b"again" + b"bbb"


def test_a_base_that_is_shorter_grows(layer, chain):
    top = chain(size=MIB)
    top.write(2 * MIB - 512, b"e" * 512)
    commit_image(layer, top)
    assert layer.find_node("base").length == 2 * MIB
    assert layer.find_node("base").read(2 * MIB - 512, 512) == b"e" * 512


def test_a_failed_write_leaves_the_image_as_it_was(layer, chain, monkeypatch):
    top = chain(**{"read-only": True})
    top.write(0, b"t" * 512)
    base = layer.find_node("base")

    def fail(*_args, **_options):
        raise OSError(errno.ENOSPC, "injected")

    monkeypatch.setattr(type(base), "write", fail)
    with pytest.raises(OSError, match="injected"):
        commit_image(layer, top)
    monkeypatch.undo()
    assert top.backing is base and base.read_only and not layer.graph.state.roots
    assert top.read(0, 512) == b"t" * 512 and base.read(0, 512) == b"b" * 512


def test_what_has_no_backing_file_or_is_busy_is_refused(layer, chain):
    top = chain()
    with pytest.raises(OSError) as caught:
        commit_image(layer, layer.find_node("base"))
    assert caught.value.errno == errno.ENOTSUP
    for name in ("top", "base"):
        layer.block_node(layer.find_node(name), "a test")
        with pytest.raises(OSError) as caught:
            commit_image(layer, top)
        assert caught.value.errno == errno.EBUSY
        layer.unblock_node(layer.find_node(name), "a test")


def test_a_base_that_others_rely_on_is_not_written(layer, chain):
    top = chain()
    top.write(0, b"t" * 512)
    reader = BlockBackend(layer, "reader", perm=permissions.CONSISTENT_READ, shared=permissions.CONSISTENT_READ)
    reader.insert(layer.find_node("base"))
    with pytest.raises(QobraError, match="Conflicts|conflict|not share"):
        commit_image(layer, top)
    assert top.backing is layer.find_node("base")
    assert layer.find_node("base").read(0, 512) == b"b" * 512
    reader.remove()
    assert not layer.graph.state.roots
