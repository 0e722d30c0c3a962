"""The receive buffer of a connection: requests as they come, long payloads apart."""

from __future__ import annotations

import mmap
import select
import socket
from typing import TYPE_CHECKING

from qobra.nbd import protocol as p
from qobra.nbd.transport import Disconnected

if TYPE_CHECKING:
    from qobra.nbd.transport import Transport

SIZE = 256 << 10
LONGEST_INLINE = 64 << 10
"""A write up to this long, with its header, is waited for in the buffer; a longer one gets memory of its own."""
KEPT_PAYLOAD = 4 << 20
"""Longer memory for payloads goes when a shorter one comes."""
_PAYLOAD_START = 64
"""As in :func:`~qobra.block.buffers.new_buffer`."""


class Inbox:
    """Bytes from ``start`` to ``end`` of ``buffer`` have been received and not been taken."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._plain = None if transport.tls else transport.socket
        self.buffer = mmap.mmap(-1, SIZE)
        self.view = memoryview(self.buffer)
        self.start = 0
        self.end = 0
        self.payload = memoryview(b"")
        """What :meth:`take_payload` fills; another one when it is too short."""

    def receive(self) -> int:
        """Wait for more; the number of bytes that came, 0 at the end of the stream."""
        view = self._room()
        count = self._plain.recv_into(view) if self._plain else self._transport.recv_into(view)
        self.end += count
        return count

    def receive_now(self) -> int:
        """Like :meth:`receive` without waiting; -1 if nothing is there."""
        view = self._room()
        if self._plain is not None:
            try:
                count = self._plain.recv_into(view, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return -1
        elif self._transport.has_buffered() or self._transport.wait(select.POLLIN, 0):
            count = self._transport.recv_into(view)
        else:
            return -1
        self.end += count
        return count

    def take_payload(self, length: int) -> memoryview:
        """The payload of the request that ``start`` is at, of which some is in the buffer, and nothing after it.

        Valid until the next call. Raises Disconnected if the client leaves in the middle of it.
        """
        if len(self.payload) < length or len(self.payload) > max(length, KEPT_PAYLOAD):
            # Takes up room only where something has arrived: a header alone is cheap to send.
            self.payload = memoryview(mmap.mmap(-1, length + _PAYLOAD_START))[_PAYLOAD_START:]
        payload = self.payload[:length]
        have = self.end - self.start - p.REQUEST.size
        payload[:have] = self.view[self.start + p.REQUEST.size : self.end]
        self.start = self.end = 0
        if self._plain is None:
            self._transport.fill(payload[have:])
            return payload
        while have < length:
            count = self._plain.recv_into(payload[have:], 0, socket.MSG_WAITALL)
            if not count:
                raise Disconnected("the client left in the middle of a write")
            have += count
        return payload

    def _room(self) -> memoryview:
        """Where to receive to: room for at least the longest inline request from ``start`` on."""
        if self.start == self.end:
            self.start = self.end = 0
        elif SIZE - self.end < LONGEST_INLINE:
            rest = self.end - self.start
            self.buffer.move(0, self.start, rest)
            self.start, self.end = 0, rest
        return self.view[self.end :]
