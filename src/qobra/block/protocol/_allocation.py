"""Space for a file: fallocate(2), preallocation, and new files."""

from __future__ import annotations

import errno
import os

from qobra.block.buffers import BOUNCE_SIZE, fill_zero
from qobra.block.protocol import _locks as locks
from qobra.block.protocol._direct import ALIGNMENT, aligned_buffer
from qobra.errors import QobraError, strerror
from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.block.node import Options

_libc: Any = None


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError."""
    native = compiled("host")
    if native is not None:
        native.fallocate(fd, mode, offset, length)
    else:
        pure_fallocate(fd, mode, offset, length)


def pure_fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """:func:`fallocate` without the compiled form."""
    import ctypes  # dear

    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
    while True:
        if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0:
            return
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


NOT_RESIZED = {
    "off": "Could not resize file",
    "falloc": "Could not preallocate new data",
    "full": "Could not write zeros for preallocation",
}
"""How the error begins, by the preallocation that was asked for."""


def preallocate(fd: int, old_length: int, length: int, preallocation: str) -> None:
    """Give the file ``length`` bytes, where it has ``old_length``; ``preallocation`` is a PreallocMode that files know.

    Raises OSError, and QobraError where the mode is unknown or not even the length can be set.
    """
    if preallocation == "off":
        os.ftruncate(fd, length)
    elif preallocation == "falloc":
        if length > old_length:
            os.posix_fallocate(fd, old_length, length - old_length)
        else:
            os.ftruncate(fd, length)
    elif preallocation == "full":
        try:
            os.ftruncate(fd, length)
        except OSError as error:
            raise QobraError(f"{NOT_RESIZED['off']}: {strerror(error)}", errno=error.errno)
        zeroes = bytes(BOUNCE_SIZE)
        offset = old_length
        while offset < length:
            size = os.pwrite(fd, zeroes[: min(BOUNCE_SIZE, length - offset)], offset)
            # The disk is to begin at once: this starts writing what is dirty, and does not wait.
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)
            offset += size
        os.fsync(fd)
    else:
        raise QobraError(f"Unsupported preallocation mode: {preallocation}", errno=errno.ENOTSUP)
    if preallocation != "full" and not old_length and length:
        # Direct I/O finds out its alignment by reading the first block, which tells nothing in a hole. The file may be
        # open for direct I/O itself.
        size = ALIGNMENT if length >= ALIGNMENT else 512
        with aligned_buffer(ALIGNMENT) as block:
            fill_zero(block)
            try:
                os.pwrite(fd, block[:size], 0)
            except OSError:
                pass  # others do without this help


def create_file(options: Options) -> None:
    """A new file of ``size`` bytes, preallocated as asked for (BlockdevCreateOptionsFile).

    Raises QobraError; a file that could not be completed is left, empty.
    """
    path = options["filename"].removeprefix("file:")
    preallocation = options.get("preallocation", "off")
    if not 0 <= options.get("extent-size-hint", 0) < 1 << 32:
        raise QobraError("Extent size hint is too large", errno=errno.EINVAL)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise QobraError(f"Could not create '{path}': {strerror(error)}", errno=error.errno)
    except ValueError:  # a NUL character: no file can have such a name
        raise QobraError(f"Could not create '{path}': {os.strerror(errno.ENOENT)}", errno=errno.ENOENT)
    try:
        if locks.available():
            locks.take_for_creation(fd, path)
        os.ftruncate(fd, 0)
        if options["size"] >= 1 << 63:
            if preallocation != "off":
                raise QobraError("Cannot use preallocation for shrinking files", errno=errno.ENOTSUP)
            raise QobraError("Could not resize file: Invalid argument", errno=errno.EINVAL)
        try:
            preallocate(fd, 0, options["size"], preallocation)
        except BaseException:
            os.ftruncate(fd, 0)  # or it could be taken for whole
            raise
    except OSError as error:
        raise QobraError(f"{NOT_RESIZED[preallocation]}: {strerror(error)}", errno=error.errno)
    finally:
        os.close(fd)
