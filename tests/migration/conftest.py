"""Two machines in one process, and a migration between them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.migration.channel import Channel
from qobra.migration.outgoing import Outgoing

DEADLINE_S = 60


class Pair:
    """A source that runs, and a destination that waits; ``events`` has the names and statuses of either's events."""

    def __init__(self, make: Callable[[], Machine]) -> None:
        self.source, self.destination = make(), make()
        self.events: dict[Machine, list[Any]] = {self.source: [], self.destination: []}
        for machine, events in self.events.items():
            machine.events.subscribe(lambda event, events=events: events.append(_short(event)))
            machine.migration.set_capabilities([{"capability": "events", "state": True}])

    def set_capability(self, name: str) -> None:
        """Switch a capability on, on both sides."""
        for machine in (self.source, self.destination):
            machine.migration.set_capabilities([{"capability": name, "state": True}])

    def start(self) -> Outgoing:
        """Begin to migrate; returns the source's side."""
        ours, theirs = socket.socketpair()
        with self.destination.control:
            self.destination.migration.expect()
            self.destination.run_state.incoming = "defer"
            self.destination.fdsets.put_named("stream", theirs.detach())
            self.destination.migration.listen("fd:stream")
        with self.source.control:
            return self.source.migration.start_over(Channel(ours.detach()))

    def migrate(self) -> None:
        """Migrate, and wait until that is over on both sides."""
        self.start()
        assert self.source.migration.wait(DEADLINE_S) and self.destination.migration.wait(DEADLINE_S)

    def close(self) -> None:
        self.source.close()
        self.destination.close()


def _short(event: dict[str, Any]) -> Any:
    data = event.get("data", {})
    return data["status"] if event["event"] == "MIGRATION" else event["event"]


@pytest.fixture
def pair_of() -> Iterator[Callable[..., Pair]]:
    """Makes pairs of machines: ``pair_of(make)``, or of small PCs."""
    made: list[Pair] = []

    def make_pair(make: Callable[[], Machine] = lambda: simple_machine("x86_64", "pc", memory=4 << 20)) -> Pair:
        made.append(Pair(make))
        return made[-1]

    yield make_pair
    for pair in made:
        pair.close()
