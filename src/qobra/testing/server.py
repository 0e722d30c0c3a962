"""A QMP server in the test's own process: real commands, real events, milliseconds to start."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import threading
from types import TracebackType
from typing import Any

from qobra.chardev.backend.socket import SocketChardev
from qobra.client.sync import Client
from qobra.clock import Clock
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.qmp.events import EventRouter
from qobra.testing.faults import Faults, FaultySession


class QobraServer:
    """A machine that serves QMP on a unix socket, to any number of clients at a time::

        with QobraServer() as server:
            run_my_backup_tool(server.address)
            assert server.execute("query-jobs") == []

    ``capabilities`` are the machine's, ``clock`` may be a :class:`~qobra.clock.SimulatedClock`, and ``seed`` makes what
    is random repeatable. Image files and the like are the test's to keep, in :attr:`directory` if it likes.
    ``faults`` lets commands fail, be late, or lose the connection (:class:`~qobra.testing.faults.Faults`).
    """

    def __init__(
        self,
        *,
        capabilities: frozenset[str] = frozenset(),
        clock: Clock | None = None,
        seed: int | None = 0,
        name: str | None = None,
    ) -> None:
        self.machine = Machine(capabilities=capabilities, clock=clock, seed=seed, name=name)
        # Short: the path of a unix socket has room for about a hundred bytes.
        self.directory = tempfile.mkdtemp(prefix="qobra-")
        self.path = os.path.join(self.directory, "qmp")
        self.faults = Faults()
        self._router = EventRouter(self.machine)
        self._devices: list[SocketChardev] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        self._acceptor = threading.Thread(target=self._accept, name="accept", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> QobraServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Where to connect, for :meth:`qobra.client.Client.connect` and most other clients."""
        return f"unix:{self.path}"

    def connect(self) -> Client:
        """A new client of this server."""
        return Client.connect(self.address)

    def execute(self, command: str, **arguments: Any) -> Any:
        """Carry a command out without a client and return what it returns, ``{}`` for nothing. Raises QobraError.

        Underscores in names of arguments stand for hyphens.
        """
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        returned = dispatch.call(self.machine, command, given)
        return {} if returned is None else returned

    def emit(self, event: str, **data: Any) -> None:
        """Send an event to the clients, as if something had happened; underscores stand for hyphens."""
        members = {name.replace("_", "-"): value for name, value in data.items()}
        with self.machine.control:
            self.machine.events.emit(event, members)

    def wait_for_quit(self, timeout: float) -> bool:
        """Wait for a client's ``quit``; False if none comes within ``timeout`` seconds."""
        return self.machine.wait_for_exit(timeout)

    def close(self) -> None:
        """End the server: its clients lose their connections."""
        if self._listener.fileno() < 0:
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        self.faults.clear()
        for device in self._devices:
            device.close()
        self._router.close()
        self.machine.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _address = self._listener.accept()
            except OSError:
                return
            self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        def disconnect() -> None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

        device = SocketChardev.on_socket(self.machine, f"qmp{connection.fileno()}", connection)
        self._devices.append(device)
        device.attach(FaultySession(self.machine, device, self._router, self.faults, disconnect))
