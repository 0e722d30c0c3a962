"""The commands of disks (ATA/ATAPI-7, chapter 6; ACS-3 for TRIM)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from qobra.block.accounting import READ, UNMAP, WRITE
from qobra.machine.ata import geometry, identify, regs
from qobra.machine.ata.device import MAX_CHUNK, AtaDevice
from qobra.machine.ata.smart import Smart
from qobra.machine.vmstate import VmState, part, u8
from qobra.object.property import Enum, Int

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend
    from qobra.machine.dma import ScatterList
    from qobra.object.tree import ObjectTree

_SECTOR = regs.SECTOR
_MAX_MULTIPLE = 16
_LIMITS = (65535, 16, 255)
_TRIM_ENTRIES = 64


class Disk(AtaDevice):
    """A disk. ``geometry`` is what it was made with, ``multiple`` how many sectors READ MULTIPLE moves at once."""

    abstract = True

    cyls = Int(0, type="uint32")
    heads = Int(0, type="uint32")
    secs = Int(0, type="uint32")
    bios_chs_trans = Enum("BiosAtaTranslation", ("auto", "none", "lba", "large", "rechs"), "auto")
    rotation_rate = Int(0, type="uint16", name="rotation_rate")

    vmstate = VmState(u8("multiple"), part("_smart"))

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self.geometry = (2, 16, 63)
        self.translation = "none"
        self.multiple = _MAX_MULTIPLE
        self._left = 0
        self._position = 0
        self._wide = False
        self._smart = Smart(self)

    # -- life

    def realize_disk(self) -> None:
        """Start to work; QobraError where properties or the medium do not allow it."""
        from qobra.errors import QobraError

        if self.backend is None:
            raise QobraError("No drive specified")
        if self.backend.node is None:
            raise QobraError("Device needs media, but drive is empty")
        if self.backend.node.read_only:
            raise QobraError("Block node is read-only")
        self.realize_drive()
        self.geometry, translation = geometry.choose(self, _LIMITS)
        for name, value in zip(("cyls", "heads", "secs"), self.geometry, strict=True):
            self.values[name] = value
        self.translation = translation if self.bios_chs_trans == "auto" else self.bios_chs_trans
        self.values["bios-chs-trans"] = self.translation

    def restart(self) -> None:
        super().restart()
        self.multiple = _MAX_MULTIPLE
        self._smart.enabled = True

    @property
    def sectors(self) -> int:
        """The size in sectors of 512 bytes."""
        return self.backend.length // _SECTOR if self.backend is not None else 0

    @property
    def write_cache_on(self) -> bool:
        """Whether writes may stay in a cache."""
        return self.backend is not None and self.backend.writeback

    # -- addresses

    def _take_range(self, wide: bool) -> None:
        self._wide = wide
        count = self.previous[1] << 8 | self.count if wide or self.port.count_bits == 16 else self.count
        self._left = count or (65536 if wide else 256)
        self._position = self._sector()

    def _sector(self) -> int:
        low, mid, high = self.low, self.mid, self.high
        if not self.select & regs.LBA:
            _cylinders, heads, per_track = self.geometry
            return ((high << 8 | mid) * heads + (self.select & 15)) * per_track + low - 1
        sector = high << 16 | mid << 8 | low
        if self._wide:
            return sector | self.previous[4] << 40 | self.previous[3] << 32 | self.previous[2] << 24
        return sector | (self.select & 15) << 24

    def _advance(self, count: int) -> None:
        # The registers show where the next sector is.
        self._position += count
        self._left -= count
        self.count = self._left & 0xFF
        sector = self._position
        if self.select & regs.LBA:
            self.low, self.mid, self.high = sector & 0xFF, sector >> 8 & 0xFF, sector >> 16 & 0xFF
            if self._wide:
                self.previous[1:5] = (
                    self._left >> 8 & 0xFF, sector >> 24 & 0xFF, sector >> 32 & 0xFF, sector >> 40 & 0xFF
                )  # fmt: skip
            else:
                self.select = self.select & 0xF0 | sector >> 24 & 0x0F
                if self.port.count_bits == 16:
                    self.previous[1] = self._left >> 8 & 0xFF
        else:
            _cylinders, heads, per_track = self.geometry
            track, self.low = sector // per_track, sector % per_track + 1
            cylinder, head = divmod(track, heads)
            self.mid, self.high, self.select = cylinder & 0xFF, cylinder >> 8 & 0xFF, self.select & 0xF0 | head & 0x0F

    def in_range(self, sector: int, count: int) -> bool:
        """Whether these sectors are all on the medium."""
        return sector >= 0 and sector + count <= self.sectors

    def refuse_range(self, kind: int) -> None:
        """A request outside of the medium."""
        if self.backend is not None:
            self.backend.accounting.add_invalid(kind)
        self.abort()

    # -- PIO

    def _read_pio(self, wide: bool, many: bool) -> None:
        if many and not self.multiple:
            self.abort()
            return
        self._take_range(wide)
        self._next_read(self.multiple if many else 1)

    def _next_read(self, block: int) -> None:
        count = min(self._left, block)
        if not count:
            self.end_reading()
            return
        if not self.in_range(self._position, count):
            self.refuse_range(READ)
            return
        self.status |= regs.BUSY
        offset, length = self._position * _SECTOR, count * _SECTOR
        self.requests.submit(
            lambda backend: backend.read(offset, length), partial(self._read_done, block, count), is_read=True
        )

    def _read_done(self, block: int, count: int, data: bytes | None, error: Exception | None) -> None:
        if error is not None:
            self.abort()
            return
        self.status = regs.READY | regs.SEEK
        self._advance(count)
        self.offer(data if data is not None else bytes(count * _SECTOR), partial(self._next_read, block))

    def _write_pio(self, wide: bool, many: bool) -> None:
        if many and not self.multiple:
            self.abort()
            return
        self._take_range(wide)
        self._next_write(self.multiple if many else 1, first=True)

    def _next_write(self, block: int, *, first: bool = False) -> None:
        count = min(self._left, block)
        self.want(count * _SECTOR, partial(self._write_block, block, count), quiet=first)

    def _write_block(self, block: int, count: int, data: bytes) -> None:
        if not self.in_range(self._position, count):
            self.refuse_range(WRITE)
            return
        self.status |= regs.BUSY
        offset = self._position * _SECTOR
        self.requests.submit(
            lambda backend: backend.write(offset, data), partial(self._written, block, count), is_read=False
        )

    def _written(self, block: int, count: int, _result: None, error: Exception | None) -> None:
        if error is not None:
            self.abort()
            return
        self.status = regs.READY | regs.SEEK
        self._advance(count)
        if self._left:
            self._next_write(block)
        else:
            self.succeed()

    # -- DMA

    def _start_dma(self, wide: bool, to_device: bool, fua: bool = False) -> None:
        self._take_range(wide)
        self.await_dma(self._left * _SECTOR, partial(self._run_dma, to_device, fua))

    def _run_dma(self, to_device: bool, fua: bool, memory: ScatterList) -> None:
        if memory.length < self._left * _SECTOR:
            # Too little memory for the transfer: it ends, and nobody is told.
            self.status = regs.READY | regs.SEEK
            self.port.dma_done(self)
            self.port.command_done(self)
            return
        if not self.in_range(self._position, self._left):
            self.port.dma_done(self)
            self.refuse_range(WRITE if to_device else READ)
            return
        self._next_dma(to_device, fua, memory, 0)

    def _next_dma(self, to_device: bool, fua: bool, memory: ScatterList, at: int) -> None:
        length = min(self._left * _SECTOR, MAX_CHUNK)
        if not length:
            self.port.dma_done(self)
            self.succeed()
            return
        offset = self._position * _SECTOR
        done = partial(self._dma_moved, to_device, fua, memory, at, length)
        if to_device:
            data = memory.read(at, length)
            self.requests.submit(lambda backend: backend.write(offset, data, fua=fua), done, is_read=False)
        else:
            self.requests.submit(lambda backend: backend.read(offset, length), done, is_read=True)

    def _dma_moved(
        self, to_device: bool, fua: bool, memory: ScatterList, at: int, length: int, data: bytes | None,
        error: Exception | None,
    ) -> None:  # fmt: skip
        if error is not None:
            self.port.dma_done(self)
            self.abort()
            return
        if data is not None and not to_device:
            memory.write(at, data)
        self._advance(length // _SECTOR)
        self._next_dma(to_device, fua, memory, at + length)

    # -- TRIM

    def _data_set(self) -> None:
        if not self.feature & 1 or not self.granularity:
            self.abort()
            return
        count = self.count or 256
        self.await_dma(count * _SECTOR, partial(self._trim, count))

    def _trim(self, count: int, memory: ScatterList) -> None:
        data = memory.read(0, min(memory.length, count * _SECTOR))
        ranges = []
        for at in range(0, len(data) - 7, 8):
            entry = int.from_bytes(data[at : at + 8], "little")
            sector, length = entry & (1 << 48) - 1, entry >> 48
            if not length:
                continue
            if not self.in_range(sector, length):
                self.port.dma_done(self)
                self.refuse_range(UNMAP)
                return
            ranges.append((sector * _SECTOR, length * _SECTOR))

        def discard(backend: BlockBackend) -> None:
            for offset, length in ranges:
                backend.discard(offset, length)

        self.requests.submit(discard, self._trimmed, is_read=False)

    def _trimmed(self, _result: None, error: Exception | None) -> None:
        self.port.dma_done(self)
        self._settle(error)

    def _settle(self, error: Exception | None) -> None:
        if error is not None:
            self.abort()
        else:
            self.succeed()

    # -- everything else

    def _identify(self) -> None:
        self.offer(identify.disk(self), self.end_reading)

    def _verify(self, wide: bool) -> None:
        self._take_range(wide)
        if not self.in_range(self._position, self._left):
            self.refuse_range(READ)
        else:
            self.succeed()

    def _flush(self) -> None:
        self.status |= regs.BUSY
        self.requests.submit(lambda backend: backend.flush(), lambda _none, error: self._settle(error), is_read=False)

    def _set_multiple(self) -> None:
        if self.count & 0x80 or self.count > _MAX_MULTIPLE or self.count & self.count - 1:
            self.abort()
            return
        self.multiple = self.count
        self.succeed()

    def _native_max(self, wide: bool) -> None:
        last = max(self.sectors - 1, 0)
        self._wide, self._left = wide, self.count
        self._position = last if wide else min(last, (1 << 28) - 1)
        self.select |= regs.LBA
        self._advance(0)
        self.succeed()

    def _set_features(self) -> None:
        feature = self.feature
        if feature in (0x02, 0x82):
            if self.backend is not None:
                self.backend.writeback = feature == 0x02
            if feature == 0x82:
                self._flush()
                return
        elif feature == 0x03:
            if not self._set_mode():
                self.abort()
                return
        elif feature not in (0x05, 0x42, 0x55, 0x66, 0x67, 0x69, 0x85, 0x96, 0x9A, 0xAA, 0xC2, 0xCC):
            self.abort()
            return
        self.succeed()

    def _set_mode(self) -> bool:
        kind, mode = self.count >> 3, self.count & 7
        single, multi, ultra = 0x07, 0x07, 0x3F
        if kind == 2:
            single |= 1 << mode + 8
        elif kind == 4:
            multi |= 1 << mode + 8
        elif kind == 8:
            ultra |= 1 << mode + 8
        elif kind > 1:
            return False
        self.transfer_modes = (single, multi, ultra & 0xFFFF)
        return True

    def _power(self) -> None:
        self.status = regs.READY
        self._finish()

    def _check_power(self) -> None:
        self.count = 0xFF
        self.succeed()

    def _diagnose(self) -> None:
        self.select = 0xA0
        self.set_signature()
        self.status, self.error = self.reset_status, 0x01
        self._finish()

    def _smart_command(self) -> None:
        self._smart.execute()

    def commands(self) -> dict[int, Callable[[], None]]:
        table = self._table
        if table is None:
            table = self._table = self._make_table()
        return table

    _table: dict[int, Callable[[], None]] | None = None

    def _make_table(self) -> dict[int, Callable[[], None]]:
        table: dict[int, Callable[[], None]] = {
            0x06: self._data_set,
            0x3D: partial(self._start_dma, True, True, True),
            0x70: self.succeed,
            regs.DIAGNOSE: self._diagnose,
            0x91: self.succeed,
            0xB0: self._smart_command,
            0xC6: self._set_multiple,
            0xCE: partial(self._write_pio, True, True),
            0xE7: self._flush,
            0xEA: self._flush,
            0xEC: self._identify,
            0xEF: self._set_features,
            0x27: partial(self._native_max, True),
            0xF8: partial(self._native_max, False),
        }
        for code in range(0x10, 0x20):
            table[code] = self.succeed
        for code in (0x94, 0x95, 0x96, 0x97, 0x99, 0xE0, 0xE1, 0xE2, 0xE3, 0xE6):
            table[code] = self._power
        for code in (0x98, 0xE5):
            table[code] = self._check_power
        for code, wide in ((0x20, False), (0x21, False), (0x24, True)):
            table[code] = partial(self._read_pio, wide, False)
        for code, wide in ((0xC4, False), (0x29, True)):
            table[code] = partial(self._read_pio, wide, True)
        for code, wide in ((0x30, False), (0x31, False), (0x34, True), (0x3C, False)):
            table[code] = partial(self._write_pio, wide, False)
        for code, wide in ((0xC5, False), (0x39, True)):
            table[code] = partial(self._write_pio, wide, True)
        for code, wide in ((0xC8, False), (0xC9, False), (0x25, True)):
            table[code] = partial(self._start_dma, wide, False)
        for code, wide in ((0xCA, False), (0xCB, False), (0x35, True)):
            table[code] = partial(self._start_dma, wide, True)
        for code, wide in ((0x40, False), (0x41, False), (0x42, True)):
            table[code] = partial(self._verify, wide)
        return table
