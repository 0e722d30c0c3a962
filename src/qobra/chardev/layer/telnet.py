"""The telnet protocol (RFC 854) as far as a terminal on a character device needs it, and IBM 3270's (RFC 1576)."""

from __future__ import annotations

_IAC = 255
_BREAK, _WILL, _DO = 243, 251, 253
_WITH_OPTION = frozenset((251, 252, 253, 254))
_SUBNEGOTIATION, _SUBNEGOTIATION_END = 250, 240
_END_OF_RECORD = 239
_BINARY, _ECHO, _SUPPRESS_GO_AHEAD, _TERMINAL_TYPE, _RECORDS = 0, 1, 3, 24, 25
_SEND = 1


class TelnetLayer:
    """Asks for a character-at-a-time, 8-bit connection and takes telnet commands out of the stream."""

    ready = True
    ended = False
    _kept: frozenset[int] = frozenset()
    """Commands that the front end sees."""

    def __init__(self) -> None:
        self._command: list[int] = []
        self._breaks = 0

    def begin(self) -> bytes:
        wishes = ((_WILL, _ECHO), (_WILL, _SUPPRESS_GO_AHEAD), (_WILL, _BINARY), (_DO, _BINARY))
        return bytes(code for verb, option in wishes for code in (_IAC, verb, option))

    def incoming(self, data: bytes) -> tuple[bytes, bytes]:
        if not self._command and _IAC not in data:
            return data, b""
        inside = bytearray()
        for code in data:
            if self._command:
                self._take(code, inside)
            elif code == _IAC:
                self._command = [code]
            else:
                inside.append(code)
        return bytes(inside), b""

    def _take(self, code: int, inside: bytearray) -> None:
        command = self._command
        if len(command) == 1:
            if code == _IAC:
                inside.append(code)
            elif code == _BREAK:
                self._breaks += 1
            elif code in self._kept:
                inside += bytes((_IAC, code))
            elif code in _WITH_OPTION or code == _SUBNEGOTIATION:
                command.append(code)
                return
        elif command[1] == _SUBNEGOTIATION:
            # What is negotiated does not matter, only where it ends: IAC SE.
            command[2:] = [code] if command[2:] != [_IAC] or code != _SUBNEGOTIATION_END else []
            if len(command) > 2:
                return
        self._command = []

    def outgoing(self, data: bytes) -> bytes:
        return data.replace(b"\xff", b"\xff\xff")

    def take_breaks(self) -> int:
        breaks, self._breaks = self._breaks, 0
        return breaks


class Tn3270Layer(TelnetLayer):
    """Asks for binary records and the kind of terminal; the front end puts and sees the marks between records."""

    _kept = frozenset((_END_OF_RECORD,))

    def begin(self) -> bytes:
        wishes = ((_DO, _RECORDS), (_WILL, _RECORDS), (_DO, _BINARY), (_WILL, _BINARY), (_DO, _TERMINAL_TYPE))
        asked = bytes(code for verb, option in wishes for code in (_IAC, verb, option))
        return asked + bytes((_IAC, _SUBNEGOTIATION, _TERMINAL_TYPE, _SEND, _IAC, _SUBNEGOTIATION_END))

    def outgoing(self, data: bytes) -> bytes:
        return data
