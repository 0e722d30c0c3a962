"""Reads and writes past the page cache where the file system gives less than it was asked for."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qobra.block.protocol import _direct
from qobra.block.protocol._direct import ALIGNMENT, DirectFile

CONTENT = bytes(range(1, 251)) * 300
"""75,000 bytes: 18 blocks and a part of one."""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DirectFile]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    fd = os.open(path, os.O_RDWR)
    preadv = os.preadv

    def one_block(fd: int, views: tuple[memoryview], offset: int) -> int:
        return preadv(fd, (views[0][:ALIGNMENT],), offset)

    monkeypatch.setattr(_direct.os, "preadv", one_block)
    yield DirectFile(fd)
    os.close(fd)


def read(file: DirectFile, offset: int, length: int) -> bytes:
    data = bytearray(length)
    file.read(offset, memoryview(data))
    return bytes(data)


@pytest.mark.parametrize(("offset", "length"), [(0, 65536), (100, 50000), (70000, 20000), (74752, 512), (80000, 100)])
def test_a_read_that_ends_early_is_not_the_end_of_the_file(file: DirectFile, offset: int, length: int) -> None:
    assert read(file, offset, length) == CONTENT[offset : offset + length].ljust(length, b"\0")


def test_what_a_write_leaves_of_its_blocks_stays(file: DirectFile) -> None:
    file.write(100, b"x" * 20000, len(CONTENT))
    assert read(file, 0, len(CONTENT)) == CONTENT[:100] + b"x" * 20000 + CONTENT[20100:]


def test_less_than_a_block_that_is_not_the_end_is_an_error(file: DirectFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_direct.os, "preadv", lambda _fd, _views, _offset: 512)
    with pytest.raises(OSError) as raised:
        read(file, 0, 65536)
    assert raised.value.errno == errno.EIO
