"""Old data that waits in memory for its target."""

from __future__ import annotations

import contextlib
import errno
import threading
from typing import Any

from qobra.block.copy.chunk import CopyFailed
from qobra.block.copy.held import PIECE, HeldCopies


class _Slots:
    @contextlib.contextmanager
    def entered(self) -> Any:
        yield


def _held(write: Any, failed: Any = lambda failure: None) -> tuple[HeldCopies, list[tuple[int, int]]]:
    written: list[tuple[int, int]] = []
    slots: Any = _Slots()
    return HeldCopies(slots, write, lambda *part: written.append(part), failed, 100), written


def _close(held: HeldCopies) -> tuple[threading.Thread, list[Any]]:
    lost: list[Any] = []
    thread = threading.Thread(target=lambda: lost.append(held.close()))
    thread.start()
    return thread, lost


def test_closing_waits_for_what_was_reserved() -> None:
    held, written = _held(lambda fetched: None)
    assert held.reserve(60)
    assert not held.reserve(41)
    thread, lost = _close(held)
    thread.join(0.02)
    assert thread.is_alive()
    assert not held.reserve(1)
    held.put(0, 60, [])
    thread.join(30)
    assert written == [(0, 60)]
    assert lost == [[]]


def test_closing_tells_what_could_not_be_written() -> None:
    def write(fetched: Any) -> None:
        raise CopyFailed(OSError(errno.EIO, "no"), False)

    stuck = threading.Event()
    held, written = _held(write, lambda failure: stuck.set())
    assert held.reserve(10) and held.reserve(20)
    held.put(0, 10, [])
    assert stuck.wait(30)
    assert not held.wait_written()
    thread, lost = _close(held)
    thread.join(0.02)
    assert thread.is_alive()
    held.put(10, 20, [])
    thread.join(30)
    assert written == []
    assert lost == [[(0, 10), (10, 20)]]


def test_the_memory_of_a_part_is_used_again_within_the_limit() -> None:
    slots: Any = _Slots()
    gate = threading.Event()
    held = HeldCopies(
        slots, lambda fetched: gate.wait(30) and None, lambda *part: None, lambda failure: None, 2 * PIECE
    )
    assert held.reserve(PIECE)
    first = held.memory(PIECE)
    held.put(0, PIECE, [(0, PIECE, first)])
    gate.set()
    assert held.wait_written()
    assert held.reserve(PIECE)
    assert held.memory(PIECE).obj is first.obj
    held.put(0, PIECE, [(0, PIECE, first)])
    assert held.wait_written()
    # What is kept for later makes room where small parts need it.
    assert held.reserve(PIECE + 1)
    assert held.reserve(PIECE - 1)
    held.release(2 * PIECE)
    assert held.reserve(PIECE)
    assert held.memory(PIECE).obj is not first.obj
    held.release(PIECE)
    assert held.close() == []
