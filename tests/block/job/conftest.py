"""Nodes, guests and models for the tests of jobs."""

from __future__ import annotations

import errno
import random

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.testing.jobs import RecordingLayer

MIB = 1 << 20


@pytest.fixture
def layer():
    made = RecordingLayer()
    yield made
    with made.control:
        made.close()


class Guest:
    """A drive over ``node`` with a model of what it holds."""

    def __init__(self, layer, node, name="drive"):
        self.layer = layer
        self.backend = BlockBackend(layer, name, perm=permissions.CONSISTENT_READ | permissions.WRITE)
        self.backend.insert(node)
        layer.backends[name] = self.backend
        self.model = bytearray(self.backend.read(0, node.length))

    @property
    def node(self):
        return self.backend.node

    def fill(self, seed=1):
        self.write(0, random.Random(seed).randbytes(len(self.model)))

    def write(self, offset, data):
        self.backend.write(offset, data)
        self.model[offset : offset + len(data)] = data

    def random_requests(self, rng, count, largest=100000):
        size = len(self.model)
        for _ in range(count):
            offset = rng.randrange(size - 1)
            length = min(size - offset, rng.randrange(1, largest))
            kind = rng.random()
            if kind < 0.2:
                self.backend.write_zeroes(offset, length)
                self.model[offset : offset + length] = bytes(length)
            elif kind < 0.7:
                self.write(offset, rng.randbytes(length))
            else:
                assert self.backend.read(offset, length) == self.model[offset : offset + length]

    def check(self):
        assert self.backend.read(0, len(self.model)) == self.model


@pytest.fixture
def make_guest(layer):
    return lambda node, name="drive": Guest(layer, node, name)


@pytest.fixture
def raw(layer, tmp_path):
    def make(name, size=MIB, **options):
        path = tmp_path / name
        if not path.exists():
            with open(path, "wb") as file:
                file.truncate(size)
        return layer.add_node(
            {"driver": "raw", "node-name": name, "file": {"driver": "file", "filename": str(path)}, **options}
        )

    return make


@pytest.fixture
def fail(monkeypatch):
    """``fail(node, "_write", times)``: let that many requests of the node fail."""

    def make(node, method, times, number=errno.EIO):
        original = getattr(node, method)
        left = [times]

        def replaced(*args, **kwargs):
            if left[0]:
                left[0] -= 1
                raise OSError(number, "injected")
            return original(*args, **kwargs)

        monkeypatch.setattr(node, method, replaced)

    return make


@pytest.fixture
def qcow2(layer, tmp_path):
    """``qcow2(name, backing)``: a new qcow2 node over the node ``backing``, at ``tmp_path / name``."""
    from qobra.block.format.qcow2.node import Qcow2Node

    def make(name, backing=None, size=MIB, **options):
        path = tmp_path / name
        if not path.exists():
            path.write_bytes(b"")
            file = layer.add_node({"driver": "file", "node-name": "creating", "filename": str(path)})
            creating = {"driver": "qcow2", "file": "creating", "size": size, "cluster-size": 4096}
            if backing is not None:
                creating.update({"backing-file": str(tmp_path / backing), "backing-fmt": "qcow2"})
            maker = BlockBackend(layer, perm=permissions.WRITE | permissions.RESIZE)
            maker.insert(file)
            Qcow2Node.create(creating, file)
            maker.remove()
            layer.delete_node("creating")
        return layer.add_node(
            {
                "driver": "qcow2", "node-name": name, "backing": backing,
                "file": {"driver": "file", "filename": str(path)}, **options,
            }
        )  # fmt: skip

    return make


@pytest.fixture
def tree(layer, qcow2, make_guest):
    """A chain top -> mid -> base with random data in each, and a guest on top."""
    rng = random.Random(3)
    for name, backing in (("base", None), ("mid", "base"), ("top", "mid")):
        writer = make_guest(qcow2(name, backing), "writer")
        writer.random_requests(rng, 20, 50000)
        writer.check()
        layer.backends.pop("writer").remove()
    return make_guest(layer.graph.find("top"), "drive")


@pytest.fixture(params=["", "elsewhere/"], ids=["same directory", "another directory"])
def relative_chain(layer, qcow2, tmp_path, monkeypatch, request):
    """A chain top -> mid -> base of nodes opened by relative paths, the top perhaps in another directory.

    What it gives checks that the top has the base under it, and tells so.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for name in ("base", "mid", "top"):
        qcow2(name)
        layer.delete_node(name)
    top = f"{request.param}top"
    (tmp_path / "top").rename(tmp_path / top)
    below = None
    for name, path in (("base", "base"), ("mid", "mid"), ("top", top)):
        file = {"driver": "file", "filename": path}
        layer.add_node({"driver": "qcow2", "node-name": name, "file": file, "backing": below})
        below = name

    def check():
        node = layer.graph.find("top")
        assert node.backing is layer.graph.find("base")
        assert node.backing_filename == (str(tmp_path / "base") if request.param else "base")
        assert node.filename == top

    return check


@pytest.fixture
def chain_names():
    """The names of the nodes from one down to the last that it is backed by."""

    def names(node):
        chain = []
        while node is not None:
            chain.append(node.node_name)
            node = node.backing
        return chain

    return names
