"""A request that is on its way: what :class:`qobra.nbd.client.Client`'s ``aio_`` methods return."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from qobra.errors import QobraError
from qobra.nbd import protocol as p

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator

    from qobra.nbd.submission import AnyLink

T = TypeVar("T")


class StatusExtent(NamedTuple):
    """A run of ``length`` bytes with the same ``flags`` in one metadata context."""

    length: int
    flags: int


class Request(Generic[T]):
    """A handle on one request. :meth:`result` waits for the answer and returns it; any thread may call it."""

    __slots__ = (
        "_callbacks",
        "_done",
        "_error",
        "_link",
        "_waiter",
        "command",
        "cookie",
        "extents",
        "holes",
        "length",
        "offset",
        "received",
        "value",
        "view",
    )

    def __init__(self, link: AnyLink, command: int, offset: int, length: int, value: T) -> None:
        self._link = link
        self._done = False
        self._error: QobraError | None = None
        self._waiter: threading.Lock | None = None
        self._callbacks: list[Callable[[Request[T]], object]] = []
        self.command = command
        self.offset = offset
        self.length = length
        self.value = value
        self.cookie = 0
        self.view: memoryview | None = None
        """Where a read's data go."""
        self.received = 0
        """Bytes of a read that have been answered, as data or as holes."""
        self.holes: list[tuple[int, int]] = []
        """(offset, length) of what a read's answer told to be holes; they read as zeroes."""
        self.extents: dict[str, list[StatusExtent]] = {}
        """What a block status request was answered, by context."""

    def __repr__(self) -> str:
        state = "pending" if not self._done else "failed" if self._error else "done"
        name = p.COMMAND_NAMES.get(self.command, self.command)
        return f"<Request {name} offset={self.offset} length={self.length} {state}>"

    @property
    def done(self) -> bool:
        """Whether the answer is here. Answers are taken in by whoever waits, or by :meth:`Client.poll`."""
        return self._done

    def result(self, timeout: float | None = None) -> T:
        """Wait for the answer, at most ``timeout`` seconds, and return it.

        Raises QobraError: the server's error (its errno and text), a broken connection, or ETIMEDOUT when time ran out,
        in which case the request is still on its way and may be waited for again.
        """
        if not self._done:
            self._link.wait_for(self, timeout)
        if self._error is not None:
            raise self._error.again()
        return self.value

    def exception(self, timeout: float | None = None) -> QobraError | None:
        """Wait like :meth:`result`, and return the error, or None."""
        if not self._done:
            self._link.wait_for(self, timeout)
        return self._error

    def add_done_callback(self, callback: Callable[[Request[T]], object]) -> None:
        """Have ``callback(request)`` called once the answer is here: by whoever takes it in, or now if it is."""
        self._callbacks.append(callback)
        if self._done:
            self._call_back()

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the answer in an asyncio event loop, which has to take answers in: see :mod:`qobra.nbd.aio`."""
        if not self._done:
            from qobra.nbd.aio import answered

            yield from answered(self).__await__()
        return self.result()

    # For the link, which owns the request until it is done ------------------------------------------------------------

    def complete(self, error: QobraError | None) -> None:
        """The answer is here: wake who waits."""
        self._error = error
        self._done = True
        self.view = None
        self.wake()
        self._call_back()

    def prepare_to_wait(self) -> threading.Lock:
        """A lock that is taken until the next :meth:`wake`."""
        if self._waiter is None:
            import threading

            self._waiter = threading.Lock()
        self._waiter.acquire(blocking=False)
        return self._waiter

    def wake(self) -> None:
        """Let a thread that waits look again."""
        if self._waiter is not None:
            try:
                self._waiter.release()
            except RuntimeError:
                pass  # nobody waits

    def _call_back(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return  # another thread has it
            callback(self)

    def fail(self, number: int, text: str) -> None:
        """Remember the first error of the server; more chunks may follow it."""
        if self._error is None:
            name = p.COMMAND_NAMES.get(self.command, str(self.command))
            import os

            where = "" if self.command == p.CMD_FLUSH else f" at {self.offset}"
            said = f": {text}" if text else ""
            self._error = QobraError(f"NBD {name}{where} failed: {os.strerror(number)}{said}", errno=number)

    def finish(self) -> None:
        """The last chunk is here: check that the answer is whole, and complete."""
        error = self._error
        if error is None:
            if self.command == p.CMD_READ and self.received != self.length:
                error = QobraError(
                    f"The NBD server broke the protocol: read at {self.offset} answered with {self.received} of"
                    f" {self.length} bytes",
                    errno=errno.EPROTO,
                )
            elif self.command == p.CMD_BLOCK_STATUS and not self.extents:
                error = QobraError(
                    "The NBD server broke the protocol: block status without a status", errno=errno.EPROTO
                )
        self.complete(error)


AnyRequest = Request[Any]
