"""What stands for the world outside of a machine, where a device needs one."""

from __future__ import annotations

import ctypes
import errno
import random
from pathlib import Path
from typing import Any
from unittest import mock

from qobra.machine.machine import Machine

_SG_IO, _GET_SCSI_ID, _GET_VERSION = 0x2285, 0x2276, 0x2282
_FROM_DEVICE = -3


class Disk:
    """A vhost-user disk of two queues that another machine serves at ``path``."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "disk.sock")
        self._server = Machine()
        with self._server.control:
            self._server.block.add_node({"driver": "null-co", "node-name": "n", "size": 1 << 20, "read-zeroes": True})
            address = {"type": "unix", "path": self.path}
            options = {"type": "vhost-user-blk", "id": "e", "node-name": "n", "writable": True, "addr": address} | {
                "num-queues": 2
            }
            self._server.block.exports.add(options)

    def close(self) -> None:
        """Serve no more."""
        self._server.close()


class ScsiKernel:
    """A kernel with one SCSI disk, which answers every command with noise and all kinds of status."""

    def __init__(self) -> None:
        self._noise = random.Random(0)
        self._patch = mock.patch("fcntl.ioctl", self._ioctl)
        self._patch.start()

    def close(self) -> None:
        """Be gone."""
        self._patch.stop()

    def _ioctl(self, _fd: int, request: int, argument: Any) -> int:
        if request == _GET_VERSION:
            argument[:4] = (30536).to_bytes(4, "little")
        elif request == _GET_SCSI_ID:
            argument[16:20] = bytes(4)
        elif request == _SG_IO:
            if argument.direction == _FROM_DEVICE:
                length = self._noise.randrange(argument.length + 1)
                ctypes.memmove(argument.data, self._noise.randbytes(length), length)
                argument.residual = argument.length - length
            argument.status = self._noise.choice((0, 0, 2, 8, 0x18))
            argument.driver_status, argument.host_status = self._noise.choice((0, 6, 8)), self._noise.choice((0, 2, 3))
            argument.sense_written = self._noise.choice((0, 18, argument.max_sense))
        else:
            raise OSError(errno.ENOTTY, "")
        return 0
