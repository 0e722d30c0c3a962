"""A client that asks without pause is held while guests are at work, and only then."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qobra.block.slots import Flight, Gate, Slot
from qobra.clock import SimulatedClock
from qobra.qmp.inband import LENGTH, InBandQueue
from qobra.qmp.pace import BURST, INTERVAL_NS, LOOK_NS, Pace

COMMAND_NS = 50_000  # what a command takes


class Client:
    """Sends commands, in simulated time, to a machine whose guest has a batch served every ``guest_ns``, if any."""

    def __init__(self, guest_ns: int = 0) -> None:
        self.clock = SimulatedClock(start_ns=10**15)
        self.flight = Flight()
        self.guest_ns = guest_ns
        self._guest: Slot = self.flight.slot(Gate())
        self._batch_ns = self.clock.monotonic_ns()
        self._pace = Pace(self.flight)

    def rest(self, nanoseconds: int) -> None:
        self.clock.advance(nanoseconds)
        while self.guest_ns and self._batch_ns + self.guest_ns <= self.clock.monotonic_ns():
            self._batch_ns += self.guest_ns
            with self._guest:
                pass

    def ask(self, commands: int, think_ns: int = 0) -> list[int]:
        """How long each of so many commands waited."""
        waited = []
        for _ in range(commands):
            delay_ns = self._pace.delay_ns(self.clock.monotonic_ns())
            waited.append(delay_ns)
            self.rest(delay_ns + COMMAND_NS + think_ns)
        return waited


def test_nobody_waits_where_nothing_moves() -> None:
    assert not any(Client().ask(10_000))


def test_a_storm_beside_a_busy_guest_gets_a_command_served_in_each_interval() -> None:
    client = Client(guest_ns=100_000)
    waited = client.ask(2000)
    held = next(index for index, delay_ns in enumerate(waited) if delay_ns)
    assert BURST <= held <= BURST + 2 * LOOK_NS // COMMAND_NS
    assert set(waited[held + 1 :]) == {INTERVAL_NS - COMMAND_NS}


def test_no_command_waits_longer_than_an_interval() -> None:
    waited = Client(guest_ns=100_000).ask(20_000, think_ns=1000 - COMMAND_NS)
    assert max(waited) == INTERVAL_NS - 1000


def test_the_first_commands_are_served_at_once_again_after_a_rest() -> None:
    client = Client(guest_ns=100_000)
    client.ask(1000)
    client.rest(BURST * INTERVAL_NS)
    waited = client.ask(BURST + 1)
    assert not any(waited[:BURST])
    client.ask(1000)
    client.rest(3 * INTERVAL_NS)
    assert not any(client.ask(2)[:2])


def test_a_client_that_works_between_its_commands_is_never_held() -> None:
    assert not any(Client(guest_ns=100_000).ask(2000, think_ns=INTERVAL_NS))


def test_a_guest_that_does_little_holds_nobody() -> None:
    assert not any(Client(guest_ns=2 * INTERVAL_NS).ask(2000))


def test_a_guest_that_has_stopped_holds_nobody_for_long() -> None:
    client = Client(guest_ns=100_000)
    client.ask(1000)
    client.guest_ns = 0
    waited = client.ask(1000)
    assert not any(waited[2 * (LOOK_NS // INTERVAL_NS + 1) :])


def test_what_a_guest_did_long_ago_holds_nobody() -> None:
    client = Client(guest_ns=100_000)
    client.rest(10**10)
    client.guest_ns = 0
    assert not any(client.ask(1000))


@contextmanager
def guest(machine: Any) -> Iterator[None]:
    """A worker that has batches served all the while."""
    slot = machine.block.flight.slot(Gate())
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.0002):
            with slot:
                pass

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        slot.close()


def storm(client: Any, seconds: float) -> int:
    """How many replies a client gets that never rests."""
    end = time.monotonic() + seconds
    replies = 0
    while time.monotonic() < end:
        assert client.call("query-name") == {"return": {}}
        replies += 1
    return replies


@pytest.mark.parametrize("capabilities", [(), ("oob",)], ids=["plain", "oob"])
def test_a_session_holds_a_storm(monitored: Any, capabilities: tuple[str, ...]) -> None:
    client = monitored.client(*capabilities)
    deadline = time.monotonic() + 20
    with guest(monitored.machine):
        while storm(client, 0.1) > 0.1e9 / INTERVAL_NS + BURST:
            assert time.monotonic() < deadline  # at first it is not known yet, nor while the guest gets no processor


def test_all_commands_of_one_packet_are_answered_in_order(monitored: Any) -> None:
    client = monitored.client()
    packet = b"".join(b'{"execute": "query-name", "id": %d}\n' % number for number in range(10_000))
    with guest(monitored.machine):
        sender = threading.Thread(target=client.send, args=(packet,))
        sender.start()
        replies = [client.reply()["id"] for _ in range(300)]
    replies += [client.reply()["id"] for _ in range(10_000 - len(replies))]
    sender.join()
    assert replies == list(range(10_000))


class HeldSession:
    """What a queue needs of a session, each of whose commands is to wait a minute."""

    def __init__(self) -> None:
        self.served: list[Any] = []
        self.changed = threading.Event()

    def delay(self) -> float:
        return 60.0

    def serve(self, request: Any, _client: int) -> None:
        self.served.append(request)
        self.changed.set()


def test_a_full_queue_is_not_held_as_an_out_of_band_command_may_come_next() -> None:
    session: Any = HeldSession()
    queue = InBandQueue(session, 1)
    for number in range(LENGTH - 1):
        queue.put(number, [])
    assert not session.changed.wait(0.05)
    queue.put(LENGTH - 1, [])
    assert session.changed.wait(20)
    queue.close()
    assert session.served == [0]


def test_another_monitor_does_not_wait(monitored: Any) -> None:
    storming, other = monitored.client(), monitored.client()
    with guest(monitored.machine):
        storm(storming, 0.1)
        waited = []
        for _ in range(10):
            storm(storming, 0.005)
            begin = time.monotonic()
            assert other.call("query-name") == {"return": {}}
            waited.append(time.monotonic() - begin)
        assert min(waited) < INTERVAL_NS / 1e9
