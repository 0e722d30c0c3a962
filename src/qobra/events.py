"""A machine's events on their way to whoever listens: monitors, tests, the tools."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from qobra.clock import Clock

    Listener = Callable[[dict[str, Any]], None]


class EventBus:
    """Hands each event to every listener, in the order of emission. Called inside the control strand."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listeners: list[Listener] = []

    def emit(self, name: str, data: dict[str, Any] | None = None) -> None:
        """Emit the event ``name`` of the schema with the members ``data``, stamped with the wall-clock time."""
        now_us = self._clock.time_ns() // 1000
        event: dict[str, Any] = {
            "timestamp": {"seconds": now_us // 1_000_000, "microseconds": now_us % 1_000_000},
            "event": name,
        }
        if data:
            event["data"] = data
        for listener in tuple(self._listeners):
            listener(event)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with each event from now on; the returned call ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)
