"""What every kind of export is: a user of a node, with an id, that clients outside the process come through."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from qobra.block import permissions
from qobra.block.activation import activate
from qobra.block.backend import BlockBackend
from qobra.errors import QobraError
from qobra.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode

kinds: Registry[type[Export]] = Registry("block export", ["qobra.block.export"])

_MOMENT = 5e-3
"""Seconds that a request of a client that has to leave may take before whoever waits for it goes on."""


class ExportClient(Protocol):
    """Somebody who uses an export right now."""

    def disconnect(self) -> None:
        """Leave soon, whatever is in flight; does not wait. Any thread may call."""
        ...

    def hung_up(self) -> bool:
        """Whether there is nobody at the other end, and the client's thread has only not got to that yet."""
        ...


class Export:
    """One export. Made by :meth:`Exports.add`, which checks what is the same for all kinds.

    A kind is a subclass in a module of its own, registered under its BlockExportType. It implements :meth:`start`, and
    tells of its clients with :meth:`attach` and :meth:`detach`.
    """

    type_name: ClassVar[str] = ""

    def __init__(self, layer: BlockLayer, options: dict[str, Any], node: BlockNode, writable: bool) -> None:
        self.layer = layer
        self.id: str = options["id"]
        self.options = options
        self.writable = writable
        self.writethrough: bool = options.get("writethrough", False)
        self.shutting_down = False
        self.when_gone: list[Callable[[], None]] = []
        """Called in the strand once the export is gone."""
        self.backend = BlockBackend(layer)
        self._clients: set[ExportClient] = set()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        perm = permissions.CONSISTENT_READ | (permissions.WRITE if writable else 0)
        if node.inactive:
            activate(layer, (node,))
        self._enter_iothread(node, options)
        self.backend.insert(node, perm)

    def _enter_iothread(self, node: BlockNode, options: dict[str, Any]) -> None:
        name, fixed = options.get("iothread"), options.get("fixed-iothread", False)
        if name is not None:
            try:
                self.layer.set_iothread(node, required_iothread(self.layer, name))
            except QobraError:
                if fixed:
                    raise
        self.backend.iothread, self.backend.fixed_iothread = node.iothread, fixed

    def start(self) -> None:
        """Let clients in. Raises QobraError where that cannot be; the export is then dropped."""
        raise NotImplementedError

    def stop(self) -> None:
        """Let no more clients in; those that are there are disconnected besides."""

    def release(self) -> None:
        """The last client has left: give back what :meth:`start` took. The node is let go of afterwards."""

    @property
    def in_use(self) -> bool:
        """Whether clients are there."""
        return bool(self._clients)

    def info(self) -> dict[str, Any]:
        """The export as a BlockExportInfo."""
        return {
            "id": self.id,
            "type": self.type_name,
            "node-name": self.backend.node.node_name if self.backend.node else "",
            "shutting-down": self.shutting_down,
        }

    # Clients come and go in their own threads -------------------------------------------------------------------------

    def attach(self, client: ExportClient) -> None:
        """``client`` uses the export from now on. Raises QobraError when it is being shut down."""
        with self._lock:
            if self.shutting_down:
                raise QobraError(f"Export '{self.id}' is already shutting down")
            self._clients.add(client)

    def enter_thread(self) -> None:
        """The calling thread serves this export from now on: on the processors of the node's iothread, if it is in one.

        Whoever confines an iothread means what is done for the users of the node. Threads that this one starts follow.
        """
        node = self.backend.node
        thread_id = node.iothread.thread_id if node is not None and node.iothread is not None else 0
        if thread_id:
            try:
                os.sched_setaffinity(0, os.sched_getaffinity(thread_id))
            except OSError:
                pass  # it has ended, or may run where we may not

    def detach(self, client: ExportClient) -> None:
        """``client`` has left. Must not be called inside a slot."""
        with self._lock:
            self._clients.discard(client)
            last = self.shutting_down and not self._clients
            self._idle.notify_all()
        if last:
            self.layer.control.post(self.layer.exports.finish, self)

    def request_shutdown(self) -> None:
        """Begin to go; :meth:`Exports.finish` runs once the last client has left, after whoever asks has his answer.

        Called in the strand.
        """
        with self._lock:
            self.shutting_down = True
            clients = tuple(self._clients)
        self.stop()
        for client in clients:
            client.disconnect()
        if not clients:
            self.layer.control.post(self.layer.exports.finish, self)

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until the last client has left; False if ``timeout`` seconds passed first."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._clients, timeout)

    def wait_left(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds until the last client has left, unless one has a request that takes longer."""
        deadline = time.monotonic() + timeout
        while not self.wait_idle(_MOMENT):
            if time.monotonic() > deadline or self.layer.flight.is_inside(self.backend.gate):
                return

    def wait_hung_up(self, timeout: float) -> None:
        """:meth:`wait_left` where all clients have hung up."""
        with self._lock:
            gone = all(client.hung_up() for client in self._clients)
        if gone:
            self.wait_left(timeout)


def required_iothread(layer: BlockLayer, name: str) -> Any:
    """The iothread object ``name``, which may be a path to it. Raises QobraError."""
    iothread = layer.find_iothread(name)
    if iothread is None:
        raise QobraError(f'iothread "{name}" not found')
    return iothread
