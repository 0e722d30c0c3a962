"""Where a file has data: looked for once, and known until holes are made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qobra.block.backend import BlockBackend
from qobra.block.extents import DATA, ZERO
from qobra.block.layer import BlockLayer
from qobra.block.permissions import CONSISTENT_READ, RESIZE, WRITE
from qobra.errors import QobraError

MIB = 1 << 20


@pytest.fixture
def node(tmp_path: Path) -> Any:
    path = tmp_path / "file"
    path.write_bytes(b"x" * MIB)
    layer = BlockLayer()
    node = layer.add_node(
        {"driver": "file", "node-name": "f", "filename": str(path), "discard": "unmap", "auto-read-only": False}
    )
    root = BlockBackend(layer, perm=CONSISTENT_READ | WRITE | RESIZE)
    root.insert(node)
    yield node
    with layer.control:
        layer.close()


def kinds(node: Any, offset: int, length: int) -> list[tuple[int, int]]:
    return [(extent.kind, extent.length) for extent in node.map(offset, length)]


def test_the_end_of_data_is_looked_for_once(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    lseek = os.lseek
    monkeypatch.setattr(os, "lseek", lambda *args: (looks.append(args), lseek(*args))[1])
    for offset in range(0, MIB, 65536):
        assert kinds(node, offset, 65536) == [(DATA, 65536)]
    assert len(looks) <= 2


@pytest.mark.parametrize("how", ["discard", "write_zeroes"])
def test_holes_that_are_made_are_seen(node: Any, how: str) -> None:
    assert kinds(node, 0, MIB) == [(DATA, MIB)]
    if how == "discard":
        node.discard(65536, 65536)
    else:
        node.write_zeroes(65536, 65536, may_unmap=True)
    assert kinds(node, 0, MIB) == [(DATA, 65536), (ZERO, 65536), (DATA, MIB - 131072)]
    node.write(65536, b"x" * 65536)
    assert kinds(node, 0, MIB) == [(DATA, MIB)]


def test_a_file_that_was_cut_and_grew_ends_with_a_hole(node: Any) -> None:
    assert kinds(node, 0, MIB) == [(DATA, MIB)]
    node.truncate(65536)
    node.truncate(MIB)
    assert kinds(node, 0, MIB) == [(DATA, 65536), (ZERO, MIB - 65536)]


def test_a_file_that_bypasses_the_cache_grows_from_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    layer = BlockLayer()
    options = {"driver": "file", "node-name": "e", "filename": str(path), "cache": {"direct": True}}
    try:
        node = layer.add_node(options)
    except QobraError:
        pytest.skip("the file system has no direct I/O")
    layer.resize(node, 8192)
    assert path.read_bytes() == bytes(8192) and node.length == 8192
    layer.close()


def test_blocks_that_are_zeroed_in_part_are_written_where_requests_are_aligned(tmp_path: Path) -> None:
    """As QEMU has it: with cache=none a write of one zero byte takes a block, with any cache it leaves a hole."""
    path = tmp_path / "sparse"
    with open(path, "wb") as stream:
        stream.truncate(MIB)
    layer = BlockLayer()
    options = {"driver": "file", "node-name": "s", "filename": str(path), "cache": {"direct": True}}
    try:
        node = layer.add_node(options)
    except QobraError:
        pytest.skip("the file system has no direct I/O")
    root = BlockBackend(layer, perm=CONSISTENT_READ | WRITE)
    root.insert(node)
    node.write_zeroes(66048, 1, may_unmap=True)
    node.write_zeroes(131072 - 512, 8192, may_unmap=True)
    assert kinds(node, 61440, 12288) == [(ZERO, 4096), (DATA, 4096), (ZERO, 4096)]
    assert kinds(node, 126976, 16384) == [(DATA, 4096), (ZERO, 4096), (DATA, 4096), (ZERO, 4096)]
    assert path.read_bytes() == bytes(MIB)
    layer.close()
