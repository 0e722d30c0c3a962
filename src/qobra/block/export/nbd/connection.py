"""One client: a thread that shakes hands, then serves its requests until one of the two has had enough."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, cast

from qobra.block.export.nbd.helpers import Helpers, Pace
from qobra.block.export.nbd.requests import Requests, Work
from qobra.block.export.nbd.serving import new_send_lock, serve
from qobra.errors import QobraError
from qobra.nbd import protocol as p
from qobra.nbd.negotiation import Negotiation
from qobra.nbd.sockets import hung_up
from qobra.nbd.transport import TlsTransport, Transport
from qobra.report import report_error

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from qobra.block.export.nbd import NbdExport
    from qobra.block.export.nbd.server import NbdServer
    from qobra.block.slots import Slot
    from qobra.nbd.negotiation import ServedExport

    Buffer = bytes | bytearray | memoryview

HANDSHAKE_S = 30.0
"""Seconds that a client may take until it has chosen an export, TLS included."""
PARALLEL_NS = 80_000
"""Reads that take longer are worth a helper each where several are there."""
_QUESTIONS = (p.CMD_READ, p.CMD_CACHE, p.CMD_BLOCK_STATUS)
"""Commands that change nothing."""


class Connection:
    """See the module. An :class:`~qobra.block.export.export.ExportClient` once it has chosen its export."""

    export: NbdExport
    requests: Requests

    def __init__(self, server: NbdServer, sock: socket.socket) -> None:
        self._server = server
        self.transport = Transport(sock)
        self.transport.deadline = time.monotonic() + HANDSHAKE_S
        self._socket = sock
        self.structured = False
        self.has_chosen = False
        """Whether the client has chosen its export."""
        self._attached = self._disconnected = False
        self.send_lock = new_send_lock()
        self._asking = threading.Lock()
        self._helpers: Helpers | None = None
        # By command number; the last one stands for all that are unknown.
        self._paces = [Pace() for _ in range(p.CMD_BLOCK_STATUS + 2)]
        self._thread = threading.Thread(target=self._run, name="nbd-connection", daemon=True)

    def start(self) -> None:
        """Serve the client in a thread."""
        self._thread.start()

    def disconnect(self) -> None:
        """See :class:`~qobra.block.export.export.ExportClient`."""
        # By the socket, which stays the same when TLS starts, in whatever state the connection is.
        self._disconnected = True
        Transport.shutdown(self.transport)

    def hung_up(self) -> bool:
        """See :class:`~qobra.block.export.export.ExportClient`."""
        return hung_up(self._socket)

    # Replies ----------------------------------------------------------------------------------------------------------

    def send(self, parts: Sequence[Buffer]) -> None:
        """Send one or more whole replies. Raises QobraError when the client is gone. Not inside a slot."""
        with self.send_lock:
            self.transport.send(parts)

    # Requests off the fast path ---------------------------------------------------------------------------------------

    def is_slow(self, command: int, alone: bool) -> bool:
        """Whether a helper should do a request, as those like it have taken long lately.

        Reads are handed over sooner where one is not ``alone``: what they wait for can be waited for together.
        """
        pace = self._pace(command)
        return pace.slow or (command == p.CMD_READ and not alone and pace.mean_ns > PARALLEL_NS)

    def perform(self, work: Work, slot: Slot, active: int = 1) -> Sequence[Buffer]:
        """Do ``work`` in the calling thread and return the reply, noting how long it took.

        What was only asked for is left out once nobody can be told: thousands of questions may have come.
        """
        if work.command == p.CMD_BLOCK_STATUS:
            # One at a time, and first of each client's: they take long and hold the interpreter, so that hundreds of
            # them at once would keep it from everybody else.
            with self._asking, self.export.asking:
                return self._perform(work, slot, 1)
        return self._perform(work, slot, active)

    def _perform(self, work: Work, slot: Slot, active: int) -> Sequence[Buffer]:
        if self._disconnected and work.command in _QUESTIONS:
            return ()
        begin_ns = time.monotonic_ns()
        reply = self.requests.perform(work, slot)
        self._pace(work.command).note(time.monotonic_ns() - begin_ns, active)
        return reply

    def hand_over(self, work: Work) -> None:
        """Let a helper do ``work`` and send the reply. Not inside a slot."""
        if self._helpers is None:
            self._helpers = Helpers("nbd-helper", self._help, self._retire_helper)
        if work.payload:
            work = work._replace(payload=bytes(work.payload))
        self._helpers.submit(work)

    def _pace(self, command: int) -> Pace:
        return self._paces[min(command, p.CMD_BLOCK_STATUS + 1)]

    def _help(self, work: Work, active: int) -> None:
        try:
            self.send(self.perform(work, self.export.backend.slot(), active))
        except QobraError:
            self.disconnect()  # the loop sees the end of the stream

    def _retire_helper(self) -> None:
        self.export.backend.slot().close()

    # The thread -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except QobraError:
            pass  # the client is gone, or talks nonsense: no one to tell
        finally:
            self.disconnect()
            self._socket.close()
            self._server.ended(self)

    def _serve(self) -> None:
        negotiation = Negotiation(
            self.transport, self._server, tls=self._server.tls, authorize=self._authorize, enter=self._enter
        )
        try:
            try:
                entered = negotiation.run()
            except QobraError as error:
                if not self._disconnected:
                    report_error(f"option negotiation failed: {error}")
                raise
            if entered is None:
                return
            self.transport = entered.transport
            self.transport.deadline = None
            self.structured = entered.structured
            self.requests = Requests(self.export, structured=entered.structured, contexts=entered.contexts)
            slot = self.export.backend.new_slot()
            try:
                serve(self, slot)
            finally:
                slot.close()
                if self._helpers is not None:
                    self._helpers.close()
        finally:
            if self._attached:
                self.export.detach(self)

    def _enter(self, export: ServedExport) -> None:
        # Before the client knows, so that it is never in an export that believes itself unused.
        self.export = cast("NbdExport", export)
        self.has_chosen = True
        self.export.attach(self)
        self._attached = True
        self.export.enter_thread()

    def _authorize(self, transport: TlsTransport) -> bool:
        return self._server.authorized(transport.peer_certificate())
