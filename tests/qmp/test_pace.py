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
from qobra.qmp.pace import ALONE, AT_WORK_NS, LEAST_HOLD_NS, LOOK_NS, MOST_HOLD_NS, SAVINGS_NS, SHARE, WAKE_NS, Pace

COMMAND_NS = 50_000  # what a command takes, of a processor and in all
INTERVAL_NS = (COMMAND_NS * ALONE + WAKE_NS) * SHARE  # and how often a client gets one that asks one by one
SAVED = SAVINGS_NS * SHARE // INTERVAL_NS  # so many are served at once


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

    def ask(self, commands: int, think_ns: int = 0, *, took_ns: int = COMMAND_NS, packet: int = 1) -> list[int]:
        """How long each of so many commands waited, ``packet`` of which are sent at a time."""
        waited = []
        for number in range(commands):
            alone = number % packet == 0
            delay_ns = self._pace.delay_ns(self.clock.monotonic_ns(), took_ns, alone=alone)
            waited.append(delay_ns)
            self.rest(delay_ns + took_ns + (think_ns if alone else 0))
        return waited


def rate(waited: list[int], took_ns: int = COMMAND_NS) -> float:
    """Commands a second."""
    return 1e9 * len(waited) / (sum(waited) + len(waited) * took_ns)


def test_nobody_waits_where_nothing_moves() -> None:
    assert not any(Client().ask(10_000))


def test_a_storm_beside_a_busy_guest_gets_its_share() -> None:
    client = Client(guest_ns=100_000)
    waited = client.ask(5000)
    held = next(index for index, delay_ns in enumerate(waited) if delay_ns)
    assert SAVED <= held <= SAVED * 1.1 + 2 * LOOK_NS // COMMAND_NS
    assert rate(waited[held:]) == pytest.approx(1e9 / INTERVAL_NS, rel=0.02)


def test_who_asked_without_pause_before_is_held_as_soon_as_a_guest_is_at_work() -> None:
    client = Client()
    client.ask(1000)
    client.guest_ns = 100_000
    waited = client.ask(1000)
    assert next(index for index, delay_ns in enumerate(waited) if delay_ns) <= 2 * LOOK_NS // COMMAND_NS + 2


@pytest.mark.parametrize("took_ns", [10_000, 200_000, 1_000_000])
def test_a_share_is_one_of_time(took_ns: int) -> None:
    client = Client(guest_ns=100_000)
    cost_ns = min(took_ns * ALONE + WAKE_NS, MOST_HOLD_NS // SHARE)
    client.ask(2 * SAVINGS_NS // cost_ns, took_ns=took_ns)
    waited = client.ask(200, took_ns=took_ns)
    assert rate(waited, took_ns) == pytest.approx(1e9 / (cost_ns * SHARE), rel=0.06)


def test_commands_of_one_packet_get_more() -> None:
    client = Client(guest_ns=100_000)
    waited = client.ask(10_000, packet=10_000)
    assert sum(waited) < 10_000 * COMMAND_NS * SHARE
    assert all(delay_ns == 0 or delay_ns >= LEAST_HOLD_NS for delay_ns in waited)


def test_no_command_waits_for_long_however_long_those_before_took() -> None:
    client = Client(guest_ns=100_000)
    assert max(client.ask(200, took_ns=10**7)) <= MOST_HOLD_NS
    assert max(client.ask(2000)) <= MOST_HOLD_NS


def test_the_first_commands_are_served_at_once_again_after_a_rest() -> None:
    client = Client(guest_ns=100_000)
    client.ask(2000)
    client.rest(SAVINGS_NS * SHARE + MOST_HOLD_NS)
    assert not any(client.ask(200))
    client.ask(2000)
    client.rest(13 * INTERVAL_NS)
    assert not any(client.ask(12))


def test_a_client_that_works_between_its_commands_is_never_held() -> None:
    assert not any(Client(guest_ns=100_000).ask(2000, think_ns=INTERVAL_NS))


def test_a_guest_that_does_little_holds_nobody() -> None:
    assert not any(Client(guest_ns=2 * AT_WORK_NS).ask(2000))


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
    free = storm(client, 0.2)
    with guest(monitored.machine):
        while storm(client, 0.2) > max(free / 2, 120):  # a busy machine has no more for anybody
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

    def delay(self, alone: bool) -> float:
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
        assert min(waited) < LEAST_HOLD_NS / 1e9
