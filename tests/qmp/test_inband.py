"""The queue of in-band commands of a session that negotiated out-of-band ones."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest

from qobra.qmp.inband import LENGTH, InBandQueue


class _Session:
    """Notes what it serves, once it may."""

    def __init__(self, delay: float = 0) -> None:
        self.served: list[Any] = []
        self.fds: list[list[int]] = []
        self.may_serve = threading.Event()
        self._delay = delay

    def delay(self, alone: bool) -> float:
        return self._delay

    def fds_arrived(self, fds: list[int]) -> None:
        self.fds.append(fds)

    def serve(self, request: Any, client: Any) -> None:
        self.served.append(request)
        assert self.may_serve.wait(20)


def _pipe() -> list[int]:
    ours, theirs = os.pipe()
    os.close(theirs)
    return [ours]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "qmp in-band"]


@pytest.fixture
def make() -> Any:
    queues: list[tuple[InBandQueue, _Session]] = []
    before = _threads()

    def queue(delay: float = 0) -> tuple[InBandQueue, _Session]:
        session: Any = _Session(delay)
        queues.append((InBandQueue(session, None), session))
        return queues[-1]

    yield queue
    for made, session in queues:
        session.may_serve.set()
        made.close()
    _until(lambda: _threads() == before)


def test_requests_are_served_in_their_order(make: Any) -> None:
    queue, session = make()
    session.may_serve.set()
    fds = _pipe()
    queue.put("a", fds)
    for request in "bcd":
        queue.put(request, [])
    _until(lambda: session.served == ["a", "b", "c", "d"])
    assert session.fds == [fds]
    os.close(fds[0])


def test_a_full_queue_holds_who_fills_it(make: Any) -> None:
    queue, session = make()
    requests = list(range(LENGTH + 2))
    thread = threading.Thread(target=lambda: [queue.put(request, []) for request in requests])
    thread.start()
    thread.join(0.02)
    assert thread.is_alive() and session.served == [0]
    session.may_serve.set()
    thread.join(20)
    _until(lambda: session.served == requests)


def test_who_is_held_back_is_served_once_the_queue_is_full(make: Any) -> None:
    queue, session = make(delay=1000)
    session.may_serve.set()
    for request in range(LENGTH - 1):
        queue.put(request, [])
    time.sleep(0.01)
    assert not session.served
    queue.put("last", [])
    _until(lambda: session.served)


def test_who_is_held_back_is_let_go_at_the_end(make: Any) -> None:
    queue, session = make(delay=1000)
    queue.put("never", [])
    time.sleep(0.005)
    queue.close()
    _until(lambda: not queue._waiting)
    assert not session.served


def test_the_end_drops_what_waits_and_its_descriptors(make: Any) -> None:
    queue, session = make()
    queue.put("runs", [])
    _until(lambda: session.served == ["runs"])
    waits, late = _pipe(), _pipe()
    queue.put("waits", waits)
    assert _is_open(waits[0])
    queue.close()
    queue.put("late", late)
    assert not _is_open(waits[0]) and not _is_open(late[0])
    session.may_serve.set()
    time.sleep(0.005)
    assert session.served == ["runs"]


def test_the_end_lets_go_who_waits_for_room(make: Any) -> None:
    queue, session = make()
    queue.put("runs", [])
    _until(lambda: session.served == ["runs"])
    for request in range(LENGTH):
        queue.put(request, [])
    fds = _pipe()
    thread = threading.Thread(target=queue.put, args=("more", fds))
    thread.start()
    thread.join(0.02)
    assert thread.is_alive()
    queue.close()
    thread.join(20)
    assert not thread.is_alive() and not _is_open(fds[0])
