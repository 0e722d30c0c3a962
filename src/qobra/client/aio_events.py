"""Events as an async iterator."""

from __future__ import annotations

import asyncio
from types import TracebackType

from qobra.client.errors import ConnectionLost
from qobra.client.events import Event, EventQueue, Predicate
from qobra.client.exchange import Exchange


class EventStream(EventQueue):
    """Events from the moment that it was made, kept until they are read. Close it, or use it in ``with``."""

    def __init__(self, exchange: Exchange, names: tuple[str, ...], where: Predicate | None, limit: int) -> None:
        super().__init__(names, where, limit)
        self._exchange = exchange
        self._arrived = asyncio.Event()
        exchange.add_queue(self)

    def __enter__(self) -> EventStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        try:
            return await self.next()
        except ConnectionLost:
            raise StopAsyncIteration from None

    async def next(self, timeout: float | None = None) -> Event:
        """The next event. Raises ConnectionLost when no more can come, TimeoutError after ``timeout`` seconds."""
        async with asyncio.timeout(timeout):
            while not self._pending:
                if self._exchange.lost is not None:
                    raise ConnectionLost(self._exchange.lost.desc)
                self._arrived.clear()
                await self._arrived.wait()
        return self._pending.popleft()

    def close(self) -> None:
        """Take no more events."""
        self._exchange.remove_queue(self)

    def notify(self) -> None:
        self._arrived.set()
