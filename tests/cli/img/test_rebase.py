"""rebase: what is read ahead of the writes reaches the image unharmed."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

import qobra
from qobra.block.node import BlockNode
from qobra.cli import img


def test_pieces_that_differ_among_others_that_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = random.Random(1)
    blocks = [chosen.randbytes(4096) * 128 for _ in range(16)]
    Path("old").write_bytes(b"".join(blocks))
    other = [block if number % 3 else bytes(512 << 10) for number, block in enumerate(blocks)]
    Path("new").write_bytes(b"".join(other))
    assert img.main(["create", "-q", "-f", "qcow2", "-b", "old", "-F", "raw", "a.q"], "qobra-img") == 0
    write = BlockNode.write

    def slow(self: Any, offset: int, data: Any, **options: Any) -> None:
        time.sleep(0.005)  # the reader gets as far ahead as it may
        write(self, offset, data, **options)

    monkeypatch.setattr(BlockNode, "write", slow)
    assert img.main(["rebase", "-f", "qcow2", "-b", "new", "-F", "raw", "a.q"], "qobra-img") == 0
    with qobra.open("a.q") as image:
        assert image.read() == b"".join(blocks)
    # Only what differs was written.
    assert Path("a.q").stat().st_size < 6 * (512 << 10) + (1 << 20)
