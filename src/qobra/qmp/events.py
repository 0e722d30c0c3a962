"""Events on their way from the machine to its monitors: rate limits, and one encoding for all."""

from __future__ import annotations

from qobra.qmp.writer import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.machine.machine import Machine
    from qobra.qmp.session import Session

RATE_LIMIT_NS = 1_000_000_000
"""The least time between two events of a limited kind."""

_LIMITED: dict[str, tuple[str, ...]] = {
    "BALLOON_CHANGE": (),
    "QUORUM_FAILURE": (),
    "QUORUM_REPORT_BAD": ("node-name",),
    "RTC_CHANGE": (),
    "VSERPORT_CHANGE": ("id",),
    "WATCHDOG": (),
    "MEMORY_DEVICE_SIZE_CHANGE": ("id", "qom-path"),
}
"""The limited events, each with the members that tell apart the sources which are limited separately."""


class EventRouter:
    """Hands a machine's events to the sessions of its monitors.

    A limited event goes out at once if none of its kind went out within the last second; otherwise it waits for the
    second to end, and of those that wait only the latest is sent.
    """

    def __init__(self, machine: Machine) -> None:
        self._control = machine.control
        self._sessions: tuple[Session, ...] = ()
        # A key is here during the second after its event; the value is what waits for the end of that second.
        self._waiting: dict[tuple[Any, ...], dict[str, Any] | None] = {}
        self._unsubscribe = machine.events.subscribe(self._route)

    def add(self, session: Session) -> None:
        """Send ``session`` every event from now on."""
        self._sessions = (*self._sessions, session)

    def remove(self, session: Session) -> None:
        """Send ``session`` no more events."""
        self._sessions = tuple(each for each in self._sessions if each is not session)

    def close(self) -> None:
        """Take no more events from the machine."""
        self._unsubscribe()

    def _route(self, event: dict[str, Any]) -> None:
        members = _LIMITED.get(event["event"])
        if members is None:
            self._deliver(event)
            return
        data = event.get("data", {})
        key = (event["event"], *(data.get(member) for member in members))
        if key in self._waiting:
            self._waiting[key] = event
            return
        self._deliver(event)
        self._waiting[key] = None
        self._control.call_later(RATE_LIMIT_NS, lambda: self._second_is_over(key))

    def _second_is_over(self, key: tuple[Any, ...]) -> None:
        event = self._waiting.pop(key)
        if event is not None:
            self._deliver(event)
            self._waiting[key] = None
            self._control.call_later(RATE_LIMIT_NS, lambda: self._second_is_over(key))

    def _deliver(self, event: dict[str, Any]) -> None:
        line: bytes | None = None
        for session in self._sessions:
            if session.pretty:
                session.send_event(encode(event, pretty=True) + b"\r\n")
                continue
            if line is None:
                line = encode(event) + b"\r\n"
            session.send_event(line)
