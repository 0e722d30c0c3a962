"""The byte stream under an NBD connection: a socket, plain or with TLS, that several threads may use at once.

TLS runs over memory BIOs with a lock of its own, because OpenSSL's state may not be entered from a reader and a
writer at the same time; the socket itself is only ever touched outside that lock, so both directions still flow
together. The socket stays in blocking mode; waiting with a limit is done by ``poll``.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError, strerror

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    Buffer = bytes | bytearray | memoryview

_TLS_READ = 256 << 10
_TLS_SEND = 96 << 10
"""Bytes that are encrypted before they are sent, so that the peer decrypts them while the next ones are encrypted."""
# OpenSSL's reasons to refuse a certificate (X509_V_ERR_...), in the words of programs that use GnuTLS.
_HOSTNAME_MISMATCH = 62
_ADDRESS_MISMATCH = 64
_UNVERIFIED = {
    **dict.fromkeys((2, 18, 19, 20, 21), "The certificate hasn't got a known issuer"),
    9: "The certificate is not yet activated",
    10: "The certificate has expired",
    23: "The certificate has been revoked",
}
_MAX_IOV = 512


class Disconnected(QobraError):
    """The other side closed the connection, or it broke."""


class Transport:
    """A plain stream.

    ``timeout``, in seconds, is the longest wait for the other side to move at all; ``deadline`` (time.monotonic())
    bounds everything until it is set to None again. Passing either raises QobraError with ETIMEDOUT.
    """

    def __init__(self, sock: socket.socket, *, timeout: float | None = None) -> None:
        sock.setblocking(True)
        self.socket = sock
        self.timeout = timeout
        self.deadline: float | None = None
        self.on_close: Callable[[], None] | None = None
        """Done once, after :meth:`close`."""

    @property
    def tls(self) -> bool:
        """Whether the stream is encrypted."""
        return False

    def recv_into(self, view: memoryview) -> int:
        """At least one byte into ``view``; the number of bytes, 0 at the end of the stream."""
        return self._recv_raw(view)

    def try_recv_into(self, view: memoryview) -> int | None:
        """Like :meth:`recv_into`, but None where that would wait."""
        try:
            return self.socket.recv_into(view, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _broken("read from", error)

    def recv_exact(self, length: int) -> bytes:
        """Exactly ``length`` bytes. The caller has bounded ``length``. Raises Disconnected at an early end."""
        buffer = bytearray(length)
        self.fill(memoryview(buffer))
        return bytes(buffer)

    def fill(self, view: memoryview) -> None:
        """Fill ``view``. Raises Disconnected at an early end."""
        position = 0
        while position < len(view):
            count = self.recv_into(view[position:])
            if not count:
                raise self._early_end()
            position += count

    def _early_end(self) -> Disconnected:
        return Disconnected("Unexpected end-of-file before all data were read", errno=errno.EPIPE)

    def has_buffered(self) -> bool:
        """Whether bytes have arrived that ``poll`` on the socket does not see."""
        return False

    def send(self, parts: Sequence[Buffer]) -> None:
        """Send all of ``parts``, in order. Only one thread may send at a time."""
        if len(parts) == 1 and self.timeout is None and self.deadline is None:
            try:
                self.socket.sendall(parts[0])
            except OSError as error:
                raise _broken("write to", error)
            return
        left = [memoryview(part) for part in parts if len(part)]
        while left:
            try:
                count = self.socket.sendmsg(left[:_MAX_IOV], (), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self.wait(select.POLLOUT)
                continue
            except OSError as error:
                raise _broken("write to", error)
            left = _advance(left, count)

    def encode(self, parts: Sequence[Buffer]) -> list[memoryview]:
        """What has to go over the socket so that the other side reads ``parts``: themselves, or ciphertext."""
        return [memoryview(part) for part in parts if len(part)]

    def try_send_raw(self, left: list[memoryview]) -> list[memoryview]:
        """Send as much of :meth:`encode`'s result as the socket takes at once; what is left, all if none."""
        try:
            count = self.socket.sendmsg(left[:_MAX_IOV], (), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return left
        except OSError as error:
            raise _broken("write to", error)
        return _advance(left, count)

    def wait(self, events: int, limit: float | None = None) -> int:
        """Wait for ``events`` (select.POLLIN, POLLOUT) on the socket; what came, 0 after ``limit`` seconds.

        Without a ``limit``, the transport's own timeout and deadline apply and raise.
        """
        seconds = limit if limit is not None else self._patience()
        poller = select.poll()
        poller.register(self.socket, events)
        ready = poller.poll(None if seconds is None else seconds * 1000)
        if ready:
            return ready[0][1]
        if limit is not None:
            return 0
        raise QobraError("The NBD peer did not answer in time", errno=errno.ETIMEDOUT)

    def shutdown(self) -> None:
        """End both directions; whoever waits on the stream wakes up. Safe from any thread."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Close the socket. No other thread may be inside a call."""
        self.socket.close()
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def start_tls(self, context: ssl.SSLContext, *, server_side: bool, hostname: str | None = None) -> TlsTransport:
        """The encrypted stream over the same socket; this one must not be used again. Raises QobraError."""
        transport = TlsTransport(self.socket, context, server_side=server_side, hostname=hostname)
        transport.timeout, transport.deadline = self.timeout, self.deadline
        transport.on_close, self.on_close = self.on_close, None
        transport.handshake()
        return transport

    def _patience(self) -> float | None:
        if self.deadline is None:
            return self.timeout
        left = max(0.0, self.deadline - time.monotonic())
        return left if self.timeout is None else min(left, self.timeout)

    def _recv_raw(self, view: memoryview) -> int:
        try:
            if self.timeout is None and self.deadline is None:
                return self.socket.recv_into(view)
            while True:
                if self.deadline is not None and time.monotonic() > self.deadline:
                    raise QobraError("The NBD peer did not answer in time", errno=errno.ETIMEDOUT)
                try:
                    return self.socket.recv_into(view, 0, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    self.wait(select.POLLIN)
        except OSError as error:
            raise _broken("read from", error)


class TlsTransport(Transport):
    """A stream inside TLS."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool, hostname: str | None = None
    ) -> None:
        import ssl

        super().__init__(sock)
        self._ssl = ssl
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        # Some versions of Python (Debian 12's 3.11.2) set this: an end that the peer did not announce would look like
        # one that it did.
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        # It has no use here, and would want to send while we read.
        context.options |= ssl.OP_NO_RENEGOTIATION
        try:
            self._session = context.wrap_bio(
                self._incoming, self._outgoing, server_side=server_side, server_hostname=hostname
            )
        except (ValueError, ssl.SSLError) as error:
            raise QobraError(f"TLS handshake failed: {error}", errno=errno.EINVAL)
        self._lock = threading.Lock()
        self._ciphertext = memoryview(bytearray(_TLS_READ))
        self._cut_off = False
        """Whether the stream ended without the peer saying so, as anybody could make it."""

    @property
    def tls(self) -> bool:
        return True

    def handshake(self) -> None:
        """Shake hands; raises QobraError with OpenSSL's reason."""
        while True:
            wants_input = False
            try:
                self._session.do_handshake()
            except self._ssl.SSLWantReadError:
                wants_input = True
            except self._ssl.SSLError as error:
                self._flush_alert()
                if isinstance(error, self._ssl.SSLCertVerificationError):
                    raise QobraError(self._unverified(error), errno=errno.EACCES)
                raise QobraError(f"TLS handshake failed: {_reason(error)}", errno=errno.EPROTO)
            if self._outgoing.pending:
                super().send([self._outgoing.read()])
            if not wants_input:
                return
            count = self._recv_raw(self._ciphertext)
            if not count:
                raise Disconnected("TLS handshake failed: the peer closed the connection", errno=errno.EPIPE)
            self._incoming.write(self._ciphertext[:count])

    def peer_certificate(self) -> bytes | None:
        """The peer's certificate in DER, or None where it gave none."""
        return self._session.getpeercert(True)

    def has_buffered(self) -> bool:
        with self._lock:
            return bool(self._incoming.pending or self._session.pending())

    def recv_into(self, view: memoryview) -> int:
        while (position := self._decrypt(view)) is None:
            self._take_ciphertext(self._recv_raw(self._ciphertext))
        return position

    def try_recv_into(self, view: memoryview) -> int | None:
        while (position := self._decrypt(view)) is None:
            received = super().try_recv_into(self._ciphertext)
            if received is None:
                return None
            self._take_ciphertext(received)
        return position

    def _take_ciphertext(self, received: int) -> None:
        with self._lock:
            if received:
                self._incoming.write(self._ciphertext[:received])
            else:
                self._incoming.write_eof()

    def _decrypt(self, view: memoryview) -> int | None:
        """What is here already, into ``view``: the number of bytes, 0 at the end, None if more must be received."""
        position = 0
        with self._lock:
            try:
                # One read returns one record; take all that are here.
                while position < len(view):
                    # With a buffer, read() returns a count, whatever its annotation says.
                    count: Any = self._session.read(len(view) - position, view[position:])
                    if not count:
                        break
                    position += count
                return position
            except self._ssl.SSLWantReadError:
                return position or None
            except self._ssl.SSLZeroReturnError:
                return position
            except self._ssl.SSLError as error:
                if isinstance(error, self._ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING":
                    self._cut_off = True
                    return position
                raise Disconnected(f"TLS failed: {_reason(error)}", errno=errno.EIO)

    def _early_end(self) -> Disconnected:
        if not self._cut_off:
            return super()._early_end()
        number = errno.ECONNABORTED
        return Disconnected(f"Cannot read from TLS channel: {os.strerror(number)}", errno=number)

    def send(self, parts: Sequence[Buffer]) -> None:
        few: list[Buffer] = []
        room = _TLS_SEND
        for part in parts:
            view = memoryview(part)
            while len(view) > room:
                super().send(self.encode([*few, view[:room]]))
                view = view[room:]
                few, room = [], _TLS_SEND
            few.append(view)
            room -= len(view)
        super().send(self.encode(few))

    def encode(self, parts: Sequence[Buffer]) -> list[memoryview]:
        with self._lock:
            try:
                for part in parts:
                    view = memoryview(part)
                    while len(view):
                        view = view[self._session.write(view) :]
            except self._ssl.SSLError as error:
                raise Disconnected(f"TLS failed: {_reason(error)}", errno=errno.EIO)
            return [memoryview(self._outgoing.read())]

    def _unverified(self, error: ssl.SSLCertVerificationError) -> str:
        """Why the peer's certificate will not do."""
        code = error.verify_code
        if code in (_HOSTNAME_MISMATCH, _ADDRESS_MISMATCH):
            return f"Certificate does not match the hostname {self._session.server_hostname}"
        return _UNVERIFIED.get(code, f"The certificate is not trusted: {error.verify_message}")

    def _flush_alert(self) -> None:
        """Let the peer read why we refuse."""
        try:
            if self._outgoing.pending:
                super().send([self._outgoing.read()])
        except QobraError:
            pass


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's reason, without where in Python's source it was met."""
    return error.reason or str(error).partition("] ")[2].partition(" (_ssl")[0] or str(error)


def _advance(left: list[memoryview], count: int) -> list[memoryview]:
    """``left`` without its first ``count`` bytes."""
    index = 0
    while index < len(left) and count >= len(left[index]):
        count -= len(left[index])
        index += 1
    rest = left[index:]
    if count:
        rest[0] = rest[0][count:]
    return rest


def _broken(what: str, error: OSError) -> Disconnected:
    number = error.errno or errno.EIO
    return Disconnected(f"Unable to {what} socket: {strerror(error) or os.strerror(number)}", errno=number)
