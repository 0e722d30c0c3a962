"""The encrypted end of a connection of :mod:`qobra.testing.nbd_liar`, which lies below the encryption as well."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable


class TlsSocket:
    """What :class:`~qobra.testing.nbd_liar.Connection` needs of a socket, inside TLS. Raises OSError and EOFError.

    ``lies_now`` is asked for each flight of the handshake and for each message whether its records are to be bent.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, rng: random.Random, lies_now: Callable[[], bool]
    ) -> None:
        self.raw = sock
        self._rng = rng
        self._lies_now = lies_now
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        while True:
            try:
                self._session.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._feed()
        self._flush()

    def recv(self, length: int) -> bytes:
        """At least a byte, or nothing at the end."""
        while True:
            try:
                return self._session.read(length)
            except ssl.SSLWantReadError:
                self._feed()
            except ssl.SSLZeroReturnError:
                return b""

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        self._session.write(data)
        self._flush()

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        """As a socket has it."""
        self.raw.setsockopt(level, name, value)

    def close(self) -> None:
        """Leave, with or without a word."""
        try:
            if self._rng.random() < 0.5:
                self._session.unwrap()
        except (OSError, ValueError):
            pass
        try:
            self.raw.sendall(self._outgoing.read())
        except OSError:
            pass
        self.raw.close()

    def _feed(self) -> None:
        data = self.raw.recv(65536)
        if not data:
            raise EOFError
        self._incoming.write(data)

    def _flush(self) -> None:
        data = bytearray(self._outgoing.read())
        if not data:
            return
        if self._rng.random() < 0.1 and self._lies_now():
            match self._rng.randrange(5):
                case 0:
                    self.raw.sendall(data[: self._rng.randrange(len(data))])
                    raise EOFError
                case 1:
                    data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
                case 2:
                    data.extend(bytes(data))
                case 3:
                    data[3:5] = self._rng.choice((b"\0\0", b"\xff\xff", b"\x40\x01"))
                case _:
                    data[:0] = self._rng.choice(
                        (
                            b"\x15\x03\x03\0\x02\x01\0",  # the end, in plain
                            b"\x15\x03\x03\0\x02\x02\x28",
                            b"\x16\x03\x03\0\x04\0\0\0\0",  # please shake hands again
                            b"\x17\x03\x03\0\0",
                            b"\x14\x03\x03\0\x01\x01" * 50,
                            self._rng.randbytes(100),
                        )
                    )
        self.raw.sendall(data)
