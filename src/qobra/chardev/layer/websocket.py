"""The server's side of WebSocket (RFC 6455): the HTTP upgrade, then frames; what is sent goes out as binary frames."""

from __future__ import annotations

import binascii
import hashlib

from qobra.errors import QobraError

_MAX_REQUEST = 4096
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_DATA = (_CONTINUATION, _TEXT, _BINARY)
_CONTROLS = (_CLOSE, _PING, _PONG)


class WebSocketLayer:
    """Turns a client's masked frames into bytes, and bytes into frames."""

    def __init__(self) -> None:
        self.ready = False
        self.ended = False
        self._buffer = bytearray()
        self._opcode = _CONTINUATION
        self._left = 0
        """How much of the frame's payload is still to come."""
        self._mask = b""

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
        while not self.ended and (self._left or self._next_header()):
            if self._opcode in _CONTROLS:
                if len(self._buffer) < self._left:
                    break
                answer += self._control(self._opcode, self._payload())
            else:
                inside += self._payload()
            if self._left:
                break
        return bytes(inside), answer

    def _control(self, opcode: int, payload: bytes) -> bytes:
        """What a control frame is answered with."""
        if opcode == _PING:
            return _frame(_PONG, payload)
        if opcode == _CLOSE:
            self.ended = True
            return _frame(_CLOSE, payload[:2])
        return b""

    def outgoing(self, data: bytes) -> bytes:
        return _frame(_BINARY, data)

    def take_breaks(self) -> int:
        return 0

    def _next_header(self) -> bool:
        """Take the header of the next frame (RFC 6455 section 5.2) off the buffer, if it is all there."""
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        first, second = buffer[0], buffer[1]
        size, header = second & 0x7F, 2
        extended = {126: 2, 127: 8}.get(size, 0)
        if len(buffer) < 2 + extended:
            return False
        if extended:
            size = int.from_bytes(buffer[2 : 2 + extended], "big")
            header += extended
        opcode = first & 0x0F
        known = opcode in (*_DATA, *_CONTROLS)
        if not second & 0x80 or first & 0x70 or not known or (opcode in _CONTROLS and extended):
            # Unmasked, with an extension that nobody agreed on, of no known kind, or a long control frame.
            self.ended = True
            return False
        if len(buffer) < header + 4:
            return False
        self._opcode, self._left, self._mask = opcode, size, bytes(buffer[header : header + 4])
        del buffer[: header + 4]
        return True

    def _payload(self) -> bytes:
        """What is there of the frame's payload, off the buffer."""
        masked = bytes(self._buffer[: self._left])
        size = len(masked)
        del self._buffer[:size]
        self._left -= size
        key = (self._mask * (size // 4 + 1))[:size]
        self._mask = self._mask[size % 4 :] + self._mask[: size % 4]
        return (int.from_bytes(masked, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


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
