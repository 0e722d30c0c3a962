"""vhost-user on the wire: numbers, structs, and messages with descriptors (the vhost-user protocol specification).

All integers are the host's own, which here means little-endian.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from struct import Struct
from typing import NamedTuple

from qobra.errors import QobraError

GET_FEATURES = 1
SET_FEATURES = 2
SET_OWNER = 3
RESET_OWNER = 4
SET_MEM_TABLE = 5
SET_VRING_NUM = 8
SET_VRING_ADDR = 9
SET_VRING_BASE = 10
GET_VRING_BASE = 11
SET_VRING_KICK = 12
SET_VRING_CALL = 13
SET_VRING_ERR = 14
GET_PROTOCOL_FEATURES = 15
SET_PROTOCOL_FEATURES = 16
GET_QUEUE_NUM = 17
SET_VRING_ENABLE = 18
GET_CONFIG = 24
SET_CONFIG = 25
GET_MAX_MEM_SLOTS = 36
ADD_MEM_REG = 37
REM_MEM_REG = 38

F_PROTOCOL_FEATURES = 30
"""The feature bit (of GET_FEATURES) that says that there are protocol features."""
PROTOCOL_F_MQ = 0
PROTOCOL_F_REPLY_ACK = 3
PROTOCOL_F_CONFIG = 9
PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15

FLAG_VERSION = 1
FLAG_VERSION_MASK = 3
FLAG_REPLY = 1 << 2
FLAG_NEED_REPLY = 1 << 3

VRING_INDEX_MASK = 0xFF
VRING_NO_FD = 1 << 8

MAX_REGIONS = 64
"""Memory regions that a front end may have."""
MAX_FDS = 8
MAX_PAYLOAD = 4096

HEADER = Struct("<III")  # request, flags, payload size
U64 = Struct("<Q")
MEM_HEADER = Struct("<II")  # regions, padding
MEM_REGION = Struct("<QQQQ")  # guest address, size, front end's address, offset in the descriptor
MEM_SINGLE = Struct("<QQQQQ")  # padding, then a region
VRING_STATE = Struct("<II")  # index, number
VRING_ADDR = Struct("<IIQQQQ")  # index, flags, descriptor, used, available ring, log
CONFIG = Struct("<III")  # offset, size, flags; the bytes follow


class Message(NamedTuple):
    """A request of the front end. Whoever gets it owns the descriptors."""

    request: int
    flags: int
    payload: bytes
    fds: list[int]


def receive(sock: socket.socket) -> Message | None:
    """The next message; None at the end. Raises QobraError for one that breaks the protocol, OSError."""
    fds: list[int] = []
    try:
        header = b""
        while len(header) < HEADER.size:
            ancillary_size = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
            data, ancillary, flags, _address = sock.recvmsg(
                HEADER.size - len(header), ancillary_size, socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, body in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers = array.array("i")
                    numbers.frombytes(body[: len(body) - len(body) % numbers.itemsize])
                    fds += numbers
            if not data:
                if header:
                    raise QobraError("vhost-user: end of stream in a message", errno=errno.EPIPE)
                return None
            header += data
            if flags & socket.MSG_CTRUNC or len(fds) > MAX_FDS:
                raise QobraError("vhost-user: too many descriptors in a message", errno=errno.EPROTO)
        request, message_flags, size = HEADER.unpack(header)
        if message_flags & FLAG_VERSION_MASK != FLAG_VERSION or size > MAX_PAYLOAD:
            raise QobraError(f"vhost-user: malformed header of message {request}", errno=errno.EPROTO)
        payload = b""
        while len(payload) < size:
            data = sock.recv(size - len(payload))
            if not data:
                raise QobraError("vhost-user: end of stream in a message", errno=errno.EPIPE)
            payload += data
        message = Message(request, message_flags, payload, fds)
        fds = []
        return message
    finally:
        for fd in fds:
            os.close(fd)


def reply(sock: socket.socket, request: int, payload: bytes) -> None:
    """Answer ``request``."""
    sock.sendall(HEADER.pack(request, FLAG_VERSION | FLAG_REPLY, len(payload)) + payload)
