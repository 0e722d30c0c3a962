"""The batch loop of a connection in the form that there is: compiled where that was built, else pure Python.

The compiled form (``qobra.native.nbd``) receives, serves and sends plain hits without the GIL, for as long as nothing
else comes. What is no plain hit comes back to be done as in :mod:`loop`, by the same methods. Under TLS it serves a
batch at a time, between Python's decryption and encryption.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from qobra.block.export.nbd.inbox import KEPT_PAYLOAD
from qobra.block.export.nbd.loop import Loop
from qobra.block.export.nbd.requests import Work
from qobra.errors import QobraError
from qobra.native import compiled
from qobra.nbd import protocol as p
from qobra.nbd.transport import Disconnected

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from qobra.block.export.nbd.connection import Connection
    from qobra.block.export.nbd.places import Pieces
    from qobra.block.slots import Slot

native: Any = compiled("nbd")
"""The compiled form, or None."""
use_compiled = native is not None


def new_send_lock() -> AbstractContextManager[Any]:
    """A lock for whoever sends on a connection."""
    return threading.Lock() if native is None else native.Lock()


def serve(connection: Connection, slot: Slot) -> None:
    """Serve requests until the client disconnects. Raises QobraError when it breaks the protocol or the connection."""
    loop = CompiledLoop(connection, slot) if use_compiled else Loop(connection, slot)
    try:
        while loop.batch():
            pass
    finally:
        loop.close()


class CompiledLoop(Loop):
    """The compiled loop, and what it leaves to Python."""

    def __init__(self, connection: Connection, slot: Slot) -> None:
        super().__init__(connection, slot)
        assert native is not None
        export = connection.export
        self._tls = connection.transport.tls
        self._batches = native.Batches(
            connection.send_lock,
            -1 if self._tls else connection.transport.socket.fileno(),
            self.inbox.buffer,
            self.arena,
            slot,
            structured=connection.structured,
            writable=export.writable and not export.writethrough,
        )

    def close(self) -> None:
        self._batches.close()

    def batch(self) -> bool:
        """Serve until there is something else than plain hits, and do that; False when the client has left."""
        batches = self._batches
        with self.slot:
            places = self.backend.table().places
        reason = self._serve_decrypted(places) if self._tls else batches.run(places)
        if reason == native.IS_BROKEN:
            raise Disconnected(f"NBD connection failed: {os.strerror(batches.error)}", errno=batches.error)
        if reason == native.IS_NONSENSE:
            magic = int.from_bytes(self.inbox.view[batches.start : batches.start + 4], "big")
            raise QobraError(f"invalid magic (got 0x{magic:x})")
        found = batches.take_aside()
        if found:
            self._serve_missed(found)
        if reason == native.IS_LONG_WRITE:
            self._serve_long_write()
        return bool(reason != native.IS_LEFT)

    def _serve_decrypted(self, places: Any) -> int:
        """What :meth:`Batches.run` does, for one batch that comes and goes through Python."""
        self._placement.look()
        inbox, batches = self.inbox, self._batches
        if not batches.again:
            inbox.start, inbox.end = batches.start, batches.end
            count = inbox.receive_now() if batches.cold else inbox.receive()
            batches.start, batches.end = inbox.start, inbox.end
            if not count:
                return int(native.IS_LEFT)
            if count < 0:
                reason = batches.serve_cold(places)
                if batches.position:
                    self._send(batches.position)
                return int(reason)
        reason = batches.serve(places)
        if batches.position:
            self._send(batches.position)
        return int(reason)

    def _serve_missed(self, found: list[tuple[int, int, int, int, int, int | bytes]]) -> None:
        """Do what was no plain hit: once the table knows more, or as any other request."""
        position = 0
        with self.slot:
            table = self._begin_batch()
            for command, flags, cookie, offset, length, payload in found:
                if isinstance(payload, bytes):
                    self._aside.append(Work(command, flags, cookie, offset, length, payload))
                elif command == p.CMD_WRITE:
                    data = self.inbox.view[payload : payload + length]
                    position = self._write(table, flags, cookie, offset, data, position)
                elif command == p.CMD_READ:
                    position = self._read(table, flags, cookie, offset, length, position)
                else:
                    self._aside.append(Work(command, flags, cookie, offset, length))
        self._finish(position)

    def _serve_long_write(self) -> None:
        """Do a write whose payload is too long for the inbox, and may have to be received first."""
        inbox, batches = self.inbox, self._batches
        received = batches.take_long()
        if received is None:
            inbox.start, inbox.end = batches.start, batches.end
            _magic, flags, command, cookie, offset, length = p.REQUEST.unpack_from(inbox.buffer, inbox.start)
            payload = self._receive_payload(Work(command, flags, cookie, offset, length))
            batches.start, batches.end = inbox.start, inbox.end
            if len(inbox.payload) <= KEPT_PAYLOAD:
                batches.set_payload(inbox.payload)
        else:
            flags, cookie, offset, length = received
            payload = inbox.payload[:length]
        with self.slot:
            position = self._write(self._begin_batch(), flags, cookie, offset, payload, 0)
        self._finish(position)

    def _read_ahead(self, work: Work, pieces: Pieces) -> None:
        if not self._batches.put_cold(work.flags, work.cookie, work.offset, work.length):
            self._aside.append(work)
            return
        for fd, host, size in pieces:
            if fd >= 0:
                os.posix_fadvise(fd, host, size, os.POSIX_FADV_WILLNEED)
