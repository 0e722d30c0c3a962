"""The server's side of WebSocket (RFC 6455): the HTTP upgrade, then frames; what is sent goes out as binary frames."""

from __future__ import annotations

import binascii
import hashlib

from qobra.errors import QobraError

_MAX_REQUEST = 4096
_MAX_FRAME = 16 << 20
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10


class WebSocketLayer:
    """Turns a client's masked frames into bytes, and bytes into frames."""

    def __init__(self) -> None:
        self.ready = False
        self.ended = False
        self._buffer = bytearray()

    def begin(self) -> bytes:
        return b""

    def incoming(self, data: bytes) -> tuple[bytes, bytes]:
        self._buffer += data
        answer = b""
        if not self.ready:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _MAX_REQUEST:
                    raise QobraError("WebSocket request is too long")
                return b"", b""
            answer = _upgrade(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            self.ready = True
        inside = bytearray()
        while not self.ended:
            frame = self._next_frame()
            if frame is None:
                break
            opcode, payload = frame
            if opcode in (_CONTINUATION, _TEXT, _BINARY):
                inside += payload
            elif opcode == _PING:
                answer += _frame(_PONG, payload)
            elif opcode == _CLOSE:
                answer += _frame(_CLOSE, payload[:2])
                self.ended = True
            elif opcode != _PONG:
                self.ended = True
        return bytes(inside), answer

    def outgoing(self, data: bytes) -> bytes:
        return _frame(_BINARY, data)

    def take_breaks(self) -> int:
        return 0

    def _next_frame(self) -> tuple[int, bytes] | None:
        """The next complete frame (RFC 6455 section 5.2) off the buffer; None if there is none yet."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        size, header = second & 0x7F, 2
        extended = {126: 2, 127: 8}.get(size, 0)
        if extended:
            if len(buffer) < 2 + extended:
                return None
            size = int.from_bytes(buffer[2 : 2 + extended], "big")
            header += extended
        if not second & 0x80 or first & 0x70 or size > _MAX_FRAME or (first & 8 and extended):
            # Unmasked, with an extension that nobody agreed on, absurdly long, or a long control frame.
            self.ended = True
            return None
        if len(buffer) < header + 4 + size:
            return None
        mask = bytes(buffer[header : header + 4])
        masked = bytes(buffer[header + 4 : header + 4 + size])
        del buffer[: header + 4 + size]
        key = (mask * (size // 4 + 1))[:size]
        payload = int.from_bytes(masked, "big") ^ int.from_bytes(key, "big")
        return first & 0x0F, payload.to_bytes(size, "big")


def _frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        length = bytes((size,))
    elif size < 1 << 16:
        length = b"\x7e" + size.to_bytes(2, "big")
    else:
        length = b"\x7f" + size.to_bytes(8, "big")
    return bytes((0x80 | opcode,)) + length + payload


def _upgrade(request: bytes) -> bytes:
    """The answer to the client's opening handshake (RFC 6455 section 4.2.2)."""
    lines = request.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or parts[0] != "GET" or parts[2] != "HTTP/1.1":
        raise QobraError("Missing or unsupported HTTP request line in WebSocket handshake")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise QobraError("Malformed HTTP header in WebSocket handshake")
        headers[name.strip().lower()] = value.strip()
    if "websocket" not in headers.get("upgrade", "").lower():
        raise QobraError("No 'upgrade' header in WebSocket handshake")
    if headers.get("sec-websocket-version") != "13":
        raise QobraError("Unsupported WebSocket version")
    key = headers.get("sec-websocket-key", "").encode("latin-1")
    if len(key) != 24:
        raise QobraError("Missing or malformed WebSocket key")
    accept = binascii.b2a_base64(hashlib.sha1(key + _GUID).digest(), newline=False)
    answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    answer += b"Sec-WebSocket-Accept: " + accept + b"\r\n"
    if "binary" in [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]:
        answer += b"Sec-WebSocket-Protocol: binary\r\n"
    return answer + b"\r\n"
