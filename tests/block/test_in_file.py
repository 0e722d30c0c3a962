"""Data in a file in the place of a buffer."""

from __future__ import annotations

import os

import pytest

from qobra.block.in_file import InFile


@pytest.fixture
def files(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(256)) * 16)
    target.write_bytes(b"x" * 8192)
    fds = os.open(source, os.O_RDONLY), os.open(target, os.O_RDWR)
    yield *fds, target
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("kernel", [True, False])
def test_a_slice_is_copied(files, monkeypatch, kernel):
    source, target, path = files
    if not kernel:

        def refuse(*_args):
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    data = InFile(source, 256, 1024)
    assert len(data[10:20]) == 10
    data[10:20].copy_to(target, 100)
    assert path.read_bytes()[99:111] == b"x" + bytes(range(10, 20)) + b"x"


def test_past_the_end_are_zeroes(files):
    source, target, path = files
    InFile(source, 4000, 1000).copy_to(target, 0)
    assert path.read_bytes()[:1001] == (bytes(range(256)) * 16)[4000:] + bytes(904) + b"x"
