"""Keys that users have pressed and let go one after the other: what is pressed next waits until the last are up."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qobra.machine.board import Board

MOST = 1024
"""Keys that may wait; what is more is lost, as QEMU has it."""

Events = list[dict[str, Any]]


class KeyQueue:
    """Delivers presses at times of the guest. All of it runs in the control strand."""

    def __init__(self, board: Board, deliver: Callable[[Events], None]) -> None:
        self._clock = board.clock
        self._deliver = deliver
        self._timer = board.clock.timer(self._next)
        self._waiting: deque[tuple[Events, int]] = deque()

    def press(self, keys: list[dict[str, Any]], hold_ns: int) -> None:
        """Press ``keys`` (KeyValue) together, hold them so long, and let them go in reverse; then rest as long."""
        if self._timer.deadline_ns is None:
            self._waiting.clear()  # of before another state was loaded, which forgets timers
        elif sum(len(events) for events, _rest_ns in self._waiting) + 2 * len(keys) > MOST:
            return
        self._waiting.append((_events(keys, True), hold_ns))
        self._waiting.append((_events(keys[::-1], False), hold_ns))
        if self._timer.deadline_ns is None:
            self._next()

    def _next(self) -> None:
        if self._waiting:
            events, rest_ns = self._waiting.popleft()
            self._deliver(events)
            self._timer.set(self._clock.now_ns() + rest_ns)


def _events(keys: list[dict[str, Any]], down: bool) -> Events:
    return [{"type": "key", "data": {"key": key, "down": down}} for key in keys]
