"""``parallel``: a parallel port of the host, by the kernel's interface for programs (Linux, ppdev)."""

from __future__ import annotations

import os

from qobra.chardev.chardev import Chardev, registry
from qobra.chardev.fdio import open_path
from qobra.errors import QobraError

# <linux/ppdev.h>: each moves one byte, but for the last, which takes an int.
_CLAIM, _RELEASE = 0x0000708B, 0x0000708C
_READ_STATUS, _READ_CONTROL, _WRITE_CONTROL = 0x80017081, 0x80017083, 0x40017084
_READ_DATA, _WRITE_DATA, _DATA_DIRECTION = 0x80017085, 0x40017086, 0x40047090


@registry.register("parallel")
class ParallelChardev(Chardev):
    """No stream of bytes: the front end, a guest's parallel port, has the registers of the host's."""

    kind = "parallel"
    _fd = -1

    def start(self) -> None:
        import fcntl

        fd = open_path(self, self.options["device"], os.O_RDWR)
        try:
            fcntl.ioctl(fd, _CLAIM)
        except OSError as error:
            os.close(fd)
            raise QobraError.from_os("not a parallel port", error)
        self._fd = fd
        self.set_open(True)

    def stop(self) -> None:
        if self._fd >= 0:
            import fcntl

            fcntl.ioctl(self._fd, _RELEASE)
            os.close(self._fd)
            self._fd = -1

    @property
    def data(self) -> int:
        """The data lines."""
        return self._get(_READ_DATA)

    @data.setter
    def data(self, value: int) -> None:
        self._put(_WRITE_DATA, value)

    @property
    def status(self) -> int:
        """The status lines, as the register has them."""
        return self._get(_READ_STATUS)

    @property
    def control(self) -> int:
        """The control lines, as the register has them; of what is set, the lowest four bits count."""
        return self._get(_READ_CONTROL)

    @control.setter
    def control(self, value: int) -> None:
        self._put(_WRITE_CONTROL, value & 0x0F)

    def set_reverse(self, reverse: bool) -> None:
        """Whether the data lines are inputs."""
        self._call(_DATA_DIRECTION, int(reverse).to_bytes(4, "little"))

    def _get(self, request: int) -> int:
        return self._call(request, b"\xff")[0]

    def _put(self, request: int, value: int) -> None:
        self._call(request, bytes((value,)))

    def _call(self, request: int, value: bytes) -> bytes:
        import fcntl

        try:
            return fcntl.ioctl(self._fd, request, value)
        except OSError:
            return value  # a port that went away reads as nothing connected
