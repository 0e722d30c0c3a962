"""What stands for parts of the standard library behaves as those do."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qobra import lean


@pytest.mark.parametrize("maker", [lean.contextmanager, contextlib.contextmanager])
def test_contextmanager(maker: Callable[..., Any]) -> None:
    seen: list[str] = []

    @maker
    def managed(kind: str) -> Iterator[int]:
        """Doc."""
        seen.append("in")
        try:
            yield 7
        except KeyError:
            if kind != "swallow":
                raise
        except IndexError:
            raise ValueError("other") from None
        finally:
            seen.append("out")

    assert managed.__name__ == "managed" and managed.__doc__ == "Doc."
    with managed("") as value:
        assert value == 7 and seen == ["in"]
    with managed("swallow"):
        raise KeyError
    error = KeyError("mine")
    with pytest.raises(KeyError) as raised, managed(""):
        raise error
    assert raised.value is error
    with pytest.raises(ValueError, match="other"), managed(""):
        raise IndexError
    with pytest.raises(StopIteration), managed(""):
        raise StopIteration
    assert seen == ["in", "out"] * 5


def test_cached_property() -> None:
    class Owner:
        calls = 0

        @lean.cached_property
        def value(self) -> int:
            """Doc."""
            self.calls += 1
            return 3

    owner = Owner()
    assert (owner.value, owner.value, owner.calls) == (3, 3, 1)
    owner.value = 4
    assert owner.value == 4
    assert Owner.value.__doc__ == "Doc."


@pytest.mark.parametrize("lock", [None, lean.Lock(), lean.RLock()])
def test_condition_wakes_who_waits(lock: Any) -> None:
    condition = lean.Condition(lock)
    items: list[int] = []
    taken: list[int] = []

    def take() -> None:
        with condition:
            while not items:
                condition.wait(10)
            taken.append(items.pop())

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(3):
        with condition:
            items.append(number)
            condition.notify() if number else condition.notify_all()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [0, 1, 2]
    with condition:
        assert not condition.wait(0.001)


def test_event() -> None:
    event = lean.Event()
    assert not event.is_set() and not event.wait(0)
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(event.wait(10))) for _ in range(2)]
    for thread in threads:
        thread.start()
    event.set()
    for thread in threads:
        thread.join()
    assert woken == [True, True] and event.is_set() and event.wait()


def test_who_waited_in_vain_is_told_nothing_later() -> None:
    condition = lean.Condition()
    with condition:
        with condition:  # the lock is let go of however deep it is held
            assert not condition.wait(0)
        told: list[bool] = []

        def wait() -> None:
            with condition:
                condition.notify()  # nobody waits any more
                told.append(condition.wait(10))

        thread = threading.Thread(target=wait)
        thread.start()
        while not told:
            condition.wait(0.001)
            condition.notify()
    thread.join()
    assert told == [True]


@pytest.mark.parametrize("deferred", [False, True])
def test_a_thread_starts_with_or_without_threading(deferred: bool) -> None:
    code = f"""
import sys
sys.path[:] = {sys.path!r}
from qobra import lean
if {deferred}:
    lean.defer_threading()
seen, event = [], lean.Event()
lean.start_thread(lambda *args: (seen.append(args), event.set()), 1, 2, name="one")
event.wait(10)
print(seen, "threading" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["[(1,", "2)]", str(not deferred)]


@pytest.mark.parametrize(
    "modules",
    [
        "qobra.cli._img.info, qobra.block.format.qcow2, qobra.block.protocol.file",
        "qobra.cli.storage_daemon, qobra.chardev.options, qobra.chardev.chardevs, qobra.chardev.backend.socket",
    ],
)
def test_a_start_goes_without_what_is_dear(modules: str) -> None:
    code = f"""
import sys
sys.path[:] = {sys.path!r}
import {modules}
print(*(name for name in ("threading", "functools", "contextlib", "types", "collections") if name in sys.modules))
"""
    found = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_arrays_are_sequences() -> None:
    code = f"""
import sys
sys.path[:] = {sys.path!r}
import qobra.arrays, array, collections.abc
print(isinstance(array.array("b"), collections.abc.MutableSequence), collections.abc is sys.modules["collections.abc"])
"""
    found = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "True True\n"
