"""The locks on an image file.

They are open-file-description locks on single bytes of the image, those that QEMU takes, so that Qobra and QEMU
respect one another: byte 100 + N is locked (shared) by whoever uses permission N, byte 200 + N by whoever does not
share it. Permission N is the bit number in :mod:`qobra.block.permissions`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from qobra.block import permissions
from qobra.errors import QobraError, strerror

_F_OFD_GETLK = 36
_F_OFD_SETLK = 37
_FLOCK = struct.Struct("hhqqi4x")
_PERM_BASE = 100
_SHARED_BASE = 200
_BITS = range(5)

_TEXTS = {0: "consistent read", 1: "write", 2: "write unchanged", 3: "resize", 4: "change children"}


def available() -> bool:
    """Whether the host has open-file-description locks (Linux since 3.15)."""
    return os.uname().sysname == "Linux"


def _lock(fd: int, kind: int, offset: int) -> None:
    fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))


def _is_free(fd: int, offset: int) -> bool:
    """Whether an exclusive lock on the byte would be granted; nothing is taken."""
    answer = fcntl.fcntl(fd, _F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] == fcntl.F_UNLCK)


class HeldLocks:
    """The bytes of one open file that are locked."""

    def __init__(self) -> None:
        self._bytes: set[int] = set()

    def take(self, fd: int, perm: int, shared: int, path: str) -> None:
        """Lock what ``perm`` and ``shared`` need on top of what is held, and see that nobody else objects.

        Raises QobraError in QEMU's words; then only what was held before is held.
        """
        wanted = _wanted(perm, shared)
        fresh: list[int] = []
        try:
            for offset in sorted(wanted - self._bytes):
                name = _TEXTS[offset % 100]
                try:
                    _lock(fd, fcntl.F_RDLCK, offset)
                except OSError as error:
                    if error.errno in (errno.EAGAIN, errno.EACCES):
                        raise _refused("lock", name, path)
                    raise QobraError(f"Failed to lock byte {offset}: {strerror(error)}", errno=error.errno)
                fresh.append(offset)
                self._bytes.add(offset)
            for bit in _BITS:
                if perm >> bit & 1 and not _is_free_of_others(fd, _SHARED_BASE + bit, self._bytes):
                    raise _refused(f'"{_TEXTS[bit]}" lock', "", path)
            for bit in _BITS:
                if not shared >> bit & 1 and not _is_free_of_others(fd, _PERM_BASE + bit, self._bytes):
                    raise _refused(f'shared "{_TEXTS[bit]}" lock', "", path)
        except BaseException:
            for offset in fresh:
                _lock(fd, fcntl.F_UNLCK, offset)
                self._bytes.discard(offset)
            raise

    def settle(self, fd: int, perm: int, shared: int) -> None:
        """Unlock what ``perm`` and ``shared`` do not need."""
        for offset in self._bytes - _wanted(perm, shared):
            _lock(fd, fcntl.F_UNLCK, offset)
            self._bytes.discard(offset)

    def copy(self, fd: int) -> None:
        """Take the same locks on another open file of the same image (shared locks do not conflict)."""
        for offset in self._bytes:
            _lock(fd, fcntl.F_RDLCK, offset)


def _wanted(perm: int, shared: int) -> set[int]:
    return {_PERM_BASE + bit for bit in _BITS if perm >> bit & 1} | {
        _SHARED_BASE + bit for bit in _BITS if not shared >> bit & 1
    }


def _is_free_of_others(fd: int, offset: int, own: set[int]) -> bool:
    # F_OFD_GETLK ignores the locks of the open file that it is asked on, so `own` does not disturb.
    del own
    return _is_free(fd, offset)


def _refused(what: str, name: str, path: str) -> QobraError:
    text = f"Failed to get {what}" if not name else f'Failed to get "{name}" {what}'
    return QobraError(text, errno=errno.EAGAIN, hint=f"Is another process using the image [{path}]?")


def take_for_creation(fd: int, path: str) -> None:
    """Make sure that nobody uses the image in ``fd``, which is about to be overwritten. The locks end with ``fd``."""
    perm = permissions.WRITE | permissions.RESIZE
    HeldLocks().take(fd, perm, permissions.ALL & ~permissions.RESIZE, path)
