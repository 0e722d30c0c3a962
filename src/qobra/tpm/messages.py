"""The headers of TPM commands and responses (TPM 2.0 Library part 1, 18; TPM Main 1.2 part 2, 3), all big-endian."""

from __future__ import annotations

from struct import Struct

HEADER = Struct(">HII")
"""Tag, length of the whole message, command or response code."""
_TAG_12_REQUEST, _TAG_12_RESPONSE, _TAG_20 = 0x00C1, 0x00C4, 0x8001
_ORDINAL_GET_TICKS, _COMMAND_READ_CLOCK = 0xF1, 0x181
_FAIL, _BAD_PARAM_SIZE, _COMMAND_SIZE = 9, 0x19, 0x142

PROBE_20 = HEADER.pack(_TAG_20, HEADER.size, _COMMAND_READ_CLOCK)
PROBE_12 = HEADER.pack(_TAG_12_REQUEST, HEADER.size, _ORDINAL_GET_TICKS)
"""Commands without effect that every TPM of the version knows."""
FAILURE = HEADER.pack(_TAG_12_RESPONSE, HEADER.size, _FAIL)
"""What a guest is told when its command could not be carried out at all."""


def wrong_size(*, is_20: bool) -> bytes:
    """What a TPM says to a command that is shorter than its header."""
    tag, code = (_TAG_20, _COMMAND_SIZE) if is_20 else (_TAG_12_RESPONSE, _BAD_PARAM_SIZE)
    return HEADER.pack(tag, HEADER.size, code)


def length(message: bytes | bytearray) -> int:
    """How long the message says that it is; 0 as long as that cannot be seen."""
    return int.from_bytes(message[2:6], "big") if len(message) >= 6 else 0


def is_20(response: bytes) -> bool:
    """Whether it is a TPM 2.0 that answered :data:`PROBE_20`."""
    return len(response) >= HEADER.size and HEADER.unpack_from(response)[0] == _TAG_20


def is_12(response: bytes) -> bool:
    """Whether it is a TPM 1.2 that answered :data:`PROBE_12`."""
    return len(response) >= HEADER.size and HEADER.unpack_from(response)[0] == _TAG_12_RESPONSE
