"""A copy's view of what lies where: holes of files count in whole units, and nothing is called zero that is not."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from qobra.block.copy.chunk import ChunkCopier
from qobra.block.copy.coarse import UNIT, resolve_coarse
from qobra.block.extents import ABSENT, DATA, ZERO
from qobra.testing.images import ImageLab

SIZE = 40 * UNIT


def scattered(path: Any, rng: random.Random) -> bytes:
    """A sparse file, and its content."""
    content = bytearray(SIZE)
    with open(path, "wb") as file:
        for _ in range(rng.randrange(12)):
            start, length = rng.randrange(SIZE), rng.choice([1, 4096, 5000, UNIT, 3 * UNIT])
            start -= start % rng.choice([1, 4096, UNIT])
            data = rng.randbytes(min(length, SIZE - start))
            content[start : start + len(data)] = data
            os.pwrite(file.fileno(), data, start)
        file.truncate(SIZE)
    return bytes(content)


@pytest.mark.parametrize("seed", range(20))
def test_runs_follow_one_another_and_zeroes_are_zeroes(tmp_path: Any, seed: int) -> None:
    rng = random.Random(seed)
    content = scattered(tmp_path / "source", rng)
    lab = ImageLab(tmp_path)
    with lab.open("source", "raw") as disk:
        start = rng.randrange(SIZE)
        end = rng.randrange(start, SIZE) + 1
        position = start
        for run in resolve_coarse(disk.node, start, end - start):
            assert run.start == position
            position += run.length
            if run.kind in (ZERO, ABSENT):
                assert not any(content[run.start : position])
                assert run.start % UNIT == 0 or run.start == start
                assert position % UNIT == 0 or position == end
        assert position == end


def test_a_cluster_that_is_mostly_a_hole_is_one_run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "source", "wb") as file:
        for offset in range(2 * UNIT, 3 * UNIT, 16384):
            os.pwrite(file.fileno(), b"x" * 4096, offset)
        file.truncate(SIZE)
    lab = ImageLab(tmp_path)
    lseek, looks = os.lseek, []

    def counting(fd: int, offset: int, whence: int) -> int:
        looks.append(offset)
        return lseek(fd, offset, whence)

    with lab.open("source", "raw") as disk:
        monkeypatch.setattr(os, "lseek", counting)
        runs = resolve_coarse(disk.node, 0, SIZE)
        monkeypatch.undo()
        assert len(looks) <= 4  # not one for each of its four holes
        assert [(run.start // UNIT, run.length // UNIT, run.kind == ZERO) for run in runs] == [
            (0, 2, True),
            (2, 1, False),
            (3, 37, True),
        ]


@pytest.mark.parametrize("seed", range(12))
def test_what_is_copied_is_the_same(tmp_path: Any, seed: int) -> None:
    rng = random.Random(seed)
    content = scattered(tmp_path / "source", rng)
    lab = ImageLab(tmp_path)
    lab.create("target", driver := rng.choice(["raw", "qcow2"]), size=SIZE)
    with lab.open("source", "raw") as source, lab.open("target", driver) as target:
        stale = rng.randbytes(SIZE)
        target.write(0, stale)
        copier = ChunkCopier(source.node, target.node)
        position = 0
        while position < SIZE:
            length = min(SIZE - position, rng.choice([512, 4096, UNIT, 7 * UNIT, 5000]))
            copier.copy(position, length)
            position += length
        assert target.content() == content


def test_a_cluster_that_the_file_ends_in_is_zero_behind_its_end(tmp_path: Any) -> None:
    lab = ImageLab(tmp_path)
    lab.create("source", "qcow2", size=SIZE)
    with lab.open("source", "qcow2") as disk:
        disk.write(0, b"x" * 4096)
        [first, behind, rest] = resolve_coarse(disk.node, 0, SIZE)
        assert (first.length, behind.length, rest.length) == (4096, UNIT - 4096, SIZE - UNIT)
        assert (first.kind, behind.kind) == (DATA, ZERO) and rest.kind in (ZERO, ABSENT)
