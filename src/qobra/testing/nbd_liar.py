"""An NBD server that serves a small disk well, until it lies: a connection's seed says when and how.

A lie is a message that is cut off, delayed, split, bent, repeated, swapped with the next or put in between, or one that
is well formed and wrong: strings and lists without end, data that overlap or lie outside, chunks that are never the
last, extents of no length or past the end, contexts that were not asked for, errors with texts of any length.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

from qobra.nbd import protocol as p

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Sequence

    from qobra.testing.nbd_liar_tls import TlsSocket

SIZE = 1 << 20
"""Bytes of the disk, the first half of which is data."""
EXTREMES = (0, 1, 2, 7, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
ENDLESS = 8 << 20
"""Bytes after which a server has said enough of the same."""
PAUSE = 0.15
"""Seconds for which it is silent in a message, before it goes."""
PATIENCE = 2.0
"""Seconds that it waits for a client."""


class Liar:
    """Listens at the unix socket ``path``. Connection after connection is told other lies, which follow from ``seed``.

    ``honest``: the share of connections that are served well. ``tls``: with one of these it is offered.
    """

    def __init__(self, path: str, seed: int, *, honest: float = 0.1, tls: Sequence[ssl.SSLContext] = ()) -> None:
        self.seed = seed
        self.told: list[str] = []
        """What was done to each connection."""
        self._honest = honest
        self._tls = tls
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._count = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _address = self._listener.accept()
            except OSError:
                return
            rng = random.Random(f"{self.seed} {self._count}")
            self._count += 1
            threading.Thread(target=self._serve, args=(sock, rng), daemon=True).start()

    def _serve(self, sock: socket.socket, rng: random.Random) -> None:
        connection = Connection(sock, rng, rng.choice(self._tls) if self._tls else None)
        if rng.random() < self._honest:
            connection.lies_at = -1
        try:
            connection.serve()
        except (OSError, EOFError, ValueError):
            pass
        finally:
            self.told.append(", ".join(connection.told))
            connection.close()


class Connection:
    """One client, who is lied to once ``lies_at`` messages were sent, and perhaps again after that."""

    def __init__(self, sock: socket.socket, rng: random.Random, tls: ssl.SSLContext | None) -> None:
        sock.settimeout(PATIENCE)
        self._sock: socket.socket | TlsSocket = sock
        self._rng = rng
        self._tls = tls
        self.lies_at = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 14, 20, 40, 100))
        self._again = rng.choice((0.0, 0.0, 0.2, 1.0))
        self._style = rng.choice(("any", "any", "bent", "wrong", "wrong", "wrong"))
        self._sent = 0
        self._held = b""
        self.told: list[str] = []
        self._disk = bytearray(rng.randbytes(SIZE // 2) + bytes(SIZE // 2))
        self._structured = False
        self._contexts: dict[int, str] = {}
        self._sizes = rng.choice(((1, 4096, 32 << 20), (1, 4096, 32 << 20), (512, 4096, 1 << 20), (4096, 4096, 65536)))
        self._flags = 0xFFF & ~p.FLAG_READ_ONLY & ~(rng.choice((0, 0, 0, 1)) << rng.randrange(2, 12))

    def close(self) -> None:
        """Leave."""
        self._sock.close()

    # What is sent -----------------------------------------------------------------------------------------------------

    def _lies_now(self) -> bool:
        self._sent += 1
        if self.lies_at < 0 or self._sent <= self.lies_at:
            return False
        if self._sent == self.lies_at + 1:
            return True
        return self._rng.random() < self._again

    def _send(self, message: bytes, wrong: Callable[[], Iterator[bytes] | bytes] | None = None) -> None:
        """Send ``message``, or what is told in place of it; ``wrong`` makes well-formed lies."""
        if not self._lies_now():
            self._sock.sendall(message + self._held)
            self._held = b""
            return
        if wrong is not None and (self._style == "wrong" or (self._style == "any" and self._rng.random() < 0.5)):
            found = wrong()
            self._note(f"wrong {wrong.__name__}")
            if isinstance(found, bytes):
                self._sock.sendall(found)
                return
            sent = 0
            for part in found:
                self._sock.sendall(part)
                sent += len(part)
                if sent > ENDLESS:
                    raise EOFError
            return
        lie = self._rng.choice(_BENDS)
        self._note(lie.__name__.strip("_"))
        lie(self, message)

    def _note(self, what: str) -> None:
        if len(self.told) < 20:
            self.told.append(f"{what} at {self._sent}")

    def _cut(self, message: bytes) -> None:
        self._sock.sendall(message[: self._rng.randrange(len(message) + 1)])
        if self._rng.random() < 0.3:
            # No polite end, but a reset (of what knows one).
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise EOFError

    def _stall(self, message: bytes) -> None:
        self._sock.sendall(message[: self._rng.randrange(len(message) + 1)])
        time.sleep(PAUSE)
        raise EOFError

    def _dribble(self, message: bytes) -> None:
        for index in range(min(200, len(message))):
            self._sock.sendall(message[index : index + 1])
            if index % 16 == 0:
                time.sleep(0.0005)
        self._sock.sendall(message[200:])

    def _flip(self, message: bytes) -> None:
        bent = bytearray(message)
        for _ in range(self._rng.choice((1, 1, 2, 8))):
            bent[self._rng.randrange(min(len(bent), 64))] ^= 1 << self._rng.randrange(8)
        self._sock.sendall(bytes(bent))

    def _field(self, message: bytes) -> None:
        bent = bytearray(message)
        width = self._rng.choice((1, 2, 4, 4, 4, 8))
        at = self._rng.randrange(0, max(1, min(len(bent), 48) - width + 1), 2 if width > 1 else 1)
        value = self._rng.choice(EXTREMES) & ((1 << 8 * width) - 1)
        bent[at : at + width] = value.to_bytes(width)
        self._sock.sendall(bytes(bent))

    def _double(self, message: bytes) -> None:
        self._sock.sendall(message * 2)

    def _between(self, message: bytes) -> None:
        self._sock.sendall(self._rng.randbytes(self._rng.choice((1, 4, 16, 20, 4096))) + message)

    def _hold(self, message: bytes) -> None:
        self._held = message

    def _silent(self, message: bytes) -> None:
        """Nothing, and then the connection is over."""
        time.sleep(PAUSE)
        raise EOFError

    def _endless(self, message: bytes) -> None:
        many = message * (65536 // len(message) + 1)
        for _ in range(ENDLESS // len(many) + 1):
            self._sock.sendall(many)
        raise EOFError

    def _plain(self, message: bytes) -> None:
        """Past TLS, where there is any."""
        getattr(self._sock, "raw", self._sock).sendall(message)

    # The handshake ----------------------------------------------------------------------------------------------------

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            more = self._sock.recv(length - len(data))
            if not more:
                raise EOFError
            data += more
        return bytes(data)

    def serve(self) -> None:
        """Shake hands and answer until the client leaves. Raises OSError, EOFError or ValueError at the end."""
        self._send(p.GREETING.pack(p.INIT_MAGIC, p.OPTION_MAGIC, 3), self._wrong_greeting)
        self._receive(4)
        while True:
            _magic, option, length = p.OPTION.unpack(self._receive(p.OPTION.size))
            body = self._receive(length)
            if option == p.OPT_ABORT:
                self._reply(option, p.REP_ACK)
                return
            if self._option(option, body):
                break
        while True:
            self._request()

    def _option(self, option: int, body: bytes) -> bool:
        if option == p.OPT_STARTTLS and self._tls is not None:
            self._start_tls(option)
        elif option == p.OPT_STRUCTURED_REPLY:
            self._structured = True
            self._reply(option, p.REP_ACK)
        elif option == p.OPT_LIST:
            for export in (b"", b"disk"):
                self._reply(option, p.REP_SERVER, p.U32.pack(len(export)) + export + b"a disk")
            self._reply(option, p.REP_ACK)
        elif option in (p.OPT_LIST_META_CONTEXT, p.OPT_SET_META_CONTEXT):
            self._contexts = {1: p.CONTEXT_BASE_ALLOCATION} if p.CONTEXT_BASE_ALLOCATION.encode() in body else {}
            if self._rng.random() < 0.2:
                self._contexts[2] = "other:context"
            for number, name in self._contexts.items():
                self._reply(option, p.REP_META_CONTEXT, p.U32.pack(number) + name.encode())
            self._reply(option, p.REP_ACK)
        elif option in (p.OPT_INFO, p.OPT_GO):
            self._reply(option, p.REP_INFO, p.INFO_BLOCK_SIZE_BODY.pack(p.INFO_BLOCK_SIZE, *self._sizes))
            self._reply(option, p.REP_INFO, p.INFO_EXPORT_BODY.pack(p.INFO_EXPORT, SIZE, self._flags))
            self._reply(option, p.REP_ACK)
            return option == p.OPT_GO
        elif option == p.OPT_EXPORT_NAME:
            self._send(p.EXPORT_REPLY.pack(SIZE, self._flags))
            return True
        else:
            self._reply(option, p.REP_ERR_UNSUP)
        return False

    def _start_tls(self, option: int) -> None:
        from qobra.testing.nbd_liar_tls import TlsSocket

        assert self._tls is not None
        self._reply(option, p.REP_ACK)
        if self._lies_now():
            # What comes before the encryption must not count as what comes after it.
            self._note("before tls")
            self._sock.sendall(
                self._rng.choice((self._option_reply(8, p.REP_ACK), self._rng.randbytes(600), b"\x16\x03"))
            )
        if isinstance(self._sock, socket.socket):
            self._sock = TlsSocket(self._sock, self._tls, self._rng, self._lies_now)

    def _option_reply(self, option: int, kind: int, body: bytes = b"", length: int | None = None) -> bytes:
        size = len(body) if length is None else length
        return p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, size) + body

    def _reply(self, option: int, kind: int, body: bytes = b"") -> None:
        def wrong_option() -> Iterator[bytes] | bytes:
            return self._wrong_option(option, kind, body)

        self._send(self._option_reply(option, kind, body), wrong_option)

    def _wrong_greeting(self) -> bytes:
        rng = self._rng
        flags = rng.choice((0, 1, 2, 3, 0xFFFF))
        return rng.choice(
            (
                p.GREETING.pack(rng.getrandbits(64), p.OPTION_MAGIC, flags),
                p.GREETING.pack(p.INIT_MAGIC, rng.getrandbits(64), flags),
                p.GREETING.pack(p.INIT_MAGIC, p.OPTION_MAGIC, flags),
                p.MAGICS.pack(p.INIT_MAGIC, p.OLDSTYLE_MAGIC)
                + p.OLDSTYLE_EXPORT.pack(rng.choice(EXTREMES), rng.choice((0, 1, 0xFFFF)))
                + bytes(p.EXPORT_REPLY_PADDING),
            )
        )

    def _wrong_option(self, option: int, kind: int, body: bytes) -> Iterator[bytes] | bytes:
        rng = self._rng
        match rng.randrange(12):
            case 0:  # in answer to what was not asked
                return self._option_reply(rng.choice((0, 1, 3, 6, 7, 8, 9, 10, 77)), kind, body)
            case 1:
                return self._option_reply(option, rng.choice((0, 1, 2, 3, 4, 5, 99, 0x7FFFFFFF)), body)
            case 2:  # an error, with a text of any length
                said = rng.choice((b"", b"no", b"x" * 4096, b"x" * 5000, b"\xff\n\0\x1b[2J" * 20, b"y" * 65536))
                return self._option_reply(
                    option, p.REP_ERROR_BIT | rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 99)), said
                )
            case 3:
                return self._option_reply(option, kind, body, rng.choice(EXTREMES) & 0xFFFFFFFF)
            case 4:  # acknowledged too early
                return self._option_reply(option, p.REP_ACK) + self._option_reply(option, kind, body)
            case 5:
                return (self._option_reply(option, p.REP_SERVER, p.U32.pack(4) + b"disk") for _ in iter(int, 1))
            case 6:
                return (
                    self._option_reply(option, p.REP_SERVER, p.U32.pack(4096) + b"n" * 4096 + b"d" * 4096)
                    for _ in iter(int, 1)
                )
            case 7:
                return (
                    self._option_reply(option, p.REP_META_CONTEXT, p.U32.pack(number) + b"base:%08x" % number * 200)
                    for number in range(1 << 32)
                )
            case 8:  # an export that cannot be
                size, flags = rng.choice((*EXTREMES, 511, 513)), rng.choice((0, 1, 3, 0xFFFF, self._flags))
                return self._option_reply(option, p.REP_INFO, p.INFO_EXPORT_BODY.pack(p.INFO_EXPORT, size, flags))
            case 9:  # block sizes that cannot be
                sizes = (rng.choice((0, 1, 3, 512, 65536, 1 << 17, 0xFFFFFFFF)) for _ in range(3))
                return self._option_reply(
                    option, p.REP_INFO, p.INFO_BLOCK_SIZE_BODY.pack(p.INFO_BLOCK_SIZE, *sizes)
                ) + self._option_reply(option, kind, body)
            case 10:  # names and descriptions
                told = rng.choice((b"", b"\xff\xfe", b"z" * 4096, b"z" * 4097, b"\n\x1b]0;x\x07"))
                info = p.U16.pack(rng.choice((p.INFO_NAME, p.INFO_DESCRIPTION, 99))) + told
                return self._option_reply(option, p.REP_INFO, info) + self._option_reply(option, kind, body)
            case _:
                number = rng.choice((0, 1, 1, 2, 0xFFFFFFFF))
                name = rng.choice((b"base:allocation", b"base:allocation", b"x" * 4096, b"", b"\xff"))
                told = self._option_reply(option, p.REP_META_CONTEXT, p.U32.pack(number) + name)
                return told * rng.choice((1, 2)) + self._option_reply(option, kind, body)

    # Transmission -----------------------------------------------------------------------------------------------------

    def _request(self) -> None:
        _magic, _flags, command, cookie, offset, length = p.REQUEST.unpack(self._receive(p.REQUEST.size))
        payload = self._receive(length) if command == p.CMD_WRITE else b""
        if command == p.CMD_DISC:
            raise EOFError
        inside = offset + length <= SIZE

        def wrong_answer() -> Iterator[bytes] | bytes:
            return self._wrong_answer(command, cookie, offset, length)

        if command == p.CMD_BLOCK_STATUS and self._contexts and self._structured:
            answer = b"".join(
                self._chunk(
                    p.CHUNK_BLOCK_STATUS,
                    cookie,
                    p.U32.pack(number) + b"".join(self._extents(offset, length)),
                    done=number == max(self._contexts),
                )
                for number in self._contexts
            )
        elif not inside:
            answer = p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 22, cookie)
            if self._structured:
                answer = self._chunk(p.CHUNK_ERROR, cookie, p.ERROR_BODY.pack(22, 0))
        elif command == p.CMD_READ and self._structured:
            half = length // 2 if length > 1 and self._rng.random() < 0.5 else 0
            parts = [(offset, half), (offset + half, length - half)] if half else [(offset, length)]
            answer = b"".join(
                self._chunk(
                    p.CHUNK_OFFSET_DATA,
                    cookie,
                    p.U64.pack(at) + self._disk[at : at + size],
                    done=at + size == offset + length,
                )
                for at, size in parts
            )
        else:
            answer = p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, cookie)
            if command == p.CMD_READ:
                answer += self._disk[offset : offset + length]
            elif command == p.CMD_WRITE:
                self._disk[offset : offset + length] = payload
            elif command == p.CMD_WRITE_ZEROES:
                self._disk[offset : offset + length] = bytes(length)
        self._send(answer, wrong_answer)

    def _extents(self, offset: int, length: int) -> list[bytes]:
        found = []
        while length > 0:
            size = min(length, SIZE // 2 - offset if offset < SIZE // 2 else length)
            found.append(p.EXTENT.pack(size, 0 if offset < SIZE // 2 else 3))
            offset, length = offset + size, length - size
        return found

    def _chunk(
        self, kind: int, cookie: int, body: bytes = b"", *, done: bool = True, length: int | None = None
    ) -> bytes:
        size = len(body) if length is None else length
        return p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, int(done), kind, cookie, size) + body

    def _wrong_answer(self, command: int, cookie: int, offset: int, length: int) -> Iterator[bytes] | bytes:
        rng = self._rng
        bad_cookie = rng.choice((cookie, cookie, 0, cookie + 1, (1 << 64) - 1))
        done = rng.random() < 0.6
        data = self._disk[:512]
        end = self._chunk(p.CHUNK_NONE, cookie)
        match rng.randrange(15):
            case 0:
                return p.SIMPLE_REPLY.pack(
                    p.SIMPLE_REPLY_MAGIC, rng.choice((0, 1, 5, 22, 28, 95, 108, 0xFFFFFFFF)), bad_cookie
                )
            case 1:  # data that lie elsewhere
                at = rng.choice((*EXTREMES, offset - 1, offset + 1, offset + length)) & ((1 << 64) - 1)
                return self._chunk(p.CHUNK_OFFSET_DATA, bad_cookie, p.U64.pack(at) + data, done=done)
            case 2:  # that overlap
                piece = self._chunk(p.CHUNK_OFFSET_DATA, cookie, p.U64.pack(offset) + data, done=False)
                return piece + piece + end
            case 3:
                hole = p.HOLE_BODY.pack(offset, rng.choice((0, 1, length, length + 1, 0xFFFFFFFF)) & 0xFFFFFFFF)
                return self._chunk(p.CHUNK_OFFSET_HOLE, cookie, hole, done=done) + (b"" if done else end)
            case 4:  # never the last
                return (self._chunk(p.CHUNK_NONE, cookie, done=False) for _ in iter(int, 1))
            case 5:  # holes without end
                return (
                    self._chunk(p.CHUNK_OFFSET_HOLE, cookie, p.HOLE_BODY.pack(offset, 1), done=False)
                    for _ in iter(int, 1)
                )
            case 6:
                number = rng.choice((0, 1, 5, 22, 28, 95, 108, 0xFFFFFFFF))
                said = rng.choice((b"", b"why", b"t" * 4096, b"t" * 4097, b"t" * 65535, b"\xff\n\0\x1b[2J"))
                where = p.U64.pack(offset) if rng.random() < 0.4 else b""
                kind = p.CHUNK_ERROR_OFFSET if where else rng.choice((p.CHUNK_ERROR, p.CHUNK_ERROR, 0x8077))
                return self._chunk(kind, cookie, p.ERROR_BODY.pack(number, len(said)) + said + where, done=done) + (
                    b"" if done else end
                )
            case 7:
                text = p.ERROR_BODY.pack(5, 4000) + b"e" * 4000
                return (self._chunk(p.CHUNK_ERROR, cookie, text, done=False) for _ in iter(int, 1))
            case 8 | 9 | 10 | 11 as which:
                return self._chunk(p.CHUNK_BLOCK_STATUS, cookie, self._wrong_extents(which - 8, length))
            case 12:
                kind = rng.choice((0, 1, 2, 3, 4, 5, 6, 0x7FFF, 0x8001, 0x8002, 0xFFFF))
                return self._chunk(
                    kind,
                    bad_cookie,
                    rng.randbytes(rng.randrange(64)),
                    done=done,
                    length=rng.choice((None, None, *EXTREMES[:8])),
                )
            case 13:
                return end
            case _:
                return self._chunk(
                    p.CHUNK_OFFSET_DATA,
                    cookie,
                    p.U64.pack(offset),
                    length=rng.choice((8, length + 8, length + 9, 0x2000008, 0xFFFFFFFF)) & 0xFFFFFFFF,
                )

    def _wrong_extents(self, which: int, length: int) -> bytes:
        rng = self._rng
        match which:
            case 0:  # of any length
                sizes = [
                    rng.choice((0, 1, 511, 512, 4096, length, length + 1, 0xFFFFFFFF, 0xFFFFFE00)) & 0xFFFFFFFF
                    for _ in range(rng.choice((1, 1, 2, 50)))
                ]
                return p.U32.pack(rng.choice((1, 1, 1, 2, 9))) + b"".join(
                    p.EXTENT.pack(size, rng.choice((0, 1, 2, 3, 99))) for size in sizes
                )
            case 1:  # as small as can be
                return p.U32.pack(1) + p.EXTENT.pack(1, 0)
            case 2:  # as many as can be
                return p.U32.pack(1) + p.EXTENT.pack(1, 0) * min(length, rng.choice((1 << 10, 1 << 17, 1 << 20)))
            case _:  # only of what nobody wants
                return p.U32.pack(2) + p.EXTENT.pack(max(1, length), 0)


_BENDS: tuple[Callable[[Connection, bytes], None], ...] = (
    Connection._cut,
    Connection._cut,
    Connection._stall,
    Connection._dribble,
    Connection._flip,
    Connection._field,
    Connection._field,
    Connection._double,
    Connection._between,
    Connection._hold,
    Connection._silent,
    Connection._endless,
    Connection._plain,
)
