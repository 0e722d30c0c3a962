"""The client of an ivshmem server: over a Unix socket it learns its id, gets the memory, and events for each peer.

Each message is a number of eight bytes, with a descriptor or without. Nothing of what comes is trusted: ids and the
number of events are bounded, and what is of no use is closed.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.chardev.chardev import UNLIMITED
from qobra.errors import QobraError
from qobra.lean import start_thread

if TYPE_CHECKING:
    from qobra.chardev.chardev import Chardev

_TIMEOUT_SECONDS = 10.0
_MESSAGE = 8
_VERSION, _MEMORY = 0, -1
_MAX_ID, _MAX_PEERS = 0xFFFF, 4096
_ONE = (1).to_bytes(8, "little")


class ServerConnection:
    """The connection by ``chardev``, for a device with ``vectors``; ``rung(vector)`` is called in a thread.

    ``id`` is this machine's. A server that breaks the protocol is heard no more.
    """

    hotswap = False

    def __init__(self, chardev: Chardev, vectors: int, rung: Callable[[int], None]) -> None:
        self._chardev = chardev
        self._vectors = vectors
        self._rung = rung
        self._changed = threading.Condition()
        self._input = bytearray()
        self._peers: dict[int, list[int]] = {}
        self._own: list[int] = []
        self._version: int | None = None
        self.id: int | None = None
        self._memory = -1
        self._failure: str | None = None
        self._wake = (-1, -1)

    # -- life

    def open(self) -> int:
        """Wait for the server; the descriptor of the memory, which is the caller's. Raises QobraError."""
        if not self._chardev.passes_fds:
            raise QobraError(f"chardev '{self._chardev.id}' cannot pass file descriptors")
        self._wake = os.pipe2(os.O_CLOEXEC)
        self._chardev.attach(self)
        with self._changed:
            answered = self._changed.wait_for(lambda: self._memory >= 0 or self._failure is not None, _TIMEOUT_SECONDS)
            failure = self._failure or (None if answered else "the server does not answer")
            memory, self._memory = self._memory, -1
        if failure is not None:
            self.close()
            raise QobraError(failure)
        start_thread(self._listen, name=f"ivshmem {self._chardev.id}")
        return memory

    def close(self) -> None:
        """Hear no more, and let all descriptors go."""
        self._chardev.detach()
        with self._changed:
            self._failure = self._failure or "closed"
            for descriptors in (*self._peers.values(), self._own, [self._memory]):
                _close(descriptors)
            self._peers.clear()
            self._own, self._memory = [], -1
            if self._wake[1] >= 0:
                os.close(self._wake[1])  # the listening thread ends
                self._wake = (self._wake[0], -1)

    def ring(self, peer: int, vector: int) -> None:
        """Signal ``vector`` of ``peer``, if there are such."""
        with self._changed:
            descriptors = self._own if peer == self.id else self._peers.get(peer, [])
            if vector < len(descriptors):
                poller = select.poll()
                poller.register(descriptors[vector], select.POLLOUT)
                try:
                    if poller.poll(0):  # one that was rung too often has been rung
                        os.write(descriptors[vector], _ONE)
                except OSError:
                    pass

    # -- front end of the character device

    def can_receive(self) -> int:
        """All that comes at a time: its end is where a descriptor belongs."""
        return UNLIMITED

    def event(self, name: str) -> None:
        """The server left."""
        if name == "closed":
            with self._changed:
                self._failure = self._failure or "the server closed the connection"
                self._changed.notify_all()

    def receive(self, data: bytes) -> None:
        """Messages. The kernel lets a descriptor end what is read at once: it belongs to the last one."""
        descriptors = self._chardev.take_fds()
        with self._changed:
            if self._failure is not None:
                _close(descriptors)
                return
            self._input += data
            while len(self._input) >= _MESSAGE and self._failure is None:
                number = int.from_bytes(self._input[:_MESSAGE], "little", signed=True)
                del self._input[:_MESSAGE]
                self._take(number, descriptors.pop(0) if descriptors and not self._input else -1)
            _close(descriptors)
            self._changed.notify_all()

    def _take(self, number: int, descriptor: int) -> None:
        kept = False
        if self._version is None:
            self._version = number
            if number != _VERSION:
                self._failure = f"server sent version {number}, expecting {_VERSION}"
        elif self.id is None:
            self.id = number
            if not 0 <= number <= _MAX_ID:
                self._failure = "server sent invalid ID message"
        elif number == _MEMORY:
            kept = self._memory < 0 and descriptor >= 0
            self._memory = descriptor if kept else self._memory
        elif not 0 <= number <= _MAX_ID:
            self._failure = f"server sent invalid message {number}"
        elif descriptor < 0:
            _close(self._peers.pop(number, []))
        elif number == self.id:
            kept = len(self._own) < self._vectors
            if kept:
                self._own.append(descriptor)
                self._poke()
        elif number in self._peers or len(self._peers) < _MAX_PEERS:
            vectors = self._peers.setdefault(number, [])
            kept = len(vectors) < self._vectors
            if kept:
                vectors.append(descriptor)
        if not kept:
            _close([descriptor])

    # -- what others signal

    def _poke(self) -> None:
        if self._wake[1] >= 0:
            os.write(self._wake[1], b"\0")

    def _listen(self) -> None:
        wake = self._wake[0]
        poller = select.poll()
        poller.register(wake, select.POLLIN)
        known: list[int] = []
        while True:
            with self._changed:
                for descriptor in self._own[len(known) :]:
                    known.append(descriptor)
                    poller.register(descriptor, select.POLLIN)
            for descriptor, _what in poller.poll():
                if descriptor == wake:
                    if not os.read(wake, 64):
                        os.close(wake)
                        return
                    continue
                with self._changed:
                    if descriptor not in self._own or not self._drain(descriptor):
                        poller.unregister(descriptor)
                        continue
                self._rung(known.index(descriptor))

    def _drain(self, descriptor: int) -> bool:
        try:
            return bool(os.read(descriptor, 8))
        except OSError:
            return False


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)
