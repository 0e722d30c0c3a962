"""The disk writes while a copy goes on: what goes wrong then is told by the flush at the end."""

from __future__ import annotations

import errno
import os
import time

import pytest

from qobra.block.copy.writeback import STEP, Writeback
from qobra.testing.images import ImageLab


@pytest.fixture
def failures(monkeypatch):
    """The error numbers of the next syncs, which tell each once, as the kernel does."""
    left = [errno.EIO]

    def sync(_fd):
        if left:
            raise OSError(left.pop(), "")

    monkeypatch.setattr(os, "fdatasync", sync)
    return left


def test_a_sync_that_failed_meanwhile_is_told_by_the_flush(tmp_path, failures):
    lab = ImageLab(tmp_path)
    lab.create("a", "raw", size=1 << 20)
    disk = lab.open("a", driver="raw")
    disk.write(0, b"x" * 512)
    writeback = Writeback(disk.node)
    writeback.note(STEP)
    while failures:
        time.sleep(0.001)
    writeback.close()
    for _ in range(2):
        with pytest.raises(OSError) as raised:
            disk.node.flush()
        assert raised.value.errno == errno.EIO
    with pytest.raises(OSError):
        disk.close()


def test_past_the_page_cache_nothing_is_forgotten(tmp_path, failures):
    lab = ImageLab(tmp_path)
    lab.create("a", "raw", size=1 << 20)
    with lab.open("a", driver="raw") as disk:
        disk.write(0, b"x" * 512)
        disk.node.file.cache_direct = True
        with pytest.raises(OSError):
            disk.node.flush()
        disk.node.flush()
