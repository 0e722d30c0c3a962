"""Memory that is shared with another process, whose file may get shorter than what is mapped of it.

Touching a page past the end of its file (or one for which the file system has no room) raises SIGBUS, which ends the
process. Here it ends the use of that memory alone: a handler puts empty memory of ours in its place, and the mapping
says that it is ``lost``. The handler runs in the thread that touched the page, and the instruction is done again.

The file system may be a program of the other side's as well, which leaves whoever touches a page waiting, the
interpreter's lock in hand: such files are refused.
"""

from __future__ import annotations

import _signal as signal  # the signal module is slow to import
import ctypes
import errno
import mmap
import threading
import weakref

from qobra.errors import QobraError

_SA_SIGINFO = 4
_MAP_FIXED = 0x10
_MASK_SIZE = 128  # of a sigset_t
_ADDRESS_AT = 16 if ctypes.sizeof(ctypes.c_void_p) == 8 else 12
"""Where a siginfo_t has the address (sigaction(2))."""
_STATFS_SIZE = 256  # at least; its first word is the type (statfs(2))
_SERVED = {
    0x65735546: "FUSE",
    0x6969: "NFS",
    0x01021997: "9P",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x00C36400: "Ceph",
}
"""File systems whose pages come from another program or host."""

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    """``struct sigaction`` of the C library."""

    _fields_ = [
        ("handler", _Handler),
        ("mask", ctypes.c_char * _MASK_SIZE),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


class SharedMemory(mmap.mmap):
    """A mapping of a file that others may shorten."""

    lost = False
    """Whether it is not the file's any more."""


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_lock = threading.Lock()
_guarded: list[tuple[int, weakref.ref[SharedMemory]]] = []
_before: _Action | None = None


def share(fd: int, length: int) -> SharedMemory:
    """Map the first ``length`` bytes of ``fd``. Raises QobraError, OSError, ValueError, OverflowError."""
    global _before, _guarded
    served = _SERVED.get(_file_system(fd))
    if served:
        raise QobraError(f"memory of a file on {served} is not supported", errno=errno.EINVAL)
    mapping = SharedMemory(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    with _lock:
        if _before is None:
            before = _Action()
            _libc.sigaction(signal.SIGBUS, ctypes.byref(_action), ctypes.byref(before))
            _before = before
        # A new list: the handler may be looking at this one.
        _guarded = [each for each in _guarded if each[1]() is not None] + [(address, weakref.ref(mapping))]
    return mapping


def enter_thread() -> None:
    """The calling thread touches such memory: with the signal held back, the kernel would end the process at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGBUS})


def _file_system(fd: int) -> int:
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    if _libc.fstatfs(fd, buffer):
        number = ctypes.get_errno()
        raise OSError(number, "fstatfs failed")
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def _handle(_number: int, info: int, _context: int) -> None:
    touched = ctypes.c_void_p.from_address(info + _ADDRESS_AT).value or 0
    for address, reference in _guarded:
        mapping = reference()
        if mapping is not None and address <= touched < address + len(mapping):
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
            if _libc.mmap(address, len(mapping), protection, flags, -1, 0) == address:
                mapping.lost = True
                return
    # Not ours: whoever was here before is asked, as the instruction is done again.
    _libc.sigaction(signal.SIGBUS, ctypes.byref(_before) if _before is not None else None, None)


_action = _Action(_Handler(_handle), b"", _SA_SIGINFO, None)
