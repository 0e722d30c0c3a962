"""Jobs without a speed limit give way to guests that do I/O, and only then."""

from __future__ import annotations

import threading

import pytest

from qobra.block.job.block_job import BlockJob
from qobra.block.job.pace import LONGEST_NS, SHARE, Pace
from qobra.block.slots import Flight, Gate, Slot
from qobra.clock import SimulatedClock
from qobra.control import Control
from qobra.testing.jobs import RecordingLayer

MILLISECOND = 1_000_000
STEPS = 20


def request(slot: Slot) -> None:
    with slot:
        pass


def test_a_guest_that_was_served_makes_a_job_rest_in_proportion_to_its_work() -> None:
    flight = Flight()
    guest = flight.slot(Gate())
    request(guest)
    pace = Pace(flight)
    assert pace.delay_ns(MILLISECOND) == 0  # that was before the job
    request(guest)
    assert pace.delay_ns(MILLISECOND) == (SHARE - 1) * MILLISECOND
    assert pace.delay_ns(MILLISECOND) == 0  # and is idle since
    request(guest)
    assert pace.delay_ns(2 * MILLISECOND) == 2 * (SHARE - 1) * MILLISECOND


def test_a_job_never_rests_longer_than_some_time() -> None:
    flight = Flight()
    guest = flight.slot(Gate())
    pace = Pace(flight)
    request(guest)
    assert pace.delay_ns(10**12) == LONGEST_NS


def test_a_request_under_way_counts_for_as_long_as_it_takes() -> None:
    flight = Flight()
    guest = flight.slot(Gate())
    pace = Pace(flight)
    guest.enter()
    for _ in range(3):
        assert pace.delay_ns(MILLISECOND) > 0
    guest.leave()
    assert pace.delay_ns(MILLISECOND) == 0


def test_other_jobs_are_no_guests_and_a_guest_that_left_is_not_missed() -> None:
    flight = Flight()
    other, guest = flight.slot(Gate(), background=True), flight.slot(Gate())
    pace = Pace(flight)
    with other:
        assert pace.delay_ns(MILLISECOND) == 0
    request(guest)
    served = flight.served
    guest.close()
    assert flight.served == served == 1


class Working(BlockJob):
    """Works in steps of a millisecond of processor time; before each it does what ``each`` says."""

    kind = "backup"
    each = staticmethod(lambda: None)

    def run(self) -> None:
        for _ in range(STEPS):
            self.each()
            self.throttle(1000)

    def _spent_ns(self) -> int:
        return MILLISECOND


@pytest.fixture
def layer():
    made = RecordingLayer(Control(SimulatedClock()))
    yield made
    with made.control:
        made.close()


def time_taken(layer, each, speed=0) -> int:
    """How much of the simulated time the job needs, in nanoseconds."""
    node = layer.add_node({"driver": "null-co", "node-name": "disk", "size": 1 << 20})
    with layer.control:
        job = Working(layer.jobs, "j", node, speed=speed)
        job.each = each
        job.start()
    begin_ns = layer.clock.monotonic_ns()
    over = threading.Event()
    waiting = threading.Thread(target=lambda: (layer.wait_status("j", "null"), over.set()))
    waiting.start()
    while not over.wait(0.001):
        if job._parked:
            layer.clock.advance(MILLISECOND)
    waiting.join()
    return layer.clock.monotonic_ns() - begin_ns


def test_a_job_beside_a_busy_guest_goes_on_at_its_share(layer) -> None:
    guest = layer.flight.slot(Gate())
    took_ns = time_taken(layer, lambda: request(guest))
    assert took_ns >= STEPS * (SHARE - 1) * MILLISECOND


def test_a_job_beside_an_idle_guest_never_rests(layer) -> None:
    request(layer.flight.slot(Gate()))
    assert time_taken(layer, lambda: None) == 0


def test_a_speed_limit_is_all_that_holds_a_job_that_has_one(layer) -> None:
    guest = layer.flight.slot(Gate())
    assert time_taken(layer, lambda: request(guest), speed=1_000_000_000) == 0


def test_a_job_is_held_to_its_speed(layer) -> None:
    took_ns = time_taken(layer, lambda: None, speed=100_000)
    assert 200 * MILLISECOND <= took_ns <= 220 * MILLISECOND  # STEPS of a thousand bytes


def test_data_are_moved_in_idle_time_while_a_job_gives_way(layer) -> None:
    guest = layer.flight.slot(Gate())
    node = layer.add_node({"driver": "null-co", "node-name": "disk", "size": 1 << 20})
    with layer.control:
        job = Working(layer.jobs, "j", node)
    shares = []
    job.park = lambda _delay_ns: layer.clock.advance(LONGEST_NS)
    for asks, speed in ((False, 0), (True, 0), (False, 0), (True, 1 << 40), (True, 0)):
        if asks:
            request(guest)
        job.rate.speed = speed
        job.throttle(1000)
        shares.append(job.carrier.share)
    assert shares == [1, SHARE, 1, 1, SHARE]
    with layer.control:
        job.discard()
    assert job.carrier.share == 1  # nobody is given way to any more


def test_setting_the_speed_ends_a_rest(layer) -> None:
    guest = layer.flight.slot(Gate())
    node = layer.add_node({"driver": "null-co", "node-name": "disk", "size": 1 << 20})
    with layer.control:
        job = Working(layer.jobs, "j", node)
        job.each = lambda: request(guest)
        job.start()
    while not job._parked:
        pass
    with layer.control:
        job.set_speed(1_000_000_000)
    layer.wait_status("j", "null")
