"""Queued commands of SATA disks: READ and WRITE FPDMA QUEUED (ACS-3, 7.24 and 7.63), many under way at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from qobra.machine.ata import regs
from qobra.machine.ata.device import MAX_CHUNK

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend
    from qobra.machine.ata.device import AtaDevice
    from qobra.machine.dma import ScatterList

READ_QUEUED, WRITE_QUEUED = 0x60, 0x61


class QueueOwner(Protocol):
    """The host's end, which has the bits of what is under way."""

    def queued_done(self, device: AtaDevice, tag: int, *, ok: bool) -> None:
        """The command with that tag is over."""
        ...


class QueuedCommand:
    """One command, from the frame that brought it."""

    def __init__(self, owner: QueueOwner, device: AtaDevice, frame: bytes, scatter: ScatterList) -> None:
        self._owner = owner
        self._device = device
        self._scatter = scatter
        self.tag = frame[12] >> 3
        self._to_device = frame[2] == WRITE_QUEUED
        self._fua = bool(frame[7] & 0x80)
        sector = int.from_bytes(frame[4:7], "little") | int.from_bytes(frame[8:11], "little") << 24
        self._offset = sector * regs.SECTOR
        self.length = ((frame[11] << 8 | frame[3]) or 65536) * regs.SECTOR
        self._at = 0

    @property
    def fits(self) -> bool:
        """Whether there is memory for all that the command moves."""
        return self._scatter.length >= self.length

    def start(self) -> None:
        """Begin, or fail where the disk or the memory has no room."""
        backend = self._device.backend
        in_reach = (
            backend is not None and not self._device.is_removable and self._offset + self.length <= backend.length
        )
        if in_reach and self.fits:
            self._next()
        else:
            self._end(False)

    def _next(self) -> None:
        chunk, at, offset = min(self.length - self._at, MAX_CHUNK), self._at, self._offset + self._at
        if not chunk:
            self._end(True)
            return
        if self._to_device:
            data, fua = self._scatter.read(at, chunk), self._fua

            def write(backend: BlockBackend) -> None:
                backend.write(offset, data, fua=fua)

            self._device.requests.submit(write, self._moved, is_read=False)
        else:
            self._device.requests.submit(lambda backend: backend.read(offset, chunk), self._moved, is_read=True)

    def _moved(self, data: bytes | None, error: Exception | None) -> None:
        if error is not None:
            self._end(False)
            return
        if data is not None:
            self._scatter.write(self._at, data)
        self._at += min(self.length - self._at, MAX_CHUNK)
        self._next()

    def _end(self, ok: bool) -> None:
        device = self._device
        if ok:
            device.status, device.error = regs.READY | regs.SEEK, 0
        else:
            device.status, device.error = regs.READY | regs.ERR, regs.ABORTED
        self._owner.queued_done(device, self.tag, ok=ok)
