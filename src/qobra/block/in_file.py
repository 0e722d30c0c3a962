"""Data that lies in a file, in the place of a buffer: what is written from it is moved by the kernel."""

from __future__ import annotations

import errno
import os

_NO_COPY_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.ETXTBSY, errno.EPERM)
_BOUNCE = 512 << 10


class InFile:
    """``length`` bytes at ``offset`` of the file ``fd``. Has a length and can be sliced, as a buffer can."""

    __slots__ = ("fd", "length", "offset")

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self.fd = fd
        self.offset = offset
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> InFile:
        start, stop, _step = part.indices(self.length)
        return InFile(self.fd, self.offset + start, stop - start)

    def copy_to(self, fd: int, offset: int) -> None:
        """Write it at ``offset`` of another file; what is past this file's end is zeroes. Raises OSError."""
        done = 0
        try:
            while done < self.length:
                moved = os.copy_file_range(self.fd, fd, self.length - done, self.offset + done, offset + done)
                if not moved:
                    break
                done += moved
        except OSError as error:
            if error.errno not in _NO_COPY_RANGE:
                raise
        while done < self.length:
            data = os.pread(self.fd, min(_BOUNCE, self.length - done), self.offset + done)
            if not data:
                data = bytes(min(_BOUNCE, self.length - done))
            written = 0
            while written < len(data):
                written += os.pwrite(fd, memoryview(data)[written:], offset + done + written)
            done += len(data)
