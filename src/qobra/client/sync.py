"""The client for programs without asyncio: the same commands, events and jobs, blocking.

It has no thread of its own: events are taken in while a call waits for something. Use a client from one thread at
a time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from qobra.client.errors import ClientError, CommandError, CommandNotFound, ConnectError, ConnectionLost
from qobra.client.events import DEFAULT_LIMIT, Predicate
from qobra.client.exchange import Exchange
from qobra.client.sync_commands import Commands
from qobra.client.sync_events import EventStream
from qobra.client.sync_jobs import Jobs
from qobra.client.transport import READ_SIZE, Link, Target, open_link, send_with_fds


class Client(Commands):
    """A connection to a QMP server, with a method for each command of the schema::

        with Client.connect("/run/vm.sock") as client:
            client.blockdev_backup(job_id="copy", device="disk", target="backup", sync="full")
            client.jobs["copy"].wait()

    See :class:`qobra.client.aio.Client`, which this mirrors.
    """

    def __init__(self, link: Link) -> None:
        """Use :meth:`connect`."""
        self._link = link
        self._exchange = Exchange()
        self._commands: frozenset[str] | None = None
        self._can_oob = False
        self.jobs = Jobs(self)

    @classmethod
    def connect(cls, target: Target, *, negotiate: bool = True, oob: bool = True, timeout: float = 30.0) -> Client:
        """Connect to ``target`` (see :mod:`qobra.client.address`), read the greeting and negotiate.

        ``negotiate=False`` leaves the connection in negotiation mode; ``oob`` turns out-of-band execution on where
        the server has it. Raises ConnectError, also when there is no greeting within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        link = open_link(target, timeout)
        client = cls(link)
        try:
            while client._exchange.greeting is None and client._exchange.lost is None:
                try:
                    client._receive(deadline)
                except TimeoutError:
                    raise ConnectError(f"{link.name} did not greet within {timeout:g} seconds") from None
            client._exchange.require_greeting(link.name)
            if negotiate:
                client._negotiate(oob)
        except BaseException:
            client.disconnect()
            raise
        return client

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()

    @property
    def greeting(self) -> dict[str, Any]:
        """What the server greeted with: the member ``QMP`` of its first message."""
        return self._exchange.greeting or {}

    @property
    def version(self) -> tuple[int, int, int]:
        """The server's version, (7, 2, 22) for QEMU 7.2.22."""
        return self._exchange.version

    @property
    def connected(self) -> bool:
        """Whether commands can be sent."""
        return self._exchange.lost is None

    @property
    def oob(self) -> Commands:
        """The same commands, executed out of band."""
        return _View(self, oob=True)

    def passing(self, *fds: int) -> Commands:
        """The same commands, with ``fds`` passed along."""
        return _View(self, fds=fds)

    def events(self, *names: str, where: Predicate | None = None, limit: int = DEFAULT_LIMIT) -> EventStream:
        """The events from now on as an iterator, those in ``names`` only if there are any."""
        return EventStream(self._exchange, self._receive, names, where, limit)

    def execute(
        self,
        command: str,
        arguments: Any = None,
        *,
        oob: bool = False,
        fds: Sequence[int] = (),
        timeout: float | None = None,
    ) -> Any:
        """Send a command by its wire name and return what it returns.

        Raises a CommandError, ConnectionLost, or TimeoutError after ``timeout`` seconds (the server may still carry
        the command out).
        """
        if oob and not self._can_oob:
            raise ClientError("the server does not execute commands out of band")
        deadline = time.monotonic() + timeout if timeout is not None else None
        request, data = self._exchange.begin(command, arguments, oob)
        try:
            self._send(data, fds)
            while request.response is None and self._exchange.lost is None:
                self._receive(deadline)
        finally:
            self._exchange.abandon(request)
        return self._exchange.result(request)

    def supports(self, command: str) -> bool:
        """Whether the server has ``command``. It is asked once."""
        if self._commands is None:
            try:
                entries = self.execute("query-commands")
            except CommandNotFound:
                entries = []
            self._commands = frozenset(entry["name"] for entry in entries)
        return command in self._commands

    def disconnect(self) -> None:
        """Close the connection."""
        self._exchange.end(ConnectionLost("the client has disconnected"))
        self._link.close()

    def _call(self, command: str, arguments: dict[str, Any]) -> Any:
        return self.execute(command, arguments)

    def _negotiate(self, oob: bool) -> None:
        enable = ["oob"] if oob and "oob" in self._exchange.capabilities else []
        try:
            self.execute("qmp_capabilities", {"enable": enable} if enable else None)
        except (CommandError, ConnectionLost) as error:
            raise ConnectError(f"{self._link.name}: negotiation failed: {error.desc}") from error
        self._can_oob = bool(enable)

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        try:
            self._link.socket.settimeout(None)
            if fds:
                data = data[send_with_fds(self._link.socket, data, fds) :]
            self._link.socket.sendall(data)
        except OSError as error:
            self._exchange.end(ConnectionLost(f"{self._link.name}: {error.strerror}"))

    def _receive(self, deadline: float | None) -> None:
        """Take in what the server sends next; TimeoutError once ``deadline`` (of time.monotonic) has passed."""
        timeout = max(0.0, deadline - time.monotonic()) if deadline is not None else None
        try:
            self._link.socket.settimeout(timeout)
            data = self._link.socket.recv(READ_SIZE)
            reason = f"{self._link.name} closed the connection"
        except (BlockingIOError, TimeoutError):
            raise TimeoutError("the server did not answer in time") from None
        except OSError as error:
            data, reason = b"", f"{self._link.name}: {error.strerror}"
        if not data:
            self._exchange.end(ConnectionLost(reason))
            return
        try:
            self._exchange.receive(data)
        except ClientError as error:
            self._exchange.end(ConnectionLost(f"{self._link.name}: {error.desc}"))
            raise


class _View(Commands):
    """A client's commands, sent in another way."""

    def __init__(self, client: Client, *, oob: bool = False, fds: Sequence[int] = ()) -> None:
        self._client = client
        self._oob = oob
        self._fds = fds

    def _call(self, command: str, arguments: dict[str, Any]) -> Any:
        return self._client.execute(command, arguments, oob=self._oob, fds=self._fds)
