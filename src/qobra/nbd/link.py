"""Many requests over one connection, from many threads, without a thread of its own.

Whoever waits for an answer while nobody reads becomes the reader: it takes in replies, which complete other threads'
requests as they come, until its own is there; then it passes the part on to another waiter. A sender whose socket is
full reads as well, so that a server that does not take requests before its replies are read cannot lock us up.
"""

from __future__ import annotations

import errno
import itertools
import select
import threading
import time
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.nbd import protocol as p
from qobra.nbd.replies import ReplyReader
from qobra.nbd.transport import Disconnected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qobra.nbd.request import AnyRequest
    from qobra.nbd.transport import Buffer, Transport

_YIELD = 0.02
"""Seconds after which a blocked sender looks again whether somebody still reads."""


class Link:
    """The transmission phase of one connection."""

    def __init__(self, transport: Transport, *, structured: bool, contexts: dict[int, str]) -> None:
        self.transport = transport
        self.broken: QobraError | None = None
        """Why the connection can no longer be used."""
        self._pending: dict[int, AnyRequest] = {}
        self._cookies = itertools.count(1)
        self._send_lock = threading.Lock()
        # Guards the three below; held for moments only.
        self._mutex = threading.Lock()
        self._reading = False
        self._waiting: dict[int, AnyRequest] = {}
        self._replies = ReplyReader(transport, self._pending, structured=structured, contexts=contexts)

    @property
    def in_flight(self) -> int:
        """Requests that have not been answered."""
        return len(self._pending)

    def submit(self, request: AnyRequest, flags: int, payload: Sequence[Buffer] = ()) -> None:
        """Send ``request``. Raises QobraError when the connection is broken, or breaks."""
        cookie = request.cookie = next(self._cookies)
        header = p.REQUEST.pack(p.REQUEST_MAGIC, flags, request.command, cookie, request.offset, request.length)
        with self._send_lock:
            if self.broken is not None:
                raise self.broken.again()
            self._pending[cookie] = request
            self._send((header, *payload))
        if self.broken is not None:
            # The connection broke beside us, perhaps before the request was there to be failed with the others.
            self.fail(self.broken)

    def disconnect(self) -> None:
        """Tell the server that no request follows. What is in flight is answered still."""
        header = p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_DISC, 0, 0, 0)
        with self._send_lock:
            if self.broken is None:
                self._send((header,))

    def fail(self, error: QobraError) -> None:
        """Break the connection: everything in flight fails with ``error``."""
        if self.broken is None:
            self.broken = error.again()
        self.transport.shutdown()
        while self._pending:
            try:
                _cookie, request = self._pending.popitem()
            except KeyError:
                break
            request.complete(self.broken.again())

    def wait_for(self, request: AnyRequest, timeout: float | None) -> None:
        """Return once ``request`` is done. Raises QobraError (ETIMEDOUT) after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._mutex:
                waiter = None
                if self._reading:
                    waiter = request.prepare_to_wait()
                    self._waiting[request.cookie] = request
                else:
                    self._reading = True
            if waiter is None:
                self._read_until(request, deadline)
            elif not request.done:  # looked at after the waiter was there for complete() to see
                waiter.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic()))
                request.wake()  # another thread may wait for the same request
            if request.done:
                with self._mutex:
                    self._waiting.pop(request.cookie, None)
                return
            if deadline is not None and time.monotonic() >= deadline:
                with self._mutex:
                    self._waiting.pop(request.cookie, None)
                # Whoever passed the part of the reader on to us must not have done so in vain.
                self._pass_on()
                raise QobraError("The NBD server did not answer in time", errno=errno.ETIMEDOUT)

    def poll(self, timeout: float | None = 0) -> bool:
        """Take in the replies that are here, waiting at most ``timeout`` seconds for the first; whether any came."""
        with self._mutex:
            if self._reading:
                return False
            self._reading = True
        deadline = None if timeout is None else time.monotonic() + timeout
        came = False
        try:
            while self._pending:
                if self._replies.take_in():
                    came = True
                elif came or not self._wait_for_more(deadline):
                    break
        except QobraError as error:
            self.fail(error)
        finally:
            self._stop_reading()
        return came

    # The reader's part ------------------------------------------------------------------------------------------------

    def _read_until(self, request: AnyRequest, deadline: float | None) -> None:
        try:
            while not request.done:
                if deadline is None:
                    self._replies.read_one()
                elif not self._replies.take_in() and not self._wait_for_more(deadline):
                    return
        except QobraError as error:
            self.fail(error)
        finally:
            self._stop_reading()

    def _wait_for_more(self, deadline: float | None) -> bool:
        """Wait until more arrives; False when it is too late."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return bool(self.transport.wait(select.POLLIN, left))

    def _stop_reading(self) -> None:
        with self._mutex:
            self._reading = False
        self._pass_on()

    def _pass_on(self) -> None:
        """Wake one waiter, to become the reader if nobody is."""
        with self._mutex:
            if not self._reading:
                for request in self._waiting.values():
                    if not request.done:
                        request.wake()
                        return

    def _send(self, parts: Sequence[Buffer]) -> None:
        try:
            left = self.transport.encode(parts)
            while left:
                rest = self.transport.try_send_raw(left)
                if rest is left:
                    self._make_room()
                left = rest
        except QobraError as error:
            self.fail(error)
            raise

    def _make_room(self) -> None:
        """The socket is full: wait until it takes more, reading replies meanwhile."""
        with self._mutex:
            mine = not self._reading
            self._reading = True
        if not mine:
            self._check_alive()
            self.transport.wait(select.POLLOUT, _YIELD)
            return
        try:
            if not self._replies.take_in():
                self.transport.wait(select.POLLIN | select.POLLOUT)
        finally:
            self._stop_reading()

    def _check_alive(self) -> None:
        if self.broken is not None:
            raise Disconnected(self.broken.desc, errno=self.broken.errno)
