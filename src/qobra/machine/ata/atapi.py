"""Packet devices: a CD drive that takes SCSI's commands in packets over ATA (ATA/ATAPI-7, 6.27; MMC-6)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from qobra.block.accounting import READ
from qobra.machine.ata import identify, regs
from qobra.machine.ata.device import MAX_CHUNK, AtaDevice
from qobra.machine.ata.packet import AttentionWaits, NoRoom, PacketCommands, ReadSectors
from qobra.machine.scsi import mmc, sense
from qobra.machine.scsi.sense import Sense
from qobra.machine.tray import CdTray
from qobra.machine.vmstate import Field, Maybe, Number, Together, VmState, u8

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend
    from qobra.machine.dma import ScatterList
    from qobra.object.tree import ObjectTree

PACKET_LENGTH = 12
_IO, _COMMAND = 0x02, 0x01
_DMA = 0x01
_LIMIT_MAX = 0xFFFE


class PacketDevice(CdTray, AtaDevice):
    """A CD drive. ``failure`` is why the last packet that failed did."""

    abstract = True
    signature = (0x14, 0xEB)
    reset_status = 0
    default_model = "QEMU DVD-ROM"

    vmstate = VmState(Field("_failure", Maybe(Together(Number(1), Number(1), Number(1)))), u8("changed", maximum=2))

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.failure: Sense | None = None
        self.changed = 0
        """Another medium came: 1 before the guest was told that the old one is gone, 2 after."""
        self._packets = PacketCommands(self)
        self._packet_dma = False
        self._left = 0
        self._at = 0
        self._reply = b""
        self._source: ReadSectors | None = None

    def restart(self) -> None:
        super().restart()
        self.failure = None
        self.changed = 0
        self._left = 0

    def reset(self) -> None:
        super().reset()
        self.close_and_unlock()

    @property
    def sectors(self) -> int:
        """The size of the medium in sectors of 2048 bytes."""
        return self.backend.length // mmc.SECTOR if self.backend is not None else 0

    def tray_moved(self) -> None:
        self.changed = 1
        if self.realized:
            self.port.interrupt(self)

    # -- ATA commands

    def commands(self) -> dict[int, Callable[[], None]]:
        table = self._table
        if table is None:
            table = self._table = {
                0x00: self.abort,
                0x08: self._device_reset,
                regs.DIAGNOSE: self._diagnose,
                0xA0: self._packet,
                0xA1: self._identify,
                0xE7: self._flush,
                0xEC: self._identify_ata,
                0xEF: self._set_features,
            }
        return table

    _table: dict[int, Callable[[], None]] | None = None

    def _identify(self) -> None:
        self.offer(identify.packet_device(self), self.end_reading)

    def _identify_ata(self) -> None:
        self.set_signature()
        self.abort()

    def _device_reset(self) -> None:
        self.requests.cancel()
        self.set_signature()
        self.status, self.error = 0, 0
        self._drop_data()

    def _diagnose(self) -> None:
        self.set_signature()
        self.status, self.error = 0, 0x01
        self._finish()

    def _set_features(self) -> None:
        if self.feature == 0x03:
            self.succeed()
        else:
            self.abort()

    def _flush(self) -> None:
        self.status |= regs.BUSY
        if self.backend is None or self.backend.node is None:
            self.succeed()
            return
        self.requests.submit(
            lambda backend: backend.flush(),
            lambda _none, error: self.abort() if error is not None else self.succeed(),
            is_read=False,
        )

    # -- packets

    def _packet(self) -> None:
        if self.feature & 0x02:
            self.abort()  # overlapping commands
            return
        self._packet_dma = bool(self.feature & _DMA)
        self.count = self.count & ~7 | _COMMAND
        self.want(PACKET_LENGTH, self._packet_come, quiet=True)

    def _packet_come(self, cdb: bytes) -> None:
        try:
            found = self._packets.execute(cdb)
        except Sense as failure:
            self._fail(failure)
            return
        except NoRoom:
            self.abort()
            return
        except AttentionWaits:
            self.status, self.error, self.count = regs.ERR, sense.UNIT_ATTENTION << 4, 0
            self._finish()
            return
        if isinstance(found, ReadSectors):
            self._begin(found.count * (mmc.RAW_SECTOR if found.raw else mmc.SECTOR), b"", found)
        elif found is None:
            self._packet_ok()
        else:
            self._begin(len(found), found, None)

    @property
    def byte_limit(self) -> int:
        """How many bytes the host takes in one go."""
        return self.high << 8 | self.mid

    @property
    def moves_by_dma(self) -> bool:
        """Whether the packet's data go by DMA."""
        return self._packet_dma

    def _fail(self, failure: Sense) -> None:
        self.failure = failure
        self.status = regs.READY | regs.ERR
        self.error = failure.key << 4
        self.count = self.count & ~7 | _IO | _COMMAND
        self._finish()

    def _packet_ok(self) -> None:
        self.error = 0
        self.count = self.count & ~7 | _IO | _COMMAND
        self.status = regs.READY | regs.SEEK
        self._finish()

    def _begin(self, length: int, reply: bytes, source: ReadSectors | None) -> None:
        self._left, self._at, self._reply, self._source = length, 0, reply, source
        if not length:
            self._packet_ok()
        elif self._packet_dma:
            self.await_dma(length, self._run_dma)
        else:
            self._next_block()

    def _fetch(self, length: int, then: Callable[[bytes], None]) -> None:
        # The next bytes of the answer, which are in memory or on the medium.
        if self._source is None:
            then(self._reply[self._at : self._at + length])
            return
        self.status |= regs.BUSY
        read = partial(_read_medium, self._source, self._at, length)
        self.requests.submit(read, partial(self._fetched, length, then), is_read=True)

    def _fetched(self, length: int, then: Callable[[bytes], None], data: bytes | None, error: Exception | None) -> None:
        if error is not None:
            if self._packet_dma:
                self.port.dma_done(self)
            self._fail(Sense(sense.MEDIUM_ERROR, 0x11))
            return
        then(data if data is not None else bytes(length))

    def _next_block(self) -> None:
        if not self._left:
            self._packet_ok()
            return
        limit = min(self.byte_limit, _LIMIT_MAX) or _LIMIT_MAX
        length = self._left
        if length > limit:
            length = limit & ~1 or 2
        length = min(length, self._left)
        self._fetch(length, self._offer_block)

    def _offer_block(self, data: bytes) -> None:
        self.count = self.count & ~7 | _IO
        self.mid, self.high = len(data) & 0xFF, len(data) >> 8
        self.status = regs.READY | regs.SEEK
        # An odd length leaves a byte that the host reads and throws away.
        self.offer(data if len(data) % 2 == 0 else data + b"\0", partial(self._block_read, len(data)))

    def _block_read(self, length: int) -> None:
        self._at += length
        self._left -= length
        self._next_block()

    def _run_dma(self, memory: ScatterList) -> None:
        self._left = min(self._left, memory.length)
        self._next_dma(memory)

    def _next_dma(self, memory: ScatterList) -> None:
        if not self._left:
            self.port.dma_done(self)
            self._packet_ok()
            return
        length = min(self._left, MAX_CHUNK)
        self._fetch(length, partial(self._dma_fetched, memory))

    def _dma_fetched(self, memory: ScatterList, data: bytes) -> None:
        memory.write(self._at, data)
        self._at += len(data)
        self._left -= len(data)
        self._next_dma(memory)

    def refuse_sectors(self) -> None:
        """A packet asked for sectors that are not there."""
        if self.backend is not None:
            self.backend.accounting.add_invalid(READ)

    @property
    def _failure(self) -> tuple[int, int, int] | None:
        failure = self.failure
        return (failure.key, failure.code, failure.qualifier) if failure is not None else None

    @_failure.setter
    def _failure(self, value: tuple[int, int, int] | None) -> None:
        self.failure = Sense(*value) if value is not None else None


def _read_medium(source: ReadSectors, at: int, length: int, backend: BlockBackend) -> bytes:
    """``length`` bytes from ``at`` on of what ``source`` means."""
    if not source.raw:
        return backend.read(source.sector * mmc.SECTOR + at, length)
    first, end = at // mmc.RAW_SECTOR, -(-(at + length) // mmc.RAW_SECTOR)
    data = backend.read((source.sector + first) * mmc.SECTOR, (end - first) * mmc.SECTOR)
    frames = b"".join(
        mmc.raw_sector(source.sector + first + n, data[n * mmc.SECTOR : (n + 1) * mmc.SECTOR])
        for n in range(end - first)
    )
    skip = at - first * mmc.RAW_SECTOR
    return frames[skip : skip + length]
