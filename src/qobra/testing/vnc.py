"""A VNC client for tests, which knows what it expects: RFB in the clear, inside TLS, WebSockets and SASL."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from pathlib import Path

from qobra.display.vnc.handshake import response
from qobra.testing.sasl import SaslClient

_REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: binary\r\n\r\n"
)
_ACCEPT = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"


class VncTestClient:
    """A connection to a server, at a path, an internet address or on ``sock``."""

    def __init__(self, where: Path | tuple[str, int] | None = None, sock: socket.socket | None = None) -> None:
        if sock is None:
            assert where is not None
            sock = socket.socket(socket.AF_UNIX if isinstance(where, Path) else socket.AF_INET)
            sock.connect(str(where) if isinstance(where, Path) else where)
        sock.settimeout(30)
        self.sock = sock
        self.size = (0, 0)
        self._web = False
        self._sasl: SaslClient | None = None
        self._buffer = b""

    def read(self, length: int) -> bytes:
        """Exactly that many bytes. Raises EOFError."""
        while len(self._buffer) < length:
            self._buffer += self._piece()
        data, self._buffer = self._buffer[:length], self._buffer[length:]
        return data

    def send(self, data: bytes) -> None:
        """Send ``data``."""
        if self._sasl is not None:
            data = self._sasl.encode(data)
        if self._web:
            mask = os.urandom(4)
            length = bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
            data = b"\x82" + length + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        self.sock.sendall(data)

    def _raw(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.sock.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _piece(self) -> bytes:
        if self._web:
            kind, length = self._raw(2)
            assert kind == 0x82
            if length >= 126:
                length = int.from_bytes(self._raw(2 if length == 126 else 8), "big")
            piece = self._raw(length)
        else:
            piece = self.sock.recv(65536)
            if not piece:
                raise EOFError
        return self._sasl.decode(piece) if self._sasl is not None else piece

    def ends(self) -> bool:
        """Whether the server hangs up, without a word more."""
        try:
            self.read(1)
        except (EOFError, OSError):
            return True
        return False

    # -- coming in

    def websocket(self) -> None:
        """Have what follows in frames of a WebSocket."""
        self.sock.sendall(_REQUEST)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += self._raw(1)
        assert answer.startswith(b"HTTP/1.1 101 ") and _ACCEPT in answer and b"Protocol: binary" in answer
        self._web = True

    def tls(self, authority: Path | None, certificate: Path | None = None) -> None:
        """Have what follows inside TLS; without ``authority`` anonymously. ``certificate`` has the key in it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        if authority is None:
            context.verify_mode = ssl.CERT_NONE
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers("ADH:AECDH:@SECLEVEL=0")
        else:
            context.load_verify_locations(authority)
        if certificate is not None:
            context.load_cert_chain(certificate)
        self.sock = context.wrap_socket(self.sock)

    def greet(self, kind: int, version: bytes = b"RFB 003.008\n") -> None:
        """Agree on the version and on ``kind`` of security, the only one there is."""
        assert self.read(12) == b"RFB 003.008\n"
        self.send(version)
        assert self.read(2) == bytes((1, kind))
        self.send(bytes((kind,)))

    def vencrypt(self, kind: int) -> None:
        """Agree on ``kind`` beneath VeNCrypt, the only one there is."""
        self.greet(19)
        assert self.read(2) == b"\0\2"
        self.send(b"\0\2")
        assert self.read(6) == b"\0\1" + kind.to_bytes(4, "big")
        self.send(kind.to_bytes(4, "big"))
        assert self.read(1) == b"\1"

    def answer(self, password: bytes) -> None:
        """Answer the server's challenge."""
        self.send(response(password, self.read(16)))

    def sasl(self, mechanism: str, user: str, password: str, *, protected: bool = True) -> None:
        """Authenticate; raises PermissionError where the server refuses."""
        assert mechanism in self.read(int.from_bytes(self.read(4), "big")).decode().split(",")
        client = SaslClient(user, password, protected=protected)
        said, done = client.start(mechanism), False
        self.send(struct.pack(">I", len(mechanism)) + mechanism.encode() + _counted(said))
        while True:
            try:
                length = int.from_bytes(self.read(4), "big")
            except EOFError:
                raise PermissionError
            if length > 1 << 20:
                raise PermissionError
            data, done = self.read(length)[:-1] if length else None, self.read(1) == b"\1"
            if done and data is None:
                break
            said = client.step(data)
            if done:
                break
            self.send(_counted(said))
        if self.read(4) != bytes(4):
            raise PermissionError
        if not protected:
            self._sasl = client

    def begin(self, *, shared: bool = True) -> str:
        """The server let the client in; the name of the desktop."""
        self.send(bytes((shared,)))
        width, height = struct.unpack(">HH", self.read(4))
        self.size = (width, height)
        self.read(16)
        return self.read(int.from_bytes(self.read(4), "big")).decode()

    def join(self, password: bytes | None = None, *, shared: bool = True) -> str:
        """Come in where no more is asked for than a password; the name of the desktop."""
        self.greet(1 if password is None else 2)
        if password is not None:
            self.answer(password)
        assert self.read(4) == bytes(4)
        return self.begin(shared=shared)

    # -- being in

    def encodings(self, *numbers: int) -> None:
        """Say what the client can read."""
        self.send(struct.pack(f">BBH{len(numbers)}i", 2, 0, len(numbers), *numbers))

    def ask(self, incremental: bool = False, area: tuple[int, int, int, int] | None = None) -> None:
        """Ask for what changed, or for all."""
        self.send(struct.pack(">BBHHHH", 3, incremental, *(area or (0, 0, *self.size))))

    def update(self, pixel: int = 4, head: bytes | None = None) -> list[tuple[tuple[int, ...], int, bytes]]:
        """The rectangles of the next update, of which ``head`` was read: place, encoding, data."""
        kind, count = struct.unpack(">BxH", head or self.read(4))
        assert kind == 0
        found: list[tuple[tuple[int, ...], int, bytes]] = []
        for _ in range(count):
            x, y, width, height, encoding = struct.unpack(">4Hi", self.read(12))
            data = b""
            if encoding == 0:
                data = self.read(pixel * width * height)
            elif encoding == 6:
                data = self.read(int.from_bytes(self.read(4), "big"))
            elif encoding == -239:
                data = self.read(pixel * width * height + (width + 7) // 8 * height)
            found.append(((x, y, width, height), encoding, data))
        return found

    def close(self) -> None:
        """Leave."""
        self.sock.close()


def _counted(data: bytes | None) -> bytes:
    return bytes(4) if data is None else struct.pack(">I", len(data) + 1) + data + b"\0"
