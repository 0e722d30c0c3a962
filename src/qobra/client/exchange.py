"""What both faces of the client know of one connection. It does no input or output of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qobra.client.errors import ConnectError, ConnectionLost, command_error
from qobra.client.events import Event, EventQueue
from qobra.client.jobs import JobTracker
from qobra.client.wire import MessageReader, encode


class Request:
    """A command on its way. ``response`` is the whole answer once it has come."""

    __slots__ = ("arguments", "command", "on_end", "response")

    def __init__(self, command: str, arguments: Any) -> None:
        self.command = command
        self.arguments = arguments
        self.response: dict[str, Any] | None = None
        self.on_end: Callable[[], None] | None = None

    def result(self) -> Any:
        """What the command returned; raises the CommandError that it was answered with."""
        assert self.response is not None
        if "error" in self.response:
            raise command_error(self.command, self.arguments, self.response)
        return self.response.get("return")


class Exchange:
    """Requests and their answers, events and who wants them, the greeting, the jobs."""

    def __init__(self) -> None:
        self.greeting: dict[str, Any] | None = None
        self.jobs = JobTracker()
        self.lost: ConnectionLost | None = None
        self._reader = MessageReader()
        self._last_id = 0
        self._pending: dict[int, Request] = {}
        self._queues: list[EventQueue] = []

    @property
    def version(self) -> tuple[int, int, int]:
        """The server's version: (7, 2, 22) for QEMU 7.2.22."""
        qemu = ((self.greeting or {}).get("version") or {}).get("qemu") or {}
        return qemu.get("major", 0), qemu.get("minor", 0), qemu.get("micro", 0)

    @property
    def capabilities(self) -> frozenset[str]:
        """The capabilities that the server offers."""
        return frozenset((self.greeting or {}).get("capabilities") or ())

    def begin(self, command: str, arguments: Any, oob: bool) -> tuple[Request, bytes]:
        """Register a command; returns it and the bytes to send."""
        if self.lost is not None:
            raise ConnectionLost(self.lost.desc, command, arguments)
        self._last_id += 1
        request = Request(command, arguments)
        data = encode(command, arguments, self._last_id, oob)
        self._pending[self._last_id] = request
        return request, data

    def abandon(self, request: Request) -> None:
        """Nobody waits for ``request`` any more; its answer will be dropped."""
        for request_id, pending in self._pending.items():
            if pending is request:
                del self._pending[request_id]
                return

    def receive(self, data: bytes) -> None:
        """Take bytes from the server. ProtocolError if they are not QMP."""
        for message in self._reader.feed(data):
            if "event" in message:
                self._deliver(Event.from_message(message))
            elif "return" in message or "error" in message:
                self._answer(message)
            elif "QMP" in message and self.greeting is None:
                self.greeting = message["QMP"]
                # Before job statuses had events of their own a block job's end was all that was told.
                self.jobs.has_status_events = self.version >= (3, 0, 0)

    def _deliver(self, event: Event) -> None:
        self.jobs.observe(event)
        for queue in tuple(self._queues):
            queue.offer(event)

    def _answer(self, message: dict[str, Any]) -> None:
        # An error in a request's syntax is answered without its id; answers are in order, so it is the oldest's.
        request_id = message.get("id", next(iter(self._pending), None))
        request = self._pending.pop(request_id, None) if isinstance(request_id, int) else None
        if request is not None:
            request.response = message
            # Now, not when whoever asked looks at it: events behind the answer may tell newer things.
            self.jobs.answered(request.command, message.get("return"))
            if request.on_end is not None:
                request.on_end()

    def end(self, error: ConnectionLost) -> None:
        """The connection is gone: whoever waits is told."""
        if self.lost is None:
            self.lost = error
        pending = list(self._pending.values())
        self._pending.clear()
        for request in pending:
            if request.on_end is not None:
                request.on_end()
        for queue in tuple(self._queues):
            queue.notify()

    def result(self, request: Request) -> Any:
        """The result of an ended request."""
        if request.response is None:
            desc = self.lost.desc if self.lost is not None else "the connection was closed"
            raise ConnectionLost(desc, request.command, request.arguments)
        return request.result()

    def add_queue(self, queue: EventQueue) -> None:
        """Let ``queue`` have the events that pass its filter, from now on."""
        self._queues.append(queue)

    def remove_queue(self, queue: EventQueue) -> None:
        """No more events for ``queue``; harmless when it has ended already."""
        if queue in self._queues:
            self._queues.remove(queue)

    def require_greeting(self, address: object) -> None:
        """ConnectError unless the server has greeted."""
        if self.greeting is None:
            raise ConnectError(f"{address} closed the connection without a QMP greeting")
