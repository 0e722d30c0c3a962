"""Slots, gates and retired space, in both forms."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from qobra.block import slots
from qobra.native import compiled
from qobra.testing.waiting import wait_until

_compiled: Any = compiled("places")
FORMS: list[Any] = [(slots.PureWords, slots.PureGate, slots.PureSlot)]
if _compiled is not None:
    FORMS.append((_compiled.Words, _compiled.Gate, _compiled.Slot))


class World:
    """A flight with one gate, and slots of one form."""

    def __init__(self, form: Any) -> None:
        words, gate, self._slot = form
        self.flight = slots.Flight(words())
        self.gate = gate()

    def slot(self) -> Any:
        slot = self._slot(self.flight, self.gate)
        self.flight.admit(slot)
        return slot


@pytest.fixture(params=FORMS, ids=["pure", "compiled"][: len(FORMS)])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def test_retired_space_waits_for_who_was_inside(world: World) -> None:
    before, after = world.slot(), world.slot()
    released = []
    before.enter()
    world.flight.retire(lambda: released.append("first"))
    after.enter()
    world.flight.retire(lambda: released.append("second"))
    assert released == []
    before.leave()
    world.flight.reclaim()
    assert released == ["first"]
    after.leave()
    world.flight.reclaim()
    assert released == ["first", "second"]


def test_a_slot_that_was_left_and_entered_again_holds_nothing_back(world: World) -> None:
    slot = world.slot()
    released = []
    slot.enter()
    world.flight.retire(lambda: released.append(1))
    with pytest.raises(ZeroDivisionError):
        slot.leave()
        with slot:
            world.flight.reclaim()
            assert released == [1]
            raise ZeroDivisionError
    assert slot.busy == 0


def test_draining_waits_and_keeps_others_out(world: World) -> None:
    first, second = world.slot(), world.slot()
    order = []
    first.enter()

    def drain() -> None:
        with world.flight.drained(lambda: [world.gate]):
            order.append("drained")
            assert not first.busy and not second.busy

    def enter() -> None:
        second.enter()
        order.append("entered")
        second.leave()

    drainer, worker = threading.Thread(target=drain), threading.Thread(target=enter)
    drainer.start()
    wait_until(lambda: world.gate.closed)
    worker.start()
    assert not order
    first.leave()
    drainer.join(30)
    worker.join(30)
    assert order == ["drained", "entered"]
    assert (world.gate.closed, world.flight.draining) == (0, 0)


def test_a_fence_waits_for_who_is_inside_now_only(world: World) -> None:
    inside, outside = world.slot(), world.slot()
    inside.enter()
    passed = threading.Event()

    def fence() -> None:
        world.flight.fence({world.gate})
        passed.set()

    epoch = world.flight.words.epoch
    thread = threading.Thread(target=fence)
    thread.start()
    wait_until(lambda: world.flight.words.epoch != epoch)
    outside.enter()  # came later: nobody waits for it
    assert not passed.is_set()
    inside.leave()
    thread.join(30)
    assert passed.is_set() and outside.busy
    outside.close()


def test_a_closed_slot_is_waited_for_no_more(world: World) -> None:
    slot = world.slot()
    slot.enter()
    slot.close()
    with world.flight.drained(lambda: [world.gate]):
        pass
