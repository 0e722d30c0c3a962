"""Two machines in one process, and a migration between them: over a pair of sockets, or over real ways."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.migration.channel import Channel
from qobra.migration.outgoing import Outgoing
from qobra.qmp import dispatch
from qobra.testing.waiting import wait_until

DEADLINE_S = 60
MEMORY = 8 << 20


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


class Sides:
    """A source whose memory has a pattern, and a destination that listens at a socket."""

    def __init__(self, path: Path, *capabilities: str, **parameters: Any) -> None:
        self._path = path
        self._ways = 0
        self.source, self.destination = (simple_machine("x86_64", "pc", memory=MEMORY) for _ in range(2))
        self.events: dict[Machine, list[str]] = {self.source: [], self.destination: []}
        for machine, events in self.events.items():
            machine.events.subscribe(lambda event, events=events: events.append(_short(event)))
            on = [{"capability": name, "state": True} for name in ("events", *capabilities)]
            self.call(machine, "migrate-set-capabilities", capabilities=on)
            if parameters:
                self.call(machine, "migrate-set-parameters", **parameters)
        self.content = random.Random(1).randbytes(MEMORY - (1 << 20))
        with self.source.control:
            self.source.board.memory.write(1 << 20, self.content)
            self.source.run_state.start()
        with self.destination.control:
            self.destination.migration.expect()
            self.destination.run_state.incoming = "defer"

    def call(self, machine: Machine, name: str, /, *, oob: bool = False, **arguments: Any) -> Any:
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        return dispatch.call(machine, name, arguments, oob=oob)

    def way(self) -> str:
        self._ways += 1
        return f"unix:{self._path}/way{self._ways}"

    def start(self) -> None:
        way = self.way()
        self.call(self.destination, "migrate-incoming", uri=way)
        self.call(self.source, "migrate", uri=way)

    def slow_down(self) -> None:
        """Nothing follows but what is asked for."""
        self.call(self.source, "migrate-set-parameters", max_postcopy_bandwidth=1)

    def start_late(self) -> None:
        """Migrate, so that memory follows only as it is asked for."""
        self.slow_down()
        self.call(self.source, "migrate-set-parameters", max_bandwidth=1 << 20)
        self.start()
        self.until(self.source, "active")
        self.call(self.source, "migrate-start-postcopy")
        self.until(self.destination, "postcopy-active")
        self.until(self.source, "postcopy-active")
        wait_until(lambda: self.destination.run_state.running, DEADLINE_S)

    def let_go(self) -> None:
        self.call(self.source, "migrate-set-parameters", max_postcopy_bandwidth=0)

    def until(self, machine: Machine, *statuses: str) -> None:
        wait_until(lambda: machine.migration.describe().get("status") in statuses, DEADLINE_S)

    def wait(self) -> None:
        assert self.source.migration.wait(DEADLINE_S) and self.destination.migration.wait(DEADLINE_S)
        assert (self.status(self.source), self.status(self.destination)) == ("completed", "completed")
        assert self.source.run_state.state == "postmigrate" and self.destination.run_state.running
        assert self.destination.board.memory.read(1 << 20, len(self.content)) == self.content

    def status(self, machine: Machine) -> str:
        return str(machine.migration.describe()["status"])

    def close(self) -> None:
        for machine in (self.source, self.destination):
            machine.close()


def _short(event: dict[str, Any]) -> str:
    return str(event["data"]["status"] if event["event"] == "MIGRATION" else event["event"])


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[Callable[..., Sides]]:
    made: list[Sides] = []

    def make(*capabilities: str, **parameters: Any) -> Sides:
        made.append(Sides(tmp_path, *capabilities, **parameters))
        return made[-1]

    yield make
    for each in made:
        each.close()
