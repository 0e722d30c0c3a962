"""The NBD protocol's numbers and wire structs.

Names and values follow the protocol specification (https://github.com/NetworkBlockDevice/nbd, doc/proto.md). All
integers are big-endian. Offsets and lengths are bytes.
"""

from __future__ import annotations

import errno
from struct import Struct

DEFAULT_PORT = 10809

# Handshake -----------------------------------------------------------------------------------------------------------

INIT_MAGIC = 0x4E42444D41474943
"""``NBDMAGIC``: the first eight bytes that a server sends."""
OPTION_MAGIC = 0x49484156454F5054
"""``IHAVEOPT``: says newstyle, and begins each option request."""
OLDSTYLE_MAGIC = 0x00420281861253
OPTION_REPLY_MAGIC = 0x0003E889045565A9

FLAG_FIXED_NEWSTYLE = 1 << 0
FLAG_NO_ZEROES = 1 << 1

OPT_EXPORT_NAME = 1
OPT_ABORT = 2
OPT_LIST = 3
OPT_STARTTLS = 5
OPT_INFO = 6
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10
OPT_EXTENDED_HEADERS = 11

OPTION_NAMES = {
    OPT_EXPORT_NAME: "export name",
    OPT_ABORT: "abort",
    OPT_LIST: "list",
    OPT_STARTTLS: "starttls",
    OPT_INFO: "info",
    OPT_GO: "go",
    OPT_STRUCTURED_REPLY: "structured reply",
    OPT_LIST_META_CONTEXT: "list meta context",
    OPT_SET_META_CONTEXT: "set meta context",
    OPT_EXTENDED_HEADERS: "extended headers",
}

REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERROR_BIT = 1 << 31
REP_ERR_UNSUP = REP_ERROR_BIT | 1
REP_ERR_POLICY = REP_ERROR_BIT | 2
REP_ERR_INVALID = REP_ERROR_BIT | 3
REP_ERR_PLATFORM = REP_ERROR_BIT | 4
REP_ERR_TLS_REQD = REP_ERROR_BIT | 5
REP_ERR_UNKNOWN = REP_ERROR_BIT | 6
REP_ERR_SHUTDOWN = REP_ERROR_BIT | 7
REP_ERR_BLOCK_SIZE_REQD = REP_ERROR_BIT | 8
REP_ERR_TOO_BIG = REP_ERROR_BIT | 9

INFO_EXPORT = 0
INFO_NAME = 1
INFO_DESCRIPTION = 2
INFO_BLOCK_SIZE = 3

MAX_STRING = 4096
"""The longest export name, context name, description or error text that the specification allows, in bytes."""

# Transmission flags --------------------------------------------------------------------------------------------------

FLAG_HAS_FLAGS = 1 << 0
FLAG_READ_ONLY = 1 << 1
FLAG_SEND_FLUSH = 1 << 2
FLAG_SEND_FUA = 1 << 3
FLAG_ROTATIONAL = 1 << 4
FLAG_SEND_TRIM = 1 << 5
FLAG_SEND_WRITE_ZEROES = 1 << 6
FLAG_SEND_DF = 1 << 7
FLAG_CAN_MULTI_CONN = 1 << 8
FLAG_SEND_RESIZE = 1 << 9
FLAG_SEND_CACHE = 1 << 10
FLAG_SEND_FAST_ZERO = 1 << 11

# Transmission --------------------------------------------------------------------------------------------------------

REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

CMD_READ = 0
CMD_WRITE = 1
CMD_DISC = 2
CMD_FLUSH = 3
CMD_TRIM = 4
CMD_CACHE = 5
CMD_WRITE_ZEROES = 6
CMD_BLOCK_STATUS = 7

COMMAND_NAMES = {
    CMD_READ: "read",
    CMD_WRITE: "write",
    CMD_DISC: "disconnect",
    CMD_FLUSH: "flush",
    CMD_TRIM: "trim",
    CMD_CACHE: "cache",
    CMD_WRITE_ZEROES: "write zeroes",
    CMD_BLOCK_STATUS: "block status",
}

CMD_FLAG_FUA = 1 << 0
CMD_FLAG_NO_HOLE = 1 << 1
CMD_FLAG_DF = 1 << 2
CMD_FLAG_REQ_ONE = 1 << 3
CMD_FLAG_FAST_ZERO = 1 << 4

REPLY_FLAG_DONE = 1 << 0

CHUNK_NONE = 0
CHUNK_OFFSET_DATA = 1
CHUNK_OFFSET_HOLE = 2
CHUNK_BLOCK_STATUS = 5
CHUNK_ERROR_BIT = 1 << 15
CHUNK_ERROR = CHUNK_ERROR_BIT | 1
CHUNK_ERROR_OFFSET = CHUNK_ERROR_BIT | 2

CONTEXT_BASE_ALLOCATION = "base:allocation"
CONTEXT_ALLOCATION_DEPTH = "qemu:allocation-depth"
CONTEXT_DIRTY_BITMAP = "qemu:dirty-bitmap:"

STATE_HOLE = 1 << 0
STATE_ZERO = 1 << 1
STATE_DIRTY = 1 << 0

MAX_PAYLOAD = 32 << 20
"""The most data in one read or write request that any server must take, and that this one takes."""
MAX_EXTENTS = 1 << 17
"""The most extents in one block status chunk (1 MiB of them, as QEMU has it)."""

# Wire structs --------------------------------------------------------------------------------------------------------

GREETING = Struct(">QQH")  # INIT_MAGIC, OPTION_MAGIC, handshake flags
MAGICS = Struct(">QQ")  # what GREETING begins with
OLDSTYLE_EXPORT = Struct(">QI")  # size, flags; then 124 zero bytes
CLIENT_FLAGS = Struct(">I")
OPTION = Struct(">QII")  # OPTION_MAGIC, option, length
OPTION_REPLY = Struct(">QIII")  # OPTION_REPLY_MAGIC, option, reply type, length
EXPORT_REPLY = Struct(">QH")  # size, transmission flags; then 124 zero bytes unless NO_ZEROES
EXPORT_REPLY_PADDING = 124
INFO_EXPORT_BODY = Struct(">HQH")  # INFO_EXPORT, size, transmission flags
INFO_BLOCK_SIZE_BODY = Struct(">HIII")  # INFO_BLOCK_SIZE, minimum, preferred, maximum
U16 = Struct(">H")
U32 = Struct(">I")
U64 = Struct(">Q")

REQUEST = Struct(">IHHQQI")  # REQUEST_MAGIC, command flags, command, cookie, offset, length
SIMPLE_REPLY = Struct(">IIQ")  # SIMPLE_REPLY_MAGIC, error, cookie
CHUNK = Struct(">IHHQI")  # STRUCTURED_REPLY_MAGIC, flags, type, cookie, payload length
CHUNK_DATA = Struct(">IHHQIQ")  # the same, with the offset that begins an OFFSET_DATA payload
HOLE_BODY = Struct(">QI")  # offset, length
ERROR_BODY = Struct(">IH")  # error, message length; the message follows
EXTENT = Struct(">II")  # length, status flags

# Errors --------------------------------------------------------------------------------------------------------------

_WIRE_ERRORS = frozenset(
    (
        errno.EPERM,
        errno.EIO,
        errno.ENOMEM,
        errno.EINVAL,
        errno.ENOSPC,
        errno.EOVERFLOW,
        errno.ENOTSUP,
        errno.ESHUTDOWN,
    )
)


def octets(text: str) -> bytes:
    """A name or message as it goes over the wire: in UTF-8; what was none when it came goes out as it was."""
    return text.encode("utf-8", "surrogateescape")


def visible(data: bytes) -> str:
    """What a peer said, for a line of a message: what would control a terminal is spelled out."""
    text = data.decode("utf-8", "replace")
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def wire_error(number: int) -> int:
    """The protocol's error for an errno: itself where the protocol has it, else the nearest one, else EINVAL."""
    if number in _WIRE_ERRORS:
        return number
    if number == errno.EROFS:
        return errno.EPERM
    if number in (errno.EFBIG, errno.EDQUOT):
        return errno.ENOSPC
    return errno.EINVAL


def host_error(number: int) -> int:
    """The errno for an error that came over the wire; one that the protocol does not know counts as EINVAL."""
    return number if number in _WIRE_ERRORS else errno.EINVAL
