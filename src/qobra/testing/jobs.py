"""For tests of jobs: a block layer that keeps its events, and ways to wait for them."""

from __future__ import annotations

import threading
import time
from typing import Any

from qobra.block.layer import BlockLayer
from qobra.control import Control

Event = tuple[str, dict[str, Any]]


class RecordingLayer(BlockLayer):
    """A block layer whose events are kept in ``events``, oldest first."""

    def __init__(self, control: Control | None = None) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()
        super().__init__(control=control, emit=self._record)

    def _record(self, name: str, data: dict[str, Any] | None) -> None:
        with self._changed:
            self.events.append((name, data or {}))
            self._changed.notify_all()

    def wait_event(self, name: str, timeout: float = 30.0, **members: Any) -> dict[str, Any]:
        """The first event ``name`` with these members, waiting for it if need be. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for event, data in self.events:
                    if event == name and all(data.get(key) == value for key, value in members.items()):
                        return data
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no {name} {members} among {self.events}")
                self._changed.wait(left)

    def wait_status(self, job_id: str, status: str) -> None:
        """Wait until the job was in ``status``, and the strand is done with it."""
        self.wait_event("JOB_STATUS_CHANGE", id=job_id, status=status)
        with self.control:
            pass

    def statuses(self, job_id: str) -> list[str]:
        """The states that the job went through."""
        return [data["status"] for name, data in self.events if name == "JOB_STATUS_CHANGE" and data["id"] == job_id]

    def story(self) -> list[str]:
        """The events in short: a status for JOB_STATUS_CHANGE, the name for others."""
        return [data["status"] if name == "JOB_STATUS_CHANGE" else name for name, data in self.events]
