"""A server of ``ivshmem-doorbell``: what hands out the memory and the events, as little as one can be."""

from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path


class IvshmemServer:
    """Serves at ``path`` memory of ``size`` bytes, and ``vectors`` events for each machine that comes."""

    def __init__(self, directory: Path, *, size: int = 1 << 20, vectors: int = 2) -> None:
        self.path = str(directory / "ivshmem.sock")
        self.memory = os.memfd_create("ivshmem")
        os.ftruncate(self.memory, size)
        self._vectors = vectors
        self._machines: dict[int, tuple[socket.socket, list[int]]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._next = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave, and let everything go."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for connection, events in self._machines.values():
            connection.close()
            for event in events:
                os.close(event)
        os.close(self.memory)

    def _serve(self) -> None:
        while True:
            try:
                connection, _address = self._listener.accept()
            except OSError:
                return
            id, self._next = self._next, self._next + 1
            events = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(self._vectors)]
            try:
                self._welcome(connection, id, events)
            except OSError:
                continue  # it left at once

    def _welcome(self, connection: socket.socket, id: int, events: list[int]) -> None:
        send(connection, 0)
        send(connection, id)
        send(connection, -1, self.memory)
        for other, (peer, theirs) in self._machines.items():
            for event in events:
                send(peer, id, event)
            for event in theirs:
                send(connection, other, event)
        for event in events:
            send(connection, id, event)
        self._machines[id] = connection, events


def send(connection: socket.socket, number: int, descriptor: int | None = None) -> None:
    """One message."""
    data = struct.pack("<q", number)
    if descriptor is None:
        connection.sendall(data)
    else:
        socket.send_fds(connection, [data], [descriptor])
