"""Events as an iterator."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from qobra.client.errors import ConnectionLost
from qobra.client.events import Event, EventQueue, Predicate
from qobra.client.exchange import Exchange


class EventStream(EventQueue):
    """Events from the moment that it was made, kept until they are read. Close it, or use it in ``with``."""

    def __init__(
        self,
        exchange: Exchange,
        receive: Callable[[float | None], None],
        names: tuple[str, ...],
        where: Predicate | None,
        limit: int,
    ) -> None:
        super().__init__(names, where, limit)
        self._exchange = exchange
        self._receive = receive
        exchange.add_queue(self)

    def __enter__(self) -> EventStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        try:
            return self.next()
        except ConnectionLost:
            raise StopIteration from None

    def next(self, timeout: float | None = None) -> Event:
        """The next event. Raises ConnectionLost when no more can come, TimeoutError after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout if timeout is not None else None
        while not self._pending:
            if self._exchange.lost is not None:
                raise ConnectionLost(self._exchange.lost.desc)
            self._receive(deadline)
        return self._pending.popleft()

    def close(self) -> None:
        """Take no more events."""
        self._exchange.remove_queue(self)
