"""The FUSE wire format, as far as one regular file needs it (Linux' include/uapi/linux/fuse.h, protocol 7.39)."""

from __future__ import annotations

import struct

MAJOR, MINOR = 7, 39

LOOKUP = 1
FORGET = 2
GETATTR = 3
SETATTR = 4
OPEN = 14
READ = 15
WRITE = 16
STATFS = 17
RELEASE = 18
FSYNC = 20
FLUSH = 25
INIT = 26
ACCESS = 34
INTERRUPT = 36
DESTROY = 38
BATCH_FORGET = 42
FALLOCATE = 43
LSEEK = 46

HEADER = struct.Struct("=IIQQIIIHH")
"""length, opcode, unique, node id, uid, gid, pid, extension length, padding"""
REPLY = struct.Struct("=IiQ")
"""length, negative error number, unique"""
INIT_IN = struct.Struct("=IIII")
INIT_MORE = struct.Struct("=I")
"""The upper half of the flags, from kernels that set CAP_MORE."""
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
"""The last number is the upper half of the flags."""
ATTRIBUTES = struct.Struct("=QQQQQQIIIIIIIIII")
GETATTR_OUT = struct.Struct("=QII")
"""Seconds and nanoseconds that the attributes stay valid; the attributes follow."""
SETATTR_IN = struct.Struct("=IIQQQQQQIIIIIIII")
OPEN_IN = struct.Struct("=II")
OPEN_OUT = struct.Struct("=QIi")
READ_IN = struct.Struct("=QQIIQII")
WRITE_IN = READ_IN
WRITE_OUT = struct.Struct("=II")
STATFS_OUT = struct.Struct("=QQQQQIIII24x")
FALLOCATE_IN = struct.Struct("=QQQII")
LSEEK_IN = struct.Struct("=QQII")
LSEEK_OUT = struct.Struct("=Q")

SET_MODE, SET_UID, SET_GID, SET_SIZE = 1, 2, 4, 8
CAP_ASYNC_READ, CAP_BIG_WRITES, CAP_MAX_PAGES, CAP_MORE = 1 << 0, 1 << 5, 1 << 22, 1 << 30
CAP_DIRECT_IO_MMAP = 1 << 36
"""Files that are not read and written through the page cache can be mapped all the same (Linux 6.6)."""
OPEN_DIRECT_IO = 1

ROOT = 1
"""The node id of the file system's root, which here is the file."""
MAX_TRANSFER = 1 << 20
"""Bytes that one read or write moves at most."""
