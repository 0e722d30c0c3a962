"""Whoever moves data, and whenever they get to it, all of it is where it belongs when the call returns."""

from __future__ import annotations

import os
import random
import threading
from typing import Any

import pytest

from qobra.block.copy.carrier import ZEROES, Carrier, Mover, Part, PureMover
from qobra.block.copy.old_blocks import OldBlocks

SIZE = 4 << 20
LOADS = 12


@pytest.mark.parametrize("seed", range(8))
def test_loads_of_several_threads_get_where_they_belong(tmp_path: Any, seed: int) -> None:
    rng = random.Random(seed)
    content = rng.randbytes(SIZE)
    (tmp_path / "source").write_bytes(content)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    carrier = Carrier()
    carrier.share = rng.choice([1, 2, 12, 1000])
    expected: dict[int, bytes] = {}
    loads: list[tuple[int, list[Part]]] = []
    for number in range(LOADS):
        parts: list[Part] = []
        data = b""
        for _ in range(rng.randrange(1, 20)):
            length = rng.choice([1, 511, 4096, 65536, 100_000])
            offset = rng.randrange(SIZE + 1000)
            if rng.random() < 0.2:
                parts.append((ZEROES, 0, length))
                data += bytes(length)
            else:
                parts.append((source, offset, length))
                data += content[offset : offset + length].ljust(length, b"\0")
        host = number * SIZE + rng.randrange(5000)
        loads.append((host, parts))
        expected[host] = data

    def run(some: list[tuple[int, list[Part]]]) -> None:
        for host, parts in some:
            carrier.move(parts, target, host)

    threads = [threading.Thread(target=run, args=(loads[first::3],)) for first in range(3)]
    for thread in threads:
        thread.start()
    if rng.random() < 0.3:
        carrier.close()  # what is under way is ended by whoever asked for it
    for thread in threads:
        thread.join()
    for host, data in expected.items():
        assert os.pread(target, len(data), host) == data
    carrier.close()
    os.close(source)
    os.close(target)


@pytest.mark.parametrize("share", [1, 12])
def test_a_load_that_fails_ends(tmp_path: Any, share: int) -> None:
    (tmp_path / "source").write_bytes(bytes(SIZE))
    source = os.open(tmp_path / "source", os.O_RDONLY)
    carrier = Carrier()
    carrier.share = share
    for _ in range(20):
        with pytest.raises(OSError, match="Bad file descriptor"):
            carrier.move([(source, 0, SIZE)], source, 0)
    carrier.close()
    os.close(source)


@pytest.mark.skipif(Mover is PureMover, reason="there is no compiled form")
@pytest.mark.parametrize(
    "arguments",
    [([], 1, 0), ([(0, 0, 0)], 1, 0), ([(0, -1, 5)], 1, 0), ([(0, 0, 1 << 50)], 1, 0), ([(0, 0, 1)], 1, -1)],
)
def test_loads_that_cannot_be_are_refused(arguments: Any) -> None:
    with pytest.raises(ValueError, match="that cannot be"):
        Mover().move(*arguments)


def test_memory_that_idle_threads_make_ready_keeps_what_is_put_there(tmp_path: Any) -> None:
    """They run ahead of whoever keeps old data, and may be overtaken."""
    size, block = 16 << 20, 4096
    data = random.Random(3).randbytes(size)
    (tmp_path / "source").write_bytes(data)
    source, target = os.open(tmp_path / "source", os.O_RDONLY), os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    old = OldBlocks(size, 16, size, [(0, size)])
    carrier = Carrier()
    carrier.share = 1000
    try:
        for offset in range(0, size, 1 << 20):
            for start in range(size - (1 << 20) - offset, size - offset, block):
                assert old.keep(start, start.to_bytes(8, "little") * (block // 8))
            carrier.move([(source, offset, 1 << 20)], target, offset, old, offset)
    finally:
        carrier.close()
        os.close(source)
        os.close(target)
    for start in range(0, size, block):
        kept = memoryview(bytearray(block))
        old.mend(start, kept, False)
        assert bytes(kept) == start.to_bytes(8, "little") * (block // 8)


def test_threads_begin_once_and_not_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    monkeypatch.setattr("qobra.block.copy.carrier.start_thread", lambda work, **_options: begun.append(work))
    carrier = Carrier()
    carrier._begin()
    number = len(begun)
    carrier._begin()
    assert 0 < number == len(begun)
    closed = Carrier()
    closed.close()
    closed._begin()
    assert number == len(begun)
