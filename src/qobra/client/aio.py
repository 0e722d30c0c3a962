"""The client for asyncio programs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from qobra.client.aio_commands import Commands
from qobra.client.aio_events import EventStream
from qobra.client.aio_jobs import Jobs
from qobra.client.errors import ClientError, CommandError, CommandNotFound, ConnectError, ConnectionLost
from qobra.client.events import DEFAULT_LIMIT, Predicate
from qobra.client.exchange import Exchange, Request
from qobra.client.transport import READ_SIZE, Link, Target, open_link, send_with_fds


class Client(Commands):
    """A connection to a QMP server, with a method for each command of the schema::

        async with await Client.connect("/run/vm.sock") as client:
            await client.blockdev_add({"driver": "null-co", "node-name": "disk", "size": 1 << 30})
            await client.blockdev_backup(job_id="copy", device="disk", target="backup", sync="full")
            await client.jobs["copy"].wait()

    A method's keyword arguments are the command's arguments with underscores for hyphens; None (or leaving one out)
    is absence. A server need not have every command: one that it lacks raises CommandNotFound, and :meth:`supports`
    tells beforehand.

    Any number of tasks may use one client at the same time.
    """

    def __init__(self, link: Link) -> None:
        """Use :meth:`connect`."""
        self._link = link
        self._exchange = Exchange()
        self._write_lock = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._greeted = asyncio.Event()
        self._failure: BaseException | None = None
        self._commands: frozenset[str] | None = None
        self._can_oob = False
        self.jobs = Jobs(self)

    @classmethod
    async def connect(
        cls, target: Target, *, negotiate: bool = True, oob: bool = True, timeout: float = 30.0
    ) -> Client:
        """Connect to ``target`` (see :mod:`qobra.client.address`), read the greeting and negotiate.

        ``negotiate=False`` leaves the connection in negotiation mode; ``oob`` turns out-of-band execution on where
        the server has it. Raises ConnectError, also when there is no greeting within ``timeout`` seconds.
        """
        link = await asyncio.to_thread(open_link, target, timeout)
        link.socket.setblocking(False)
        client = cls(link)
        client._reader = asyncio.create_task(client._read())
        try:
            try:
                await asyncio.wait_for(client._greeted.wait(), timeout)
            except TimeoutError:
                raise ConnectError(f"{link.name} did not greet within {timeout:g} seconds") from None
            if isinstance(client._failure, ClientError) and client._exchange.greeting is None:
                raise client._failure
            client._exchange.require_greeting(link.name)
            if negotiate:
                await client._negotiate(oob)
        except BaseException:
            await client.disconnect()
            raise
        return client

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.disconnect()

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
        """The same commands, executed out of band: they overtake those that wait. ``await client.oob.yank(...)``."""
        return _View(self, oob=True)

    def passing(self, *fds: int) -> Commands:
        """The same commands, with ``fds`` passed along: ``await client.passing(fd).getfd(fdname="disk")``."""
        return _View(self, fds=fds)

    def events(self, *names: str, where: Predicate | None = None, limit: int = DEFAULT_LIMIT) -> EventStream:
        """The events from now on as an async iterator, those in ``names`` only if there are any::

            with client.events("BLOCK_IO_ERROR", where=lambda e: e.data["device"] == "disk") as errors:
                async for event in errors: ...

        It ends when the connection does. See :class:`~qobra.client.aio_events.EventStream`.
        """
        return EventStream(self._exchange, names, where, limit)

    async def execute(
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
        request, data = self._exchange.begin(command, arguments, oob)
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        request.on_end = lambda: None if answered.done() else answered.set_result(None)
        try:
            async with asyncio.timeout(timeout):
                await self._send(data, fds, request)
                await answered
        finally:
            self._exchange.abandon(request)
        return self._exchange.result(request)

    async def supports(self, command: str) -> bool:
        """Whether the server has ``command``. It is asked once."""
        if self._commands is None:
            try:
                entries = await self.execute("query-commands")
            except CommandNotFound:
                entries = []
            self._commands = frozenset(entry["name"] for entry in entries)
        return command in self._commands

    async def disconnect(self) -> None:
        """Close the connection. Commands still unanswered raise ConnectionLost, streams end."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._end(ConnectionLost("the client has disconnected"))

    async def _call(self, command: str, arguments: dict[str, Any]) -> Any:
        return await self.execute(command, arguments)

    async def _negotiate(self, oob: bool) -> None:
        enable = ["oob"] if oob and "oob" in self._exchange.capabilities else []
        try:
            await self.execute("qmp_capabilities", {"enable": enable} if enable else None)
        except (CommandError, ConnectionLost) as error:
            raise ConnectError(f"{self._link.name}: negotiation failed: {error.desc}") from error
        self._can_oob = bool(enable)

    async def _send(self, data: bytes, fds: Sequence[int], request: Request) -> None:
        # A message cut in the middle would spoil the connection for all, so one that is begun is sent whole, by a task
        # that goes on, and keeps others from writing, when whoever waits for the answer gives up.
        sending = asyncio.create_task(self._send_whole(data, fds))
        sending.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            await asyncio.shield(sending)
        except OSError as error:
            desc = f"{self._link.name}: {error.strerror}"
            raise ConnectionLost(desc, request.command, request.arguments) from None

    async def _send_whole(self, data: bytes, fds: Sequence[int]) -> None:
        loop = asyncio.get_running_loop()
        # Ours until the message is sent, whatever the caller does with them meanwhile.
        owned = [os.dup(fd) for fd in fds]
        try:
            async with self._write_lock:
                while owned:
                    try:
                        data = data[send_with_fds(self._link.socket, data, owned) :]
                        break
                    except BlockingIOError:
                        await self._writable()
                await loop.sock_sendall(self._link.socket, data)
        finally:
            for fd in owned:
                os.close(fd)

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_writer(self._link.socket, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            loop.remove_writer(self._link.socket)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        reason = f"{self._link.name} closed the connection"
        try:
            while data := await loop.sock_recv(self._link.socket, READ_SIZE):
                self._exchange.receive(data)
                if self._exchange.greeting is not None:
                    self._greeted.set()
        except OSError as error:
            reason = f"{self._link.name}: {error.strerror}"
        except ClientError as error:
            self._failure = error
            reason = f"{self._link.name}: {error.desc}"
        self._end(ConnectionLost(reason))

    def _end(self, error: ConnectionLost) -> None:
        self._exchange.end(error)
        self._greeted.set()
        self._link.close()


class _View(Commands):
    """A client's commands, sent in another way."""

    def __init__(self, client: Client, *, oob: bool = False, fds: Sequence[int] = ()) -> None:
        self._client = client
        self._oob = oob
        self._fds = fds

    async def _call(self, command: str, arguments: dict[str, Any]) -> Any:
        return await self._client.execute(command, arguments, oob=self._oob, fds=self._fds)
