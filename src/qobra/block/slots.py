"""Requests in flight: how a graph change waits for them, and when freed space may be used again.

A worker (a connection, a job, a device) has one :class:`Slot` at each backend that it uses, and holds it while it works
on a batch of requests. Entering and leaving is two attribute stores, so the fast path can afford it:

- *Draining*: close the gates, then wait until every slot is idle. A worker that enters later stops at the gate.
- *Retiring*: space that a driver frees may still be read or written by a request that found it before. It is retired
  with the epoch at which it was freed, and handed back once every slot that was busy then has left.

Both rely on stores and loads being seen in order by all threads, as CPython guarantees; the compiled forms of
:class:`Words`, :class:`Gate` and :class:`Slot` see to it themselves, so that loops without the GIL take part.
"""

from __future__ import annotations

import time

from qobra.lean import Condition, Lock, contextmanager, deque
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class PureWords:
    """What all slots of a block layer share."""

    __slots__ = ("draining", "epoch", "generation")

    def __init__(self) -> None:
        self.epoch = 1
        """Counts what was retired."""
        self.draining = 0
        """How many wait for slots to be left."""
        self.generation = 0
        """Counts what makes flat tables start anew."""


class PureGate:
    """What stops new requests of one backend while ``closed`` is not zero."""

    __slots__ = ("closed",)

    def __init__(self) -> None:
        self.closed = 0


class PureSlot:
    """One worker's place at a backend. Not shared between threads; not re-entrant."""

    __slots__ = ("_flight", "_words", "busy", "entries", "gate")

    def __init__(self, flight: Flight, gate: Gate) -> None:
        self._flight = flight
        self._words = flight.words
        self.gate = gate
        self.busy = 0
        self.entries = 0
        """How often it was entered."""

    def enter(self) -> None:
        """Begin work; waits while the gate is closed. Nothing that waits for the strand may be done inside."""
        self.busy = self._words.epoch
        self.entries += 1
        if self.gate.closed:
            self._flight.wait_open(self)

    def leave(self) -> None:
        """End work."""
        self.busy = 0
        if self._words.draining:
            self._flight.notify()

    def __enter__(self) -> PureSlot:
        self.enter()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.leave()

    def close(self) -> None:
        """Give the place up for good."""
        self.busy = 0
        self._flight.forget(self)


Gate = PureGate
Slot = PureSlot
Words = PureWords
if not TYPE_CHECKING and (_compiled := compiled("places")) is not None:
    Gate, Slot, Words = _compiled.Gate, _compiled.Slot, _compiled.Words


class Flight:
    """All requests in flight of one block layer."""

    def __init__(self, words: Words | None = None) -> None:
        self.words = words or Words()
        self.drain_listeners: list[Callable[[], None]] = []
        """Called when a drain begins: whoever delays requests is to let them go."""
        self._slots: list[Slot] = []
        self._serving: list[Slot] = []
        """The slots of those who serve a guest."""
        self._served = 0
        """How often slots were entered that are no more."""
        self._condition = Condition()
        self._retired: deque[tuple[int, Callable[[], None]]] = deque()
        self._reclaim_lock = Lock()

    @property
    def draining(self) -> int:
        """How many wait until slots are left."""
        return self.words.draining

    @property
    def served(self) -> int:
        """How many batches of requests were begun for guests, ever: it stands still while all of them are idle."""
        with self._condition:
            return self._served + sum(slot.entries for slot in self._serving)

    @property
    def is_serving(self) -> bool:
        """Whether a request of a guest is being served right now."""
        return any(slot.busy for slot in tuple(self._serving))

    def slot(self, gate: Gate, *, background: bool = False) -> Slot:
        """A new place for a worker behind ``gate``; ``background``: no guest waits for what it does."""
        slot = Slot(self, gate)
        self.admit(slot, background=background)
        return slot

    def admit(self, slot: Slot, *, background: bool = False) -> None:
        """Count a slot that was just made."""
        with self._condition:
            self._slots.append(slot)
            if not background:
                self._serving.append(slot)

    def forget(self, slot: Slot) -> None:
        """Drop a place; see :meth:`Slot.close`."""
        with self._condition:
            if slot in self._slots:
                self._slots.remove(slot)
            if slot in self._serving:
                self._serving.remove(slot)
                self._served += slot.entries
            self._condition.notify_all()

    def notify(self) -> None:
        """A slot was left while someone drains."""
        with self._condition:
            self._condition.notify_all()

    def wait_open(self, slot: Slot) -> None:
        """Wait, idle, until the slot's gate is open, and return busy."""
        while True:
            with self._condition:
                slot.busy = 0
                self._condition.notify_all()
                while slot.gate.closed:
                    self._condition.wait()
            slot.busy = self.words.epoch
            if not slot.gate.closed:
                return

    @contextmanager
    def drained(self, gates: Callable[[], list[Gate]]) -> Iterator[None]:
        """Close ``gates()`` and wait for what is in flight behind them; open them at the end. May be nested."""
        closed = gates()
        with self._condition:
            self.words.draining += 1
            for gate in closed:
                gate.closed += 1
        for listener in tuple(self.drain_listeners):
            listener()
        with self._condition:
            while any(slot.busy and slot.gate.closed for slot in self._slots):
                self._condition.wait()
        try:
            yield
        finally:
            with self._condition:
                self.words.draining -= 1
                for gate in closed:
                    gate.closed -= 1
                self._condition.notify_all()

    def is_inside(self, gate: Gate) -> bool:
        """Whether a request of somebody behind ``gate`` is being served right now."""
        return any(slot.busy and slot.gate is gate for slot in tuple(self._slots))

    def fence(self, gates: set[Gate]) -> None:
        """Wait until whoever is inside a slot behind one of ``gates`` now has left it.

        Requests are short, so this looks again soon rather than being told. The caller is in none of those slots.
        """
        self.words.epoch += 1
        epoch = self.words.epoch
        inside = [slot for slot in tuple(self._slots) if slot.gate in gates and slot.busy]
        pause = 10e-6
        while inside:
            inside = [slot for slot in inside if 0 < slot.busy < epoch]
            if inside:
                time.sleep(pause)
                pause = min(2 * pause, 1e-3)

    def retire(self, release: Callable[[], None]) -> None:
        """Call ``release`` once no request that is in flight now can still know what it gives back."""
        self._retired.append((self.words.epoch, release))
        self.words.epoch += 1
        self.reclaim()

    def reclaim(self) -> None:
        """Release what is safe to release by now."""
        if not self._retired or not self._reclaim_lock.acquire(blocking=False):
            return
        try:
            oldest = min((busy for slot in tuple(self._slots) if (busy := slot.busy)), default=self.words.epoch)
            while self._retired and self._retired[0][0] < oldest:
                self._retired.popleft()[1]()
        finally:
            self._reclaim_lock.release()
