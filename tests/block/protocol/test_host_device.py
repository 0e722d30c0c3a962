"""host_device on a loop device, where the host gives one."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError


@pytest.fixture
def layer():
    made = BlockLayer()
    yield made
    made.close()


@pytest.fixture
def loop(tmp_path):
    if shutil.which("losetup") is None:
        pytest.skip("needs losetup")
    image = tmp_path / "image"
    image.write_bytes(b"x" * (1 << 20))
    made = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=False)


def test_a_device_reads_writes_and_zeroes(layer, loop):
    node = layer.add_node({"driver": "host_device", "node-name": "d", "filename": loop, "discard": "unmap"})
    backend = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    backend.insert(node)
    assert node.length == 1 << 20
    backend.write(4096, b"hello")
    backend.write_zeroes(8192, 4096)
    backend.discard(65536, 65536)
    assert backend.read(4090, 12) == b"x" * 6 + b"hello" + b"x"
    assert backend.read(8192, 4096) == bytes(4096)
    backend.remove()
    with pytest.raises(QobraError, match="Cannot resize device files"):
        layer.resize(node, 1 << 19)


def test_kinds_of_files_are_told_apart(layer, tmp_path):
    (tmp_path / "image").write_bytes(b"x")
    with pytest.raises(QobraError, match="'host_device' driver requires '.*' to be either a character or block device"):
        layer.add_node({"driver": "host_device", "node-name": "d", "filename": str(tmp_path / "image")})
    with pytest.raises(QobraError, match="'file' driver requires '/dev/null' to be a regular file"):
        layer.add_node({"driver": "file", "node-name": "d", "filename": "/dev/null"})
