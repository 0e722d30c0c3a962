"""A front end that records, and waiting for things to happen."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from qobra.machine.machine import Machine
from qobra.testing.waiting import wait_until


class Recorder:
    """A front end that keeps what it gets; ``limit`` is what it takes at a time."""

    hotswap = True

    def __init__(self, limit: int = 1 << 20) -> None:
        self.limit = limit
        self.data = b""
        self.events: list[str] = []
        self.longest = 0

    def receive(self, data: bytes) -> None:
        self.longest = max(self.longest, len(data))
        self.data += data

    def event(self, name: str) -> None:
        self.events.append(name)

    def can_receive(self) -> int:
        return self.limit


@pytest.fixture
def recorder() -> Callable[..., Recorder]:
    return Recorder


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    return wait_until


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.close()
