"""TLS over memory buffers, so that one lock keeps reading and writing threads apart and neither waits in it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from qobra.errors import QobraError

if TYPE_CHECKING:
    from collections.abc import Callable

_READ_SIZE = 65536


class TlsLayer:
    """One side of a TLS session.

    ``check_peer`` is called with the session once the handshake is over, to refuse a peer with a QobraError.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server: bool,
        hostname: str | None = None,
        check_peer: Callable[[ssl.SSLObject], None] | None = None,
    ) -> None:
        self._from_peer = ssl.MemoryBIO()
        self._to_peer = ssl.MemoryBIO()
        self._session = context.wrap_bio(self._from_peer, self._to_peer, server, None if server else hostname)
        self._check_peer = check_peer
        self.ready = False
        self.ended = False

    def begin(self) -> bytes:
        self._shake_hands()
        return self._to_peer.read()

    def incoming(self, data: bytes) -> tuple[bytes, bytes]:
        self._from_peer.write(data)
        if not self.ready:
            self._shake_hands()
        inside = bytearray()
        while self.ready and not self.ended:
            try:
                piece = self._session.read(_READ_SIZE)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError:
                piece = b""
            if not piece:
                self.ended = True
            inside += piece
        return bytes(inside), self._to_peer.read()

    def outgoing(self, data: bytes) -> bytes:
        if not self.ended and data:
            try:
                self._session.write(data)
            except ssl.SSLError:
                self.ended = True
        return self._to_peer.read()

    def take_breaks(self) -> int:
        return 0

    def _shake_hands(self) -> None:
        try:
            self._session.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise QobraError(f"TLS handshake failed: {error.reason or error}")
        if self._check_peer is not None:
            self._check_peer(self._session)
        self.ready = True
