"""The commands of the floppy controller that move sectors: by the host through the FIFO, or by DMA."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from qobra.machine.fdc.formats import NO_DRIVE, SECTOR

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend
    from qobra.machine.device.floppy import Floppy
    from qobra.machine.device.i8257 import I8257
    from qobra.machine.fdc.controller import Controller

_BUSY, _NO_DMA = 0x10, 0x20
_ABNORMAL, _SEEK_END = 0x40, 0x20
_END_OF_TRACK, _NO_DATA, _NOT_WRITABLE, _MISSING_MARK = 0x80, 0x04, 0x02, 0x01
_SCAN_EQUAL, _SCAN_NOT = 0x08, 0x04
_READ_ID_NS = 10**9 // 50


class Place:
    """What a transfer goes through on which drive: sector after sector, from ``sector`` to the track's ``last``.

    With ``many`` it goes on at the other side. ``length`` is how many bytes it has to move.
    """

    __slots__ = ("_path", "drive", "kind", "length")

    def __init__(
        self, kind: str, drive: Floppy, track: int, head: int, sector: int, length: int, *, last: int, many: bool
    ) -> None:
        self.kind = kind
        self.drive = drive
        form = drive.format
        path = [(track, head, sector)]
        # Not beyond the end of the diskette.
        while (len(path) - 1) * SECTOR < length and track < form.tracks:
            if sector < form.sectors and sector != last:
                sector += 1
            else:
                sector = 1
                if many and not head and form.sides > 1:
                    head = 1
                else:
                    head, track = 0 if many else head, track + 1
            path.append((track, head, sector))
        self._path = path
        self.length = min(length, (len(path) - 1) * SECTOR)

    def after(self, sectors: int) -> tuple[int, int, int]:
        """Track, head and sector once so many sectors have been moved."""
        return self._path[min(sectors, len(self._path) - 1)]

    def runs(self, length: int) -> list[tuple[int, int]]:
        """Offset and length on the medium of each run of the first ``length`` bytes."""
        found: list[tuple[int, int]] = []
        for place in self._path[: -(-length // SECTOR)]:
            offset, size = self.drive.sector_offset(*place), min(SECTOR, length)
            if found and sum(found[-1]) == offset:
                found[-1] = found[-1][0], found[-1][1] + size
            else:
                found.append((offset, size))
            length -= size
        return found


class Transfers:
    """The one transfer that ``controller`` may have under way."""

    def __init__(self, controller: Controller, dma: I8257 | None, channel: int) -> None:
        self._controller = controller
        self._dma = dma
        self._channel = channel
        self._place: Place | None = None
        self._timer = controller.clock.timer(self._id_found)
        if dma is not None:
            dma.channels[channel].wanted = self._dma_wanted

    @property
    def busy(self) -> bool:
        """Whether a transfer is under way."""
        return self._place is not None or self._timer.deadline_ns is not None

    def close(self) -> None:
        """Stop, and leave the DMA channel to others."""
        self.cancel()
        if self._dma is not None:
            self._dma.channels[self._channel].wanted = lambda: None

    def cancel(self) -> None:
        """Forget what is under way."""
        self._timer.cancel()
        place, self._place = self._place, None
        if place is not None:
            place.drive.requests.cancel()
        self._ask_dma(False)

    def medium_gone(self) -> None:
        """The diskette was changed."""
        if self._place is not None:
            self._end(_ABNORMAL, _NO_DATA)

    # -- commands

    def start(self, kind: str, command: bytes) -> None:
        """A command with the address of a sector and the last one of the track.

        ``kind`` is ``read``, ``verify``, ``write`` or ``scan``.
        """
        controller = self._controller
        track, head, sector, code, last = command[2:7]
        many = bool(command[0] & 0x80)
        drive = controller.choose(command[1])
        form = drive.format if drive is not None else NO_DRIVE
        status1 = 0
        if track >= form.tracks or head >= form.sides:
            drive = None
        elif not 1 <= sector <= form.sectors:
            drive, status1 = None, _END_OF_TRACK
        elif drive is not None:
            # Commands seek by themselves, whether that is configured or not.
            moved = drive.seek(track, head, sector)
            if not drive.loaded:
                drive = None
            elif moved:
                controller.status0 |= _SEEK_END
        if drive is None:
            controller.finish(_ABNORMAL, status1, 0, track, head, sector)
        elif form.rate != controller.rate or (code and last < sector - 1):
            controller.finish(_ABNORMAL, _MISSING_MARK, 0, track, head, sector)
        else:
            sectors = max(0, last - sector + 1) + (last if many else 0)
            length = min(command[8], 128) if not code else (128 << min(code, 7)) * sectors
            self._begin(Place(kind, drive, track, head, sector, length, last=last, many=many))

    def refuse_deleted(self, _command: bytes) -> None:
        """A command for deleted sectors, of which diskettes have none."""
        controller = self._controller
        drive = controller.drive
        place = (drive.track, drive.head, drive.sector) if drive is not None else (0, 0, 0)
        controller.finish(_ABNORMAL | _SEEK_END, 0, 0, *place)

    def format_track(self, command: bytes) -> None:
        """Fill a track with a byte; the sectors' addresses, which come as data, are the usual ones."""
        controller = self._controller
        head, sectors, fill = command[1] >> 2 & 1, command[3], command[5]
        drive = controller.choose(command[1])
        if drive is None or not drive.loaded or head >= drive.format.sides or sectors > drive.format.sectors:
            controller.finish(_ABNORMAL, _NO_DATA, 0, drive.track if drive is not None else 0, head, 1)
            return
        drive.head = head
        if drive.write_protected:
            controller.finish(_ABNORMAL, _NOT_WRITABLE, 0, drive.track, head, 1)
            return
        place = self._place = Place("write", drive, drive.track, head, 1, sectors * SECTOR, last=sectors, many=False)
        data = bytes((fill,)) * place.length

        def fill_track(_addresses: bytes) -> None:
            self._store(place, data, self._host_moved)

        if controller.no_dma and sectors:
            controller.want(4 * sectors, fill_track)
        else:
            controller.status = _BUSY
            fill_track(b"")

    def read_id(self, command: bytes) -> None:
        """The next sector that comes by, after a while."""
        controller = self._controller
        drive = controller.choose(command[1])
        if drive is not None:
            drive.head = command[1] >> 2 & 1
        controller.status = _BUSY
        self._timer.set(controller.clock.now_ns() + _READ_ID_NS)

    def _id_found(self) -> None:
        drive = self._controller.drive
        track, head = (drive.track, drive.head) if drive is not None else (0, 0)
        # Whether there is a diskette is not looked at, as in QEMU.
        readable = drive is not None and drive.format.rate == self._controller.rate
        self._controller.finish(0 if readable else _ABNORMAL, 0 if readable else _MISSING_MARK, 0, track, head, 1)

    # -- moving

    def _begin(self, place: Place) -> None:
        self._place = place
        controller = self._controller
        if not place.length:
            self._end(0, 0)
        elif place.kind == "verify":
            controller.status = _BUSY
            self._fetch(place, place.length, lambda data: self._dma_moved(len(data)))
        elif not controller.no_dma:
            controller.status = _BUSY
            if self._dma is None:
                self._end(_ABNORMAL, _NO_DATA)
            else:
                self._ask_dma(True)
        elif place.kind == "read":
            controller.status = _BUSY | _NO_DMA
            self._fetch(place, place.length, self._host_reads)
        else:
            controller.want(place.length, self._host_wrote)

    def _host_reads(self, data: bytes) -> None:
        self._controller.offer(data, lambda _none: self._host_moved(len(data)))

    def _host_wrote(self, data: bytes) -> None:
        place = self._place
        if place is None:
            return
        if place.kind == "write" and place.drive.write_protected:
            self._end(_ABNORMAL | _SEEK_END, _NOT_WRITABLE)
        elif place.kind == "write":
            self._store(place, data, self._host_moved)
        else:
            self._fetch(place, place.length, partial(self._scanned, data))

    def _host_moved(self, length: int) -> None:
        # The result tells the last sector.
        self._end(0, 0, moved=max(0, -(-length // SECTOR) - 1))

    def _ask_dma(self, wanted: bool) -> None:
        if self._dma is not None:
            self._dma.request(self._channel, wanted)

    def _dma_wanted(self) -> None:
        place, dma = self._place, self._dma
        if place is None or dma is None:
            return
        dma.channels[self._channel].requested = False
        channel = dma.channels[self._channel]
        length = min(place.length, channel.left)
        if place.kind == "write" and place.drive.write_protected:
            self._end(_ABNORMAL | _SEEK_END, _NOT_WRITABLE)
        elif place.kind == "write":
            self._store(place, channel.take(length), self._dma_moved)
        elif place.kind == "scan":
            self._fetch(place, length, partial(self._scanned, channel.take(length)))
        else:
            self._fetch(place, length, self._dma_read)

    def _dma_read(self, data: bytes) -> None:
        if self._dma is not None:
            self._dma.channels[self._channel].put(data)
        self._dma_moved(len(data))

    def _dma_moved(self, length: int) -> None:
        # The result tells the sector after the last whole one.
        self._end(0, 0, moved=length // SECTOR)

    def _scanned(self, wanted: bytes, data: bytes) -> None:
        equal = all(a in (b, 0xFF) for a, b in zip(wanted, data, strict=False))
        self._end(0, 0, _SCAN_EQUAL if equal else _SCAN_NOT, moved=len(data) // SECTOR)

    def _fetch(self, place: Place, length: int, then: Callable[[bytes], None]) -> None:
        runs = place.runs(length)

        def read(backend: BlockBackend) -> bytes:
            return b"".join(backend.read(offset, size) for offset, size in runs)

        def done(data: bytes | None, error: Exception | None) -> None:
            if error is not None:
                self._end(_ABNORMAL, _NO_DATA)
            else:
                then(data if data is not None else bytes(length))

        place.drive.requests.submit(read, done, is_read=True)

    def _store(self, place: Place, data: bytes, then: Callable[[int], None]) -> None:
        runs = place.runs(len(data))

        def write(backend: BlockBackend) -> None:
            at = 0
            for offset, size in runs:
                backend.write(offset, data[at : at + size])
                at += size

        def done(_none: None, error: Exception | None) -> None:
            if error is not None:
                self._end(_ABNORMAL, _NO_DATA)
            else:
                then(len(data))

        place.drive.requests.submit(write, done, is_read=False)

    def _end(self, status0: int, status1: int, status2: int = 0, *, moved: int = 0) -> None:
        place, self._place = self._place, None
        if place is None:
            return
        track, head, sector = place.after(moved)
        if track != place.after(0)[0]:
            status0 |= _SEEK_END  # it went on at the next track
        place.drive.track, place.drive.head, place.drive.sector = track, head, sector
        self._ask_dma(False)
        self._controller.finish(status0, status1, status2, track, head, sector)
