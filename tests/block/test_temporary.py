"""snapshot=on: what is written is gone, and the image below is never opened for writing."""

from __future__ import annotations

import os

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.layer import BlockLayer
from qobra.block.temporary import open_over
from qobra.errors import QobraError

SIZE = 1 << 20


@pytest.fixture
def layer():
    made = BlockLayer()
    yield made
    made.close()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"x" * SIZE)
    return path


@pytest.fixture
def directory(tmp_path, monkeypatch):
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setenv("TMPDIR", str(made))
    return made


def _options(image, **more):
    return {"driver": "raw", "file": {"driver": "file", "filename": str(image)}, **more}


def test_writes_go_elsewhere_and_are_gone(layer, image, directory):
    image.chmod(0o400)
    root = BlockBackend(layer, "d", perm=permissions.CONSISTENT_READ | permissions.WRITE)
    node = open_over(layer, _options(image), root=root)
    assert root.node is node and (node.driver, node.length) == ("qcow2", SIZE)
    assert node.backing.read_only and not node.read_only
    root.write(100, b"new")
    assert root.read(98, 7) == b"xxnewxx"
    assert os.listdir(directory) == [] and image.read_bytes() == b"x" * SIZE
    root.remove()
    assert not layer.graph.nodes  # nor is the root that asked for the size there


def test_it_may_be_read_only_too(layer, image, directory):
    root = BlockBackend(layer, "d")
    node = open_over(layer, _options(image, discard="unmap", **{"read-only": True}), root=root)
    assert node.read_only and node.discard_unmap
    root.remove()


def test_without_an_image_or_a_directory_nothing_is_left(layer, image, directory, monkeypatch):
    root = BlockBackend(layer, "d")
    with pytest.raises(QobraError, match="No such file or directory"):
        open_over(layer, _options(directory / "absent"), root=root)
    monkeypatch.setenv("TMPDIR", str(directory / "absent"))
    with pytest.raises(QobraError, match="Could not get temporary filename: No such file or directory"):
        open_over(layer, _options(image), root=root)
    assert not layer.graph.nodes and root.node is None


def test_a_name_that_is_taken_is_not_used(layer, image, directory, monkeypatch):
    names = [b"aaaaaa", b"bbbbbb"]
    host = os.urandom

    def urandom(count):
        return bytes(octet - ord("a") for octet in names.pop(0)) if count == 6 and names else host(count)

    monkeypatch.setattr(os, "urandom", urandom)
    (directory / "vl.aaaaaa").write_bytes(b"of another")
    root = BlockBackend(layer, "d")
    open_over(layer, _options(image), root=root)
    assert not names
    assert os.listdir(directory) == ["vl.aaaaaa"]
    assert (directory / "vl.aaaaaa").read_bytes() == b"of another"
    root.remove()
