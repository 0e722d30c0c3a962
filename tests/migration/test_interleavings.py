"""What one thread does just when another does something else: nobody waits in vain, and nothing is lost."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.memory import Ram
from qobra.migration import page_in
from qobra.migration.arrivals import Arrivals
from qobra.migration.channel import Channel, GivenUp
from qobra.migration.page_in import PageIn
from qobra.migration.page_out import HELLO, TOKEN_SIZE
from qobra.migration.ram import RUN, RamBlock
from qobra.migration.return_path import ALL_LACKING, LACKING, WANTED, Answers
from qobra.migration.stream import PAGES, SYNC, ZEROES, StreamWriter
from qobra.migration.ways import Listener

DEADLINE_S = 60
PAGE = 4096


class ClearedJustNow(list[Any]):
    """A list that had something in it when it was looked at."""

    def __bool__(self) -> bool:
        return True


def test_memory_is_touched_as_the_last_of_it_comes() -> None:
    ram = Ram("m", PAGE)
    ram.awaited = ClearedJustNow()
    ram.store(0, 4, 7)
    assert ram.load(0, 4) == 7 and bytes(ram.piece(0, 1)) == b"\7"


def test_a_page_comes_between_two_looks_at_it() -> None:
    ram = Ram("m", 4 * PAGE)
    arrivals = Arrivals([RamBlock("m", ram, shared=False, late=True)], lambda *_run: None)
    arrivals.expect(0, 0, 4)
    missing = arrivals._missing
    looks = 0

    def look(block: int, first: int, count: int) -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            arrivals.place(ZEROES, RUN.pack(0, 0, 4))
            return True
        return type(missing).any(missing, block, first, count)

    missing.any = look  # type: ignore[method-assign]
    arrivals.watch()
    assert bytes(ram.piece(0, 4)) == bytes(4) and looks > 2


def test_what_is_missing_is_told_before_anybody_asks() -> None:
    told: list[bytes] = []

    class Other:
        def read(self, length: int) -> bytes:
            raise NotImplementedError

        def write(self, data: bytes) -> None:
            if not told:
                asking.start()  # and waits for its turn
            told.append(bytes(data))

    answers = Answers(Other())
    answers.detach()
    asking = threading.Thread(target=answers.want, args=(0, 5, 1))
    answers.attach(Other(), [(0, 4, 2)])
    asking.join(DEADLINE_S)
    lacking = bytes((LACKING,)) + RUN.pack(0, 4, 2) + bytes((ALL_LACKING,))
    assert told == [lacking, bytes((WANTED,)) + RUN.pack(0, 5, 1)]


def test_who_is_closed_does_not_begin_to_wait(sides: Any) -> None:
    both = sides("postcopy-ram")
    both.call(both.destination, "migrate-incoming", uri=both.way())
    incoming = both.destination.migration._incoming
    incoming.close()
    ended: list[BaseException] = []

    def reopen() -> None:
        try:
            incoming.reopen()
        except GivenUp as error:
            ended.append(error)

    waiting = threading.Thread(target=reopen, daemon=True)
    waiting.start()
    waiting.join(DEADLINE_S)
    assert ended


def test_a_way_that_is_closed_lets_everybody_go(tmp_path: Any) -> None:
    listener = Listener(f"unix:{tmp_path}/way", lambda _name: -1)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            listener.open()
        except GivenUp as error:
            ended.append(error)

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
    for thread in threads[:2]:
        thread.start()
    listener.close()
    threads[2].start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(ended) == 3


class Several:
    """Pages that come over two channels; ``failed`` says whether the stream was hung up for them."""

    def __init__(self, *strangers: bytes) -> None:
        self.ram = Ram("m", 4 * PAGE)
        self.failed = threading.Event()
        self.pages = PageIn(lambda: [RamBlock("m", self.ram, shared=False, late=False)], 1)
        token = bytes(range(TOKEN_SIZE))
        greetings = [*strangers, HELLO + token + b"\0", HELLO + token + b"\1"]
        self._ends = []
        ours = []
        for greeting in greetings:
            near, far = socket.socketpair()
            far.sendall(greeting)
            self._ends.append(far)
            ours.append(Channel(near.detach()))
        self.pages.share(token + b"\2", iter(ours).__next__, self.failed.set)
        self.writers = [StreamWriter(Sink(far)) for far in self._ends[len(strangers) :]]

    def end(self, number: int) -> None:
        """The source closes a channel."""
        self._ends[number - 2].close()

    def close(self) -> None:
        self.pages.close()
        for each in self._ends:
            each.close()


class Sink:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._sock.sendall(data)


def test_channels_that_have_brought_all_may_end_before_the_stream() -> None:
    several = Several()
    several.writers[0].record(PAGES, RUN.pack(0, 1, 1), b"p" * PAGE)
    for writer in several.writers:
        writer.record(SYNC)
    several.pages.end_pass()
    for number in range(2):
        several.end(number)
    for thread in several.pages._threads:
        thread.join(DEADLINE_S)
    assert bytes(several.ram.view[PAGE : PAGE + 2]) == b"pp" and not several.failed.is_set()
    with pytest.raises(QobraError, match="ends too early"):
        several.pages.end_pass()
    several.close()


def test_a_channel_that_is_given_up_lets_who_waits_for_it_go() -> None:
    several = Several()
    several.writers[0].record(SYNC)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            several.pages.end_pass()
        except GivenUp as error:
            ended.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    for channel in several.pages._channels:
        channel.cancel()
    waiting.join(DEADLINE_S)
    assert ended
    several.close()


def test_a_wrong_record_ends_it_all() -> None:
    several = Several()
    several.writers[1].record(PAGES, RUN.pack(0, 4, 1), b"p" * PAGE)
    assert several.failed.wait(DEADLINE_S)
    with pytest.raises(QobraError, match="Illegal RAM offset"):
        several.pages.end_pass()
    several.close()


@pytest.mark.parametrize("stranger", [b"", HELLO[:3]])
def test_who_comes_and_says_nothing_more_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, stranger: bytes) -> None:
    monkeypatch.setattr(page_in, "_HELLO_S", 0.02)
    several = Several(stranger)
    for writer in several.writers:
        writer.record(SYNC)
    several.pages.end_pass()
    several.close()


def test_who_leaves_before_the_token_is_refused_at_once() -> None:
    near, far = socket.socketpair()
    far.sendall(HELLO[:3])
    far.close()
    channel = Channel(near.detach())
    pages = PageIn(list, 1)
    with pytest.raises(QobraError, match="A channel is not of this migration"):
        pages.share(bytes(TOKEN_SIZE) + b"\1", lambda: channel, lambda: None)
    channel.close()
    pages.close()


def test_who_trickles_is_not_waited_for_either(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Trickling:
        """A byte every four seconds."""

        def readable(self, timeout: float) -> bool:
            nonlocal now
            now += min(timeout, 4.0)
            return timeout >= 4.0

        def read(self, _size: int) -> bytes:
            return b"Q"

    monkeypatch.setattr(page_in.time, "monotonic", lambda: now)
    assert page_in._greeting(Trickling(), 40) is None
    assert now == page_in._HELLO_S
