"""A guest that writes 4 KiB here and there over NBD as fast as a client in Python can, and knows what it wrote.

Requests go out sixteen at a time, in one call, on each of its connections. Every block says which it is and how often
it was written, so that what is found later, however a server ended, can be told to be old, new or wrong.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from array import array
from typing import TYPE_CHECKING

from qobra.nbd import protocol as p

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 4096
"""Bytes that are written at a time."""
DEPTH = 16
"""Requests in flight on each connection."""
FLUSH_EVERY = 40
"""Batches between two flushes."""


def content(block: int, version: int) -> bytes:
    """What a block holds after it was written ``version`` times; 0 is a block of zeroes."""
    return struct.pack("<II", block, version) * (BLOCK // 8) if version else bytes(BLOCK)


class FastGuest:
    """Writes to the export ``name`` at the unix socket ``path`` from the moment on that it is made.

    ``versions``: how often each block was written before, all of which is safe on the disk.
    """

    def __init__(self, path: Path, name: str, versions: array[int], seed: int, connections: int = 2) -> None:
        self.sent = array("I", versions)
        """The newest version of each block that was sent."""
        self.answered = array("I", versions)
        """The newest one that was written, as the server says."""
        self.flushed = array("I", versions)
        """The newest one that has to outlive the server."""
        self.failures: list[str] = []
        self.requests = 0
        """Writes that were answered."""
        self.is_killed = False
        """Set before the server is: an error after that is none."""
        self._stopping = False
        self._lock = threading.Lock()
        socks = [_connected(path, name) for _ in range(connections)]
        self._threads = [
            threading.Thread(target=self._run, args=(sock, random.Random(seed * 100 + number), number, connections))
            for number, sock in enumerate(socks)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, sock: socket.socket, rng: random.Random, number: int, connections: int) -> None:
        try:
            with sock:
                self._write(sock, rng, number, connections)
        except (OSError, EOFError) as error:
            if not self.is_killed:
                self.failures.append(f"connection {number}: {error}")

    def _write(self, sock: socket.socket, rng: random.Random, number: int, connections: int) -> None:
        mine = range(number, len(self.sent), connections)
        sent, answered = self.sent, self.answered
        batch = 0
        while not self._stopping:
            blocks = rng.sample(mine, DEPTH)
            parts = []
            for block in blocks:
                sent[block] += 1
                parts.append(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_WRITE, block, block * BLOCK, BLOCK))
                parts.append(content(block, sent[block]))
            sock.sendall(b"".join(parts))
            for cookie in _replies(sock, DEPTH):
                answered[cookie] = sent[cookie]
            self.requests += DEPTH
            batch += 1
            if batch % FLUSH_EVERY == 0:
                before = array("I", answered)
                sock.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_FLUSH, 0, 0, 0))
                _replies(sock, 1)
                with self._lock:
                    self.flushed = array("I", map(max, before, self.flushed))

    def stop(self) -> None:
        """Let what is in flight be answered, and end. Raises AssertionError if the server did anything wrong."""
        self._stopping = True
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request was not answered"
        assert not self.failures, self.failures

    def wait_requests(self, count: int) -> None:
        """Wait until so many more writes were answered."""
        wanted, deadline = self.requests + count, time.monotonic() + 60
        while self.requests < wanted:
            assert not self.failures, self.failures
            assert time.monotonic() < deadline, f"{wanted - self.requests} writes were not answered"
            time.sleep(0.002)


def wrong_blocks(disk: bytes, oldest: array[int], newest: array[int]) -> list[str]:
    """What in ``disk`` is no version from ``oldest`` to ``newest`` of its block, in words."""
    wrong = []
    for block in range(len(oldest)):
        data = disk[block * BLOCK : (block + 1) * BLOCK]
        found, version = struct.unpack_from("<II", data)
        if oldest[block] <= version <= newest[block] and data == content(block, version):
            continue
        stamps = sorted(set(struct.unpack(f"<{BLOCK // 4}I", data)))[:6]
        told = f"block {block}: version {version} (of block {found}), not {oldest[block]} to {newest[block]}; {stamps}"
        wrong.append(told)
    return wrong


def _connected(path: Path, name: str) -> socket.socket:
    """A connection to an export of a server that speaks fixed newstyle."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(str(path))
    _exactly(sock, p.GREETING.size)
    body = struct.pack(">I", len(name)) + name.encode() + bytes(2)
    sock.sendall(struct.pack(">I", 3) + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_GO, len(body)) + body)
    kind = 0
    while kind != p.REP_ACK:
        _magic, _option, kind, length = p.OPTION_REPLY.unpack(_exactly(sock, p.OPTION_REPLY.size))
        _exactly(sock, length)
        if kind & p.REP_ERROR_BIT:
            raise OSError(f"the server refuses: {kind:#x}")
    return sock


def _replies(sock: socket.socket, count: int) -> list[int]:
    """The cookies of so many replies. Raises OSError for one that is an error."""
    cookies = []
    for magic, error, cookie in p.SIMPLE_REPLY.iter_unpack(_exactly(sock, count * p.SIMPLE_REPLY.size)):
        if magic != p.SIMPLE_REPLY_MAGIC or error:
            raise OSError(error, f"block {cookie} was not written")
        cookies.append(cookie)
    return cookies


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise EOFError("the server has gone")
        data += more
    return bytes(data)
