"""The pool of copying threads."""

from __future__ import annotations

import os
import threading

import pytest

from qobra.block.copy.pool import NICENESS, CopyPool, be_nice


@pytest.mark.parametrize("nice", [False, True])
def test_helpers_have_the_priority_of_who_gives_them_work(nice: bool) -> None:
    seen: list[int] = []

    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def give_work() -> None:
        if nice:
            be_nice()
        pool = CopyPool(lambda _offset, _length: seen.append(priority()), lambda *_arguments: None, 3)
        for number in range(6):
            pool.submit(number, 1)
        pool.close()

    own = priority()
    thread = threading.Thread(target=give_work)
    thread.start()
    thread.join()
    assert seen == [min(own + NICENESS, 19) if nice else own] * 6
