"""The ``host_device`` driver: a block device of the host."""

from __future__ import annotations

import errno
import fcntl
import stat
import struct

from qobra.block.node import Options, drivers
from qobra.block.protocol.file import FileNode
from qobra.errors import QobraError

_BLKDISCARD = 0x1277
_BLKZEROOUT = 0x127F
_RANGE = struct.Struct("QQ")


@drivers.register("host_device")
class HostDeviceNode(FileNode):
    """A disk of the host. Its size is the device's; zeroing and discarding are asked of the device."""

    driver = "host_device"
    protocols = ("host_device",)
    creatable = False

    @classmethod
    def parse_filename(cls, filename: str) -> Options | None:
        return {"driver": cls.driver, "filename": filename.removeprefix(f"{cls.driver}:")}

    def check_kind(self, mode: int) -> None:
        if not (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)):
            raise QobraError(f"'{self.driver}' driver requires '{self.path}' to be either a character or block device")

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        return super()._write_zeroes(offset, length, may_unmap, no_fallback) or self._ask(_BLKZEROOUT, offset, length)

    def _discard(self, offset: int, length: int) -> None:
        done = False
        try:
            done = self._ask(_BLKDISCARD, offset, length)
        finally:
            self.count_discard(length if done else None)

    def _flush(self) -> None:
        try:
            super()._flush()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # fsync(2): a special file that there is nothing to synchronise with.

    def _ask(self, request: int, offset: int, length: int) -> bool:
        """An ioctl on a range; False where the device does not know it."""
        try:
            fcntl.ioctl(self.fd, request, _RANGE.pack(offset, length))
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
                return False
            raise
        return True

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        if preallocation != "off":
            raise QobraError(f"Preallocation mode '{preallocation}' unsupported for this non-regular file")
        real = self._host_length()
        if length != real and exact:
            raise QobraError("Cannot resize device files", errno=errno.ENOTSUP)
        if length > real:
            raise QobraError("Cannot grow device files", errno=errno.EINVAL)
        self.length = real

    def has_zero_init(self) -> bool:
        return False
