"""Cylinders, heads and sectors that a disk without any is said to have."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qobra.block.backend import BlockBackend
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError
from qobra.machine.ata.geometry import choose, guess

LIMITS = (65535, 16, 255)


def _partition(last_head: int, last_sector: int, size: int = 1000) -> bytes:
    return bytes(5) + bytes((last_head, last_sector, 0)) + struct.pack("<II", 63, size)


def _table(*partitions: bytes, signature: bytes = b"\x55\xaa") -> bytes:
    return bytes(446) + b"".join(partitions).ljust(64, b"\0") + signature


@pytest.fixture
def guessed(tmp_path: Path) -> Any:
    """``guessed(first sector, sectors)``: the geometry of a disk like that."""

    def make(first: bytes, sectors: int) -> Any:
        path = tmp_path / "disk"
        with open(path, "wb") as file:
            file.write(first)
            file.truncate(sectors * 512)
        layer = BlockLayer()
        backend = BlockBackend(layer)
        file_node = {"driver": "file", "filename": str(path)}
        backend.insert(layer.add_node({"driver": "raw", "node-name": "n", "file": file_node}))
        found = guess(backend)
        assert not backend.accounting.operations[0]  # that was no read of the guest's
        backend.remove()
        layer.close()
        return found

    return make


@pytest.mark.parametrize(
    ("sectors", "geometry", "translation"),
    [
        (1, (2, 16, 63), "none"),
        (3 * 1008, (3, 16, 63), "none"),
        (1024 * 1008, (1024, 16, 63), "none"),
        (1025 * 1008, (1025, 16, 63), "lba"),
        (1 << 26, (16383, 16, 63), "lba"),
    ],
)
def test_the_usual_one(guessed: Any, sectors: int, geometry: Any, translation: str) -> None:
    assert guessed(b"", sectors) == (geometry, translation)


@pytest.mark.parametrize(
    ("table", "sectors", "geometry", "translation"),
    [
        # The last head and sector that a partition has are the highest there are.
        (_table(_partition(7, 32)), 256 * 100, (100, 8, 32), "none"),
        (_table(_partition(7, 0xC0 | 32)), 256 * 100, (100, 8, 32), "none"),
        (_table(_partition(0, 5), _partition(7, 32, size=0), _partition(3, 16)), 64 * 50, (50, 4, 16), "none"),
        (_table(_partition(7, 32, size=1 << 24)), 256 * 100, (100, 8, 32), "none"),
        (_table(bytes(16), bytes(16), bytes(16), _partition(3, 16)), 64, (1, 4, 16), "none"),
        (_table(_partition(7, 32), _partition(3, 16)), 256 * 100, (100, 8, 32), "none"),
        # What cannot be: no sectors to a track, no or too many cylinders, no table.
        (_table(_partition(7, 64)), 25 * 1008, (25, 16, 63), "none"),
        (_table(_partition(15, 63)), 1007, (2, 16, 63), "none"),
        (_table(_partition(1, 1)), 2 * 16384, (32, 16, 63), "none"),
        (_table(_partition(1, 1)), 2 * 16383, (16383, 2, 1), "none"),
        (_table(_partition(7, 32), signature=b"\xaa\x55"), 256 * 100, (25, 16, 63), "none"),
        # More heads than there can be: a BIOS that translates.
        (_table(_partition(254, 63)), 1008 * 8192, (8192, 16, 63), "large"),
        (_table(_partition(254, 63)), 1008 * 8193, (8193, 16, 63), "lba"),
        (_table(_partition(16, 63)), 1071 * 100, (106, 16, 63), "large"),
        (_table(_partition(15, 63)), 1008 * 2000, (2000, 16, 63), "none"),
    ],
)
def test_that_of_partitions(guessed: Any, table: bytes, sectors: int, geometry: Any, translation: str) -> None:
    assert guessed(table, sectors) == (geometry, translation)


@pytest.mark.parametrize(
    ("asked", "translation"),
    [((1, 1, 1), "none"), ((1024, 16, 63), "none"), ((1025, 16, 63), "lba"), ((100, 16, 64), "lba")],
)
def test_the_users_own(asked: tuple[int, int, int], translation: str) -> None:
    device = SimpleNamespace(**dict(zip(("cyls", "heads", "secs"), asked, strict=True)))
    assert choose(device, LIMITS) == (asked, translation)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ((0, 1, 1), "cyls must be between 1 and 65535"),
        ((65536, 1, 1), "cyls must be between 1 and 65535"),
        ((1, 17, 1), "heads must be between 1 and 16"),
        ((1, 1, 0), "secs must be between 1 and 255"),
        ((1, 1, 256), "secs must be between 1 and 255"),
    ],
)
def test_what_no_disk_has(asked: tuple[int, int, int], text: str) -> None:
    device = SimpleNamespace(**dict(zip(("cyls", "heads", "secs"), asked, strict=True)))
    with pytest.raises(QobraError) as caught:
        choose(device, LIMITS)
    assert str(caught.value) == text
