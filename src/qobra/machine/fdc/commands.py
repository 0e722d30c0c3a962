"""The commands of the floppy controller that move no sectors, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qobra.machine.device.floppy import Floppy
    from qobra.machine.fdc.controller import Controller

_VERSION, _PART = 0x90, 0x41
_DMA_GATE, _SEEK_END = 0x08, 0x20

Command = tuple[int, int, int, Callable[[bytes], None]]


class Commands:
    """What the commands do to ``controller``. Each gets the bytes of the command."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def specify(self, command: bytes) -> None:
        """Step rate, head times, and whether data go by DMA."""
        controller = self._controller
        controller.step_rate, controller.load_time = command[1] >> 4, command[2] >> 1
        controller.output = controller.output & ~_DMA_GATE | (0 if command[2] & 1 else _DMA_GATE)
        controller.idle()

    def sense_drive(self, command: bytes) -> None:
        """The state of a drive."""
        drive = self._controller.choose(command[1])
        if drive is not None:
            drive.head = command[1] >> 2 & 1
        place = command[1] & 5
        protected = drive is None or drive.write_protected
        at_zero = drive is None or not drive.track
        self._controller.answer(0x28 | (0x40 if protected else 0) | (0x10 if at_zero else 0) | place)

    def recalibrate(self, command: bytes) -> None:
        """Back to track 0."""
        drive = self._controller.choose(command[1])
        if drive is not None:
            drive.seek(0, 0, 1)
        self._seek_done()

    def seek(self, command: bytes) -> None:
        """To a track; one that is not there leaves the head where it was."""
        drive = self._controller.choose(command[1])
        if drive is not None:
            _step(drive, command[2])
        self._seek_done()

    def relative_seek(self, command: bytes) -> None:
        """Some tracks inwards (with bit 6), or outwards."""
        drive = self._controller.choose(command[1])
        if drive is not None:
            steps = command[2] if command[0] & 0x40 else -command[2]
            _step(drive, min(max(0, drive.track + steps), drive.format.tracks - 1))
        self._seek_done()

    def _seek_done(self) -> None:
        self._controller.idle()
        self._controller.status0 |= _SEEK_END
        self._controller.interrupt()

    def version(self, _command: bytes) -> None:
        """The kind of controller."""
        self._controller.answer(_VERSION)

    def part_id(self, _command: bytes) -> None:
        """The step of the chip."""
        self._controller.answer(_PART)

    def lock(self, command: bytes) -> None:
        """Whether the configuration outlives a reset."""
        self._controller.locked = command[0] >> 7
        self._controller.answer(self._controller.locked << 4)

    def configure(self, command: bytes) -> None:
        """FIFO and implied seeks."""
        self._controller.configuration, self._controller.first_track = command[2], command[3]
        self._controller.idle()

    def perpendicular(self, command: bytes) -> None:
        """How the drives record."""
        if command[1] & 0x80:
            self._controller.perpendicular[self._controller.unit] = command[1] & 7
        self._controller.idle()

    def dump_registers(self, _command: bytes) -> None:
        """The insides."""
        controller = self._controller
        times = controller.load_time << 1 | (0 if controller.no_dma else 1)
        controller.answer(*self._tracks(), controller.step_rate, times & 0xFF, *self._settings())

    def save(self, _command: bytes) -> None:
        """The insides, to be restored."""
        controller = self._controller
        times = controller.step_rate, controller.load_time
        controller.answer(0, 0, *self._tracks(), *times, *self._settings(), controller.power, 0, 0)

    def _tracks(self) -> tuple[int, int, int, int]:
        drives = (self._controller.drive_at(0), self._controller.drive_at(1))
        first, second = (0 if drive is None else drive.track & 0xFF for drive in drives)
        return first, second, 0, 0

    def _settings(self) -> tuple[int, int, int, int]:
        controller = self._controller
        drive = controller.drive
        flags = controller.locked << 7 | controller.perpendicular[controller.unit] << 2
        return drive.format.sectors if drive is not None else 0, flags, controller.configuration, controller.first_track

    def restore(self, command: bytes) -> None:
        """What :meth:`save` told."""
        controller = self._controller
        for number in (0, 1):
            drive = controller.drive_at(number)
            if drive is not None:
                drive.track = command[3 + number]
        controller.step_rate, controller.load_time = command[7], command[8]
        controller.locked, controller.perpendicular[controller.unit] = command[10] >> 7, command[10] >> 2 & 0x0F
        controller.configuration, controller.first_track, controller.power = command[11:14]
        controller.idle()

    def option(self, _command: bytes) -> None:
        """Settings without an effect here."""
        self._controller.idle()


def _step(drive: Floppy, track: int) -> None:
    # There is one track more than the format has.
    if track <= drive.format.tracks and drive.sector <= drive.format.sectors:
        drive.seek(track, drive.head, drive.sector)


def commands(controller: Controller) -> list[Command]:
    """``(mask, code, number of parameters, what it does)`` of each command."""
    simple, transfers = Commands(controller), controller.transfers
    return [
        (0x1F, 0x06, 8, partial(transfers.start, "read")),
        (0x3F, 0x05, 8, partial(transfers.start, "write")),
        (0xFF, 0x0F, 2, simple.seek),
        (0xFF, 0x08, 0, controller.sense_interrupt),
        (0xFF, 0x07, 1, simple.recalibrate),
        (0xBF, 0x0D, 5, transfers.format_track),
        (0xBF, 0x02, 8, partial(transfers.start, "read")),
        (0xFF, 0x2E, 0, simple.save),
        (0xFF, 0x4E, 17, simple.restore),
        (0x1F, 0x0C, 8, transfers.refuse_deleted),
        (0x3F, 0x09, 8, transfers.refuse_deleted),
        (0x1F, 0x16, 8, partial(transfers.start, "verify")),
        (0x1F, 0x11, 8, partial(transfers.start, "scan")),
        (0x1F, 0x19, 8, partial(transfers.start, "scan")),
        (0x1F, 0x1D, 8, partial(transfers.start, "scan")),
        (0xFF, 0x0E, 0, simple.dump_registers),
        (0xBF, 0x0A, 1, transfers.read_id),
        (0xFF, 0x03, 2, simple.specify),
        (0xFF, 0x04, 1, simple.sense_drive),
        (0xFF, 0x12, 1, simple.perpendicular),
        (0xFF, 0x13, 3, simple.configure),
        (0xFF, 0x33, 1, simple.option),
        (0xFF, 0x10, 0, simple.version),
        (0x7F, 0x14, 0, simple.lock),
        (0xFF, 0x18, 0, simple.part_id),
        (0xFF, 0x8F, 2, simple.relative_seek),
        (0xFF, 0xCF, 2, simple.relative_seek),
    ]
