"""How messages and orders go to a controller in another process: the protocol of OpenIPMI's simulator (its README.vm).

Each ends with a byte of its own. What would be taken for such a byte is escaped. A message has a sequence number before
it and a checksum behind it.
"""

from __future__ import annotations

from qobra.machine.ipmi.bmc import MAX_MESSAGE

MESSAGE_END, ORDER_END, _ESCAPE = 0xA0, 0xA1, 0xAA
_ESCAPED = 0x10
NO_ATTENTION, ATTENTION, ATTENTION_INTERRUPT, POWER_OFF, RESET, ENABLE_IRQ, DISABLE_IRQ, SEND_NMI = range(8)
CAPABILITIES, GRACEFUL_SHUTDOWN, VERSION = 0x08, 0x09, 0xFF
PROTOCOL_VERSION = 1
ALL_CAPABILITIES = 0x3F
"""To switch off, to reset, to interrupt, NMI, attention, to shut down gracefully."""
_MAX_LENGTH = MAX_MESSAGE + 2


def frame(content: bytes, end: int) -> bytes:
    """``content`` as it is sent."""
    sent = bytearray()
    for value in content:
        if value in (MESSAGE_END, ORDER_END, _ESCAPE):
            sent += bytes((_ESCAPE, value | _ESCAPED))
        else:
            sent.append(value)
    sent.append(end)
    return bytes(sent)


def message(sequence: int, request: bytes) -> bytes:
    """A request as it is sent."""
    content = bytes((sequence,)) + request
    return frame(content + bytes((-sum(content) & 0xFF,)), MESSAGE_END)


class Receiver:
    """Takes apart what comes in. What is too long is left out, as is a message whose checksum is wrong."""

    def __init__(self) -> None:
        self._content = bytearray()
        self._escaped = False
        self._too_long = False

    def take(self, data: bytes) -> list[tuple[int, bytes]]:
        """What is complete with ``data``: how it ended, and what it was, messages without their checksum."""
        found = []
        for value in data:
            if value in (MESSAGE_END, ORDER_END):
                content = bytes(self._content)
                if not self._too_long and not self._escaped and content:
                    if value == ORDER_END:
                        found.append((value, content))
                    elif not sum(content) & 0xFF:
                        found.append((value, content[:-1]))
                self.clear()
            elif value == _ESCAPE:
                self._escaped = True
            elif len(self._content) >= _MAX_LENGTH:
                self._too_long = True
            else:
                self._content.append(value & ~_ESCAPED if self._escaped else value)
                self._escaped = False
        return found

    def clear(self) -> None:
        """Forget what is incomplete."""
        self._content = bytearray()
        self._escaped = self._too_long = False
