"""The floppy controller of a PC (Intel 82078 data sheet): registers, and the phases of commands.

A command is written byte by byte, its data go through the FIFO or by DMA, and its result is read byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.fdc.commands import commands
from qobra.machine.fdc.transfer import Transfers
from qobra.machine.vmstate import Number, VmState, flag, listed, raw, u8

if TYPE_CHECKING:
    from qobra.machine.device.floppy import Floppy, FloppyBus
    from qobra.machine.device.i8257 import I8257
    from qobra.machine.irq import Line
    from qobra.machine.vclock import VirtualClock

BUSY, NO_DMA, TO_HOST, READY = 0x10, 0x20, 0x40, 0x80
"""Main status register."""

RUNNING, DMA_GATE, MOTORS = 0x04, 0x08, 0x30
"""Digital output register; its lowest bit chooses the drive."""

INVALID, ABNORMAL, SEEK_END = 0x80, 0x40, 0x20
"""Status register 0 of results."""

_UNIT, _DRIVE_BITS = 0x01, 0x07
_CONFIGURATION = 0x60
_RESETS_TOLD = 4
_SECTOR_CODE = 2


class Controller:
    """One controller with the drives of ``bus``, which interrupts on ``irq`` and moves data on a DMA channel."""

    vmstate = VmState(
        u8("output", "unit", "_lines", "_tape", "rate", "step_rate", "load_time", "configuration", "first_track"),
        u8("locked", "power", "_resets_to_tell", "status", "status0"),
        listed("perpendicular", kind=Number(1)),
        flag("_interrupting"),
        raw("_command", "_result", maximum=16),
        u8("_expected"),
    )

    def __init__(self, bus: FloppyBus, irq: Line, clock: VirtualClock, dma: I8257 | None, channel: int) -> None:
        self.bus = bus
        self._irq = irq
        self.clock = clock
        self.transfers = Transfers(self, dma, channel)
        self._commands = commands(self)
        self.rate = 0
        self._tape = 0
        self.step_rate = self.load_time = 0
        self.configuration, self.first_track = _CONFIGURATION, 0
        self.locked = self.power = 0
        self.unit = 0
        """The chosen drive's number."""
        self.perpendicular = [0, 0]
        """How each drive records."""
        self._resets_to_tell = 0
        self._interrupting = False
        self._restart()

    def _restart(self) -> None:
        self.output, self.unit = RUNNING | DMA_GATE, 0
        self._lines = 0xC0
        self._reset_phases()
        self._resets_to_tell = 0

    def reset(self) -> None:
        """Begin anew. What the host has configured stays, also at a reset of the machine."""
        self._restart()
        self._lower()
        for number in (0, 1):
            drive = self.bus.drive(number)
            if drive is not None:
                drive.requests.cancel()
                drive.seek(0, 0, 1)

    def close(self) -> None:
        """Stop."""
        self.transfers.close()

    def _reset_phases(self) -> None:
        self.status = READY
        self.status0 = 0
        self._command = bytearray()
        self._expected = 1
        self._result = bytearray()
        self._data = bytearray()
        self._data_length = 0
        self._data_done: Callable[[bytes], None] | None = None
        self.transfers.cancel()

    @property
    def transferring(self) -> bool:
        """Whether a command moves data."""
        return self._data_done is not None or self.transfers.busy

    # -- drives

    @property
    def drive(self) -> Floppy | None:
        """The chosen drive."""
        return self.drive_at(self.unit)

    def drive_at(self, number: int) -> Floppy | None:
        """The drive that the host knows by this number: the tape register makes the second one the first."""
        return self.bus.drive(number ^ self._tape >> 2)

    def choose(self, value: int) -> Floppy | None:
        """Choose the drive that a command's second byte names; there is a line for two."""
        self.unit = value & _UNIT
        return self.drive

    @property
    def no_dma(self) -> bool:
        """Whether the host moves the data itself."""
        return not self.output & DMA_GATE

    def medium_changed(self, drive: Floppy) -> None:
        """Another diskette while one was being read or written: what was going on with the old one ends."""
        if drive is self.drive:
            self.transfers.medium_gone()

    # -- interrupts

    def interrupt(self) -> None:
        """Interrupt the host, which is told ``status0`` when it asks why."""
        self._interrupting = True
        self._resets_to_tell = 0
        self._irq.set(1)

    def _lower(self) -> None:
        self._interrupting = False
        self.status0 = 0
        self._irq.set(0)

    def sense_interrupt(self, _command: bytes) -> None:
        """Why the controller interrupted."""
        drive = self.drive
        track = drive.track & 0xFF if drive is not None else 0
        if self._resets_to_tell:
            self.answer(0xC0 | _RESETS_TOLD - self._resets_to_tell, track)
            self._resets_to_tell -= 1
        elif not self._interrupting:
            self.answer(INVALID)
            return
        else:
            self.answer(self.status0 & ~_DRIVE_BITS | self.unit, track)
        self._lower()

    # -- registers

    def read(self, offset: int) -> int:
        """Ports 1 to 5 and 7 of the block."""
        if offset == 1:
            return self._lines
        if offset == 2:
            return self.output | self.unit
        if offset == 3:
            return self._tape
        if offset == 4:
            self.output |= RUNNING  # who looks whether it is ready wakes it up
            return self.status
        if offset == 5:
            return self._read_fifo()
        drive = self.drive
        # Without a drive nothing pulls the line of the disk change down.
        return 0x80 if drive is None or drive.changed else 0

    def write(self, offset: int, value: int) -> None:
        """Write ports 2 to 5 and 7."""
        if offset == 2:
            self._lines = 0xC0 | (value & MOTORS) >> 4 | (value & 1) << 5
            if value & RUNNING and not self.output & RUNNING:
                self._soft_reset()
            self.output, self.unit = value, value & _UNIT
        elif offset == 5:
            self._write_fifo(value)
        elif not self.output & RUNNING:
            return
        elif offset == 3:
            self._tape = value & 0x04
        elif offset == 4:
            if value & 0xC0:  # reset, power down
                self._soft_reset()
            self.rate = value & 3
        elif offset == 7:
            self.rate = value & 3

    def _soft_reset(self) -> None:
        self.reset()
        self.status0 = 0xC0
        self.interrupt()
        self._resets_to_tell = _RESETS_TOLD

    # -- the FIFO

    def _read_fifo(self) -> int:
        if not self.output & RUNNING or self.status & (READY | TO_HOST) != READY | TO_HOST:
            return 0
        if self._result:
            value = self._result.pop(0)
            if not self._result:
                self.status = READY
                self._lower()
            return value
        value = self._data.pop(0) if self._data else 0
        if not self._data:
            self._end_data(b"")
        return value

    def _write_fifo(self, value: int) -> None:
        if not self.output & RUNNING or self.status & (READY | TO_HOST) != READY:
            return
        if self._data_done is not None:
            self._data.append(value)
            if len(self._data) >= self._data_length:
                data, self._data = bytes(self._data), bytearray()
                self._end_data(data)
            return
        self._command.append(value)
        if len(self._command) == 1:
            self._expected = 1 + next((n for mask, code, n, _run in self._commands if value & mask == code), 0)
            self.status |= BUSY
        if len(self._command) >= self._expected:
            command, self._command = bytes(self._command), bytearray()
            found = (run for mask, code, _n, run in self._commands if command[0] & mask == code)
            next(found, self._unknown)(command)

    def offer(self, data: bytes, done: Callable[[bytes], None]) -> None:
        """Let the host read ``data``; ``done`` is called with nothing then."""
        self._data, self._data_done = bytearray(data), done
        self.status = READY | TO_HOST | NO_DMA | BUSY
        self.interrupt()

    def want(self, length: int, done: Callable[[bytes], None]) -> None:
        """Let the host write ``length`` bytes; ``done`` is called with them."""
        self._data, self._data_length, self._data_done = bytearray(), length, done
        self.status = READY | NO_DMA | BUSY
        self.interrupt()

    def _end_data(self, data: bytes) -> None:
        done, self._data_done = self._data_done, None
        self.status = BUSY | NO_DMA
        if done is not None:
            done(data)

    # -- the end of a command

    def answer(self, *result: int) -> None:
        """The command is done, with these bytes to read."""
        self._result = bytearray(result)
        self._data, self._data_done = bytearray(), None
        self.status = READY | TO_HOST | BUSY

    def idle(self) -> None:
        """The command is done, with nothing to read."""
        self.status = READY

    def finish(self, status0: int, status1: int, status2: int, track: int, head: int, sector: int) -> None:
        """A command that moved data, or should have, is done: the seven bytes of its result, and an interrupt.

        ``status0`` adds to what the host has not yet been told, as of a seek.
        """
        drive = self.drive
        head_bit = (1 if drive is not None and drive.head else 0) << 2
        self.status0 = (self.status0 & ~_DRIVE_BITS) | status0 | head_bit | self.unit
        self.answer(self.status0, status1, status2, track & 0xFF, head, sector & 0xFF, _SECTOR_CODE)
        self.interrupt()

    def _unknown(self, _command: bytes) -> None:
        self.answer(INVALID)
