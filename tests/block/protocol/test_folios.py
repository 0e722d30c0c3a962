"""What makes small writes slow is taken apart where that helps, seldom where it does not, and changes no byte."""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from qobra.block.protocol import _folios
from qobra.block.protocol._folios import (
    FIRST,
    MOST_WANTED,
    REGION,
    REGIONS,
    SLOW_NS,
    SMALL,
    Folios,
    PureFolios,
    pure_split,
    split,
)

FORMS = [PureFolios, Folios] if Folios is not PureFolios else [PureFolios]
SPLITS = [pure_split, split] if split is not pure_split else [pure_split]
FAST, SLOW = 3_000, 40_000


class Cache:
    """A page cache in simulated time: a write to a large folio takes ``SLOW``, to single pages ``FAST`` nanoseconds."""

    def __init__(self, form: Any, *, helps: bool = True, slow: bool = True) -> None:
        self.folios = form(-1)
        self.helps, self.slow = helps, slow
        self.apart: set[int] = set()
        self.splits: list[int] = []
        """The regions that were to be split, one after another."""
        self.spent = 0

    def write(self, offset: int) -> None:
        took = SLOW if self.slow and offset // REGION not in self.apart else FAST
        self.spent += took
        self.folios.note(offset, took)
        while (wanted := self.folios.take()) is not None:
            self.splits.append(wanted // REGION)
            if self.helps:
                self.apart.add(wanted // REGION)
            self.folios.settle(wanted)


@pytest.mark.parametrize("form", FORMS)
def test_a_region_is_split_once_some_of_its_writes_were_slow(form: Any) -> None:
    cache = Cache(form)
    for number in range(FIRST):
        assert cache.splits == []
        cache.write(5 * REGION + number * 4096)
    assert cache.splits == [5]
    for number in range(1000):
        cache.write(5 * REGION + number % 512 * 4096)
    assert cache.splits == [5]


@pytest.mark.parametrize("form", FORMS)
def test_random_writes_are_fast_after_a_few_for_each_region(form: Any) -> None:
    cache, rng, regions = Cache(form), random.Random(1), 128
    for _ in range(20_000):
        cache.write(rng.randrange(regions * REGION))
    assert sorted(cache.splits) == list(range(regions))
    assert cache.spent == regions * FIRST * SLOW + (20_000 - regions * FIRST) * FAST


@pytest.mark.parametrize("form", FORMS)
def test_one_write_for_each_region_splits_nothing(form: Any) -> None:
    cache = Cache(form)
    for _ in range(FIRST - 1):
        for region in range(10_000):
            cache.write(region * REGION)
    assert cache.splits == []


@pytest.mark.parametrize("form", FORMS)
def test_more_regions_than_are_known_split_nothing(form: Any) -> None:
    cache = Cache(form)
    for number in range(4 * FIRST):
        for region in range(64):
            cache.write((region + number % 2 * REGIONS) * REGION)
    assert cache.splits == []


@pytest.mark.parametrize("form", FORMS)
def test_where_nothing_is_slow_nothing_happens(form: Any) -> None:
    cache = Cache(form, slow=False)
    for number in range(20_000):
        cache.slow = number % 3 == 0  # something else holds some writes up
        cache.write(number % 16 * REGION)
    assert cache.splits == []


@pytest.mark.parametrize("form", FORMS)
def test_where_it_does_not_help_it_is_tried_rarer_and_rarer(form: Any) -> None:
    cache = Cache(form, helps=False)
    for number in range(4096):
        cache.write(number % (REGION // 4096) * 4096)
    gaps = len(cache.splits)
    assert 8 <= gaps <= 14
    for region in range(2000):  # and elsewhere in the file, too
        for number in range(100):
            cache.write((region + 1) * REGION + number * 4096)
    assert len(cache.splits) < 300
    assert not any(region > 1000 for region in cache.splits)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_tried_again_where_it_begins_to_help(form: Any) -> None:
    cache = Cache(form, helps=False)
    for region in range(100):
        for number in range(400):
            cache.write(region * REGION + number * 4096)
    cache.helps = True
    before = len(cache.splits)
    for region in range(100, 150):
        for number in range(4096):
            cache.write(region * REGION + number % 512 * 4096)
    assert len(cache.splits) >= before + 50
    cache.spent = 0
    for number in range(100):
        cache.write(2200 * REGION + number * 4096)
    assert cache.spent < 100 * SLOW // 2


@pytest.mark.parametrize("form", FORMS)
def test_no_more_wait_than_there_is_room_for(form: Any) -> None:
    folios = form(-1)
    for region in range(2 * MOST_WANTED):
        wanted = [folios.note(region * REGION, SLOW_NS) for _ in range(FIRST)]
        assert wanted == [False] * (FIRST - 1) + [region < MOST_WANTED]
    taken = []
    while (offset := folios.take()) is not None:
        taken.append(offset // REGION)
    assert taken == list(range(MOST_WANTED))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("offset", [-1, -REGION, (1 << 63) - 1])
def test_places_that_cannot_be_do_no_harm(form: Any, offset: int) -> None:
    folios = form(-1)
    for _ in range(2 * FIRST):
        folios.note(offset, SLOW)
    folios.settle(offset)
    with pytest.raises(OSError):
        folios.write(b"x", offset)
    folios.close()


@pytest.mark.parametrize("form", FORMS)
def test_splitting_under_concurrent_writes_changes_no_byte(form: Any, tmp_path: Path) -> None:
    regions, size = 4, 4 * REGION
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    expected = bytearray(random.Random(3).randbytes(size))
    os.pwrite(fd, expected, 0)
    folios = form(fd)
    over = threading.Event()

    def write(part: int) -> None:
        rng = random.Random(part)
        begin, end = part * size // 2, (part + 1) * size // 2
        for _ in range(600):
            length = rng.choice([1, 512, 4096, 65535])
            offset = rng.randrange(begin, end - length)
            data = rng.randbytes(length)
            expected[offset : offset + length] = data
            assert folios.write(data, offset) == length

    def take_apart() -> None:
        again = os.open(tmp_path / "file", os.O_RDONLY)
        while not over.is_set():
            for region in range(regions):
                assert SPLITS[-1](again, region * REGION + 12345)
        os.close(again)

    threads = [threading.Thread(target=write, args=(part,)) for part in range(2)]
    splitter = threading.Thread(target=take_apart)
    splitter.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    splitter.join()
    folios.close()
    assert os.pread(fd, size, 0) == expected
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, size, 0) == expected
    os.close(fd)


@pytest.mark.parametrize("cut", SPLITS)
def test_what_is_not_there_is_not_split(cut: Any, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"x" * 10_000, 0)
    assert cut(fd, 9_999)
    assert not cut(fd, 3 * 4096)  # the file was made shorter: an error, no signal
    assert not cut(fd, 5 * REGION)
    os.close(fd)
    assert not cut(fd, 0)
    reading, writing = os.pipe()
    assert not cut(reading, 0)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("form", FORMS)
def test_long_writes_are_left_alone(form: Any, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    folios = form(fd)
    for _ in range(2 * FIRST):
        assert folios.write(bytes(SMALL), 0) == SMALL
    assert folios.take() is None
    folios.close()
    os.close(fd)
    with pytest.raises(OSError):
        folios.write(b"x", 0)


def median_write(fd: int, size: int, folios: Any = None) -> float:
    """Microseconds that writing 4 KiB somewhere takes."""
    rng, data, took = random.Random(4), bytes(4096), []
    for _ in range(300):
        offset = rng.randrange(size // 4096) * 4096
        begin = time.perf_counter()
        os.pwrite(fd, data, offset)
        took.append(time.perf_counter() - begin)
    return statistics.median(took) * 1e6


def large_folios(path: Path, size: int) -> int:
    """A file that is in memory in large folios; skips where writes to such cost no more than others."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    other = os.open(path.with_suffix(".small"), os.O_RDWR | os.O_CREAT)
    for offset in range(0, size, 8192):
        os.pwrite(other, bytes(8192), offset)
    for offset in range(0, size, 4 * REGION):
        os.pwrite(fd, bytes(4 * REGION), offset)
    os.fsync(fd)
    large, small = median_write(fd, size), median_write(other, size)
    os.close(other)
    if large < 2.5 * small or large < 1.2 * SLOW_NS / 1000:
        os.close(fd)
        pytest.skip(f"4 KiB take {large:.1f} us in large folios and {small:.1f} us in small ones")
    return fd


@pytest.mark.parametrize("cut", SPLITS)
def test_a_region_that_was_split_is_fast(cut: Any, tmp_path: Path) -> None:
    size = 8 * REGION
    fd = large_folios(tmp_path / "file", size)
    before = median_write(fd, size)
    for region in range(size // REGION):
        assert cut(fd, region * REGION + 100_000)
    assert median_write(fd, size) < before / 1.5
    os.close(fd)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_becomes_fast_by_writing_to_it(form: Any, tmp_path: Path) -> None:
    size = 8 * REGION
    fd = large_folios(tmp_path / "file", size)
    folios = form(fd)
    before = median_write(fd, size)
    rng, deadline = random.Random(5), time.monotonic() + 20
    while median_write(fd, size) > before / 1.5:
        assert time.monotonic() < deadline
        for _ in range(200):
            folios.write(bytes(4096), rng.randrange(size // 4096) * 4096)
            time.sleep(0.0001)  # the disk has to come to it
    folios.close()
    os.close(fd)


@pytest.mark.parametrize("form", FORMS)
def test_the_file_may_be_closed_once_the_thread_is_told(
    form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(4 * REGION), 0)
    monkeypatch.setattr(_folios, "_IDLE_SECONDS", 60)
    folios = form(fd)
    for _ in range(FIRST):
        if folios.note(0, SLOW):
            folios.write(b"x", 0)
    for number in range(4000):
        folios.write(b"x", number * 1000)
    folios.close()
    os.close(fd)
    assert not [name for name in os.listdir("/proc/self/fd") if _target(name) == str(path)]


@pytest.mark.parametrize("form", FORMS)
def test_a_flush_is_told_of_errors_that_the_thread_has_met(form: Any, tmp_path: Path) -> None:
    """The kernel tells an error of the disk once for each open file, so the thread has to have one of its own.

    Two descriptors of one open file would have one position.
    """
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.lseek(fd, 12_345, os.SEEK_SET)
    folios = form(fd)
    positions: list[int | None] = []
    for region in range(2000):
        for _ in range(FIRST - 1):
            folios.note(region * REGION, SLOW)
        folios.write(b"x", region * REGION)  # the first write to a region is often a slow one
        positions = [_position(name) for name in os.listdir("/proc/self/fd") if _target(name) == str(path)]
        positions = [position for position in positions if position is not None]
        if len(positions) > 1:
            break
    folios.close()
    os.close(fd)
    if len(positions) < 2:
        pytest.skip("no write was slow")
    assert set(positions) == {0, 12_345}


def _position(name: str) -> int | None:
    try:
        with open(f"/proc/self/fdinfo/{name}") as lines:
            return int(lines.readline().removeprefix("pos:"))
    except OSError:
        return None  # the thread has ended meanwhile


def _target(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""
