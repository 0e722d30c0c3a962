"""Requests that wait their turn while out-of-band ones overtake them.

Only a session that has enabled the capability ``oob`` has such a queue: its reading thread must be free to find
an ``exec-oob`` while an earlier command still runs, so in-band commands get a thread of their own.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qobra.qmp.session import Session

LENGTH = 8
"""Requests that may wait before the session stops reading, which then stops out-of-band commands as well."""


class InBandQueue:
    """Serves the requests of one session, one after the other."""

    def __init__(self, session: Session, client: int) -> None:
        self._session = session
        self._client = client
        self._waiting: deque[tuple[Any, list[int]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._serve, name="qmp in-band", daemon=True).start()

    def put(self, request: Any, fds: list[int]) -> None:
        """Queue ``request``, which came with ``fds``; waits while the queue is full."""
        with self._changed:
            while len(self._waiting) >= LENGTH and not self._closed:
                self._changed.wait()
            if self._closed:
                _close(fds)
                return
            self._waiting.append((request, fds))
            self._changed.notify_all()

    def close(self) -> None:
        """Drop what waits; what runs, runs on."""
        with self._changed:
            self._closed = True
            for _, fds in self._waiting:
                _close(fds)
            self._waiting.clear()
            self._changed.notify_all()

    def _serve(self) -> None:
        while True:
            with self._changed:
                alone = not self._waiting
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._closed and (delay := self._session.delay(alone)):
                    # While the queue is full, no out-of-band command is found either: those are never held.
                    self._changed.wait_for(lambda: self._closed or len(self._waiting) >= LENGTH, delay)
                if self._closed:
                    return
                request, fds = self._waiting.popleft()
                self._changed.notify_all()
            if fds:
                self._session.fds_arrived(fds)
            self._session.serve(request, self._client)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
