"""A standard SD host controller (SD Host Controller Simplified Specification 3.00, chapter 2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from qobra.machine.sd import regs
from qobra.machine.sd.adma import Table, TableError
from qobra.machine.vmstate import VmState, raw

if TYPE_CHECKING:
    from qobra.machine.dma import GuestMemory
    from qobra.machine.sd.bus import SdBus
    from qobra.machine.sd.card import Card

_MAX_CHUNK = 64 << 10
_MAX_BLOCK = 512
_SIZE = 256
_DURING_DATA, _ENDING_DATA = (0, 12, 13), (0, 12)
"""Commands that may come while data are moved, and those that end that."""


class Host:
    """The registers of a controller with the slot ``bus``; ``interrupt`` drives its line.

    Data go block by block through the buffer register, or by DMA as far as one request to the card's memory takes.
    """

    vmstate = VmState(raw("_registers"))

    def __init__(
        self, bus: SdBus, memory: GuestMemory, interrupt: Callable[[int], None], *, capabilities: int, maxima: int,
        version: int,
    ) -> None:  # fmt: skip
        self._bus = bus
        self._memory = memory
        self._interrupt = interrupt
        self._fixed = {
            regs.CAPABILITIES: capabilities.to_bytes(8, "little"),
            regs.MAXIMA: maxima.to_bytes(8, "little"),
            regs.VERSION: (0x2400 | version - 1).to_bytes(2, "little"),
        }
        self._registers = bytearray(_SIZE)
        self._buffer = bytearray()
        self._at = 0
        self._left = 0
        """Blocks that are still to be moved; -1: until the driver stops."""
        self._table: Table | None = None
        bus.changed = self._card_changed
        self.reset()

    def reset(self) -> None:
        """As after power-on."""
        self._registers[:] = bytes(_SIZE)
        for offset, data in self._fixed.items():
            self._registers[offset : offset + len(data)] = data
        self._drop_data()
        self._update()

    @property
    def busy(self) -> bool:
        """Whether data are being moved."""
        return bool(self._left)

    # -- registers

    def get(self, offset: int, width: int) -> int:
        """A register."""
        return int.from_bytes(self._registers[offset : offset + width], "little")

    def put(self, offset: int, width: int, value: int) -> None:
        """Set a register, whatever the driver may write there."""
        self._registers[offset : offset + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")

    def read(self, offset: int, width: int) -> int:
        """The driver reads."""
        if regs.BUFFER <= offset < regs.BUFFER + 4:
            return self._read_buffer(width)
        self.put(regs.PRESENT, 4, self._present())
        self.put(regs.SLOT_INTERRUPT, 2, self._signalled())
        return self.get(offset, min(width, _SIZE - offset))

    def write(self, offset: int, width: int, value: int) -> None:
        """The driver writes."""
        if regs.BUFFER <= offset < regs.BUFFER + 4:
            self._write_buffer(width, value)
            return
        for i in range(width):
            self._write_byte(offset + i, value >> 8 * i & 0xFF)
        if offset < regs.BLOCK_SIZE + 2 and offset + width > regs.BLOCK_SIZE and self._block > _MAX_BLOCK:
            self.put(regs.BLOCK_SIZE, 2, self.get(regs.BLOCK_SIZE, 2) & 0xF000 | _MAX_BLOCK)
        if regs.FORCED <= offset < regs.FORCED + 4:
            self._force(value << 8 * (offset - regs.FORCED))
        if offset <= regs.RESET < offset + width:
            self._reset(value >> 8 * (regs.RESET - offset) & 0xFF)
        if offset <= regs.COMMAND + 1 < offset + width:
            self._command()
        if offset <= regs.DMA_ADDRESS + 3 < offset + width and self._left and self._table is None and self._waits():
            self._next()  # the driver has moved on past a boundary
        self._update()

    def _write_byte(self, offset: int, value: int) -> None:
        if offset >= _SIZE:
            return
        if offset in regs.CLEARED:
            self._registers[offset] &= ~value & 0xFF
        else:
            mask = regs.WRITABLE.get(offset, 0)
            self._registers[offset] = self._registers[offset] & ~mask | value & mask
        if offset == regs.CLOCK:
            # Stable as soon as it is on.
            self._registers[offset] = self._registers[offset] & ~2 | (self._registers[offset] & 1) << 1
        elif offset == regs.POWER and not self._can_power(value >> 1 & 7):
            self._registers[offset] &= ~1

    def _can_power(self, voltage: int) -> bool:
        # Codes from 5 on: 1.8, 3.0 and 3.3 volts.
        return (
            self._bus.card is not None and voltage >= 5 and bool(self._fixed[regs.CAPABILITIES][3] >> (7 - voltage) & 1)
        )

    def _force(self, value: int) -> None:
        # Errors that a driver makes up, to try itself.
        self.put(regs.AUTOMATIC_ERROR, 2, self.get(regs.AUTOMATIC_ERROR, 2) | value)
        if self.get(regs.AUTOMATIC_ERROR, 2):
            self.put(regs.ERROR_STATUS, 2, self.get(regs.ERROR_STATUS, 2) | regs.AUTOMATIC_FAILED)
        self._fail(value >> 16 & 0xFFFF)

    def _reset(self, what: int) -> None:
        # One part at a time, or all.
        if what == 1:
            self.reset()
        elif what == 2:
            self._registers[regs.STATUS] &= ~regs.COMMAND_DONE & 0xFF
        elif what == 4:
            self._drop_data()
            self._registers[regs.STATUS] &= (
                ~(regs.TRANSFER_DONE | regs.DMA_BOUNDARY | regs.BUFFER_WRITABLE | regs.BUFFER_READABLE) & 0xFF
            )

    # -- status and interrupts

    def _present(self) -> int:
        card = self._bus.card
        value = regs.LINES_HIGH | regs.CARD_STABLE
        if card is None or not card.read_only:
            value |= regs.WRITE_ENABLED
        if card is not None:
            value |= regs.CARD_INSERTED | regs.CARD_DETECTED
        if self._left:
            reading = self.get(regs.MODE, 2) & regs.READ
            value |= regs.DATA_INHIBIT | regs.DATA_ACTIVE | (regs.READ_ACTIVE if reading else regs.WRITE_ACTIVE)
            if self._buffer and not self.get(regs.MODE, 2) & regs.DMA:
                value |= regs.CAN_READ if reading else regs.CAN_WRITE
        return value

    def _signalled(self) -> bool:
        normal = self.get(regs.STATUS, 2) & self.get(regs.SIGNAL_ENABLE, 2) & ~regs.ERROR
        return bool(normal or self.get(regs.ERROR_STATUS, 2) & self.get(regs.ERROR_SIGNAL_ENABLE, 2))

    def _update(self) -> None:
        status = self.get(regs.STATUS, 2) & ~regs.ERROR
        self.put(regs.STATUS, 2, status | (regs.ERROR if self.get(regs.ERROR_STATUS, 2) else 0))
        self._interrupt(1 if self._signalled() else 0)

    def _tell(self, what: int) -> None:
        # Only what is enabled is remembered.
        self.put(regs.STATUS, 2, self.get(regs.STATUS, 2) | what & self.get(regs.STATUS_ENABLE, 2))
        self._update()

    def _fail(self, what: int) -> None:
        self.put(regs.ERROR_STATUS, 2, self.get(regs.ERROR_STATUS, 2) | what & self.get(regs.ERROR_ENABLE, 2))
        self._update()

    def _card_changed(self) -> None:
        if self._bus.card is None:
            self._registers[regs.POWER] &= ~1
            self._registers[regs.CLOCK] &= ~4
        self._tell(regs.INSERTED if self._bus.card is not None else regs.REMOVED)

    # -- commands

    def _command(self) -> None:
        command, mode = self.get(regs.COMMAND, 2), self.get(regs.MODE, 2)
        card = self._bus.card
        number, kind = command >> 8 & 63, command & 3
        if not self._registers[regs.POWER] & 1 or not self.get(regs.CLOCK, 2) & 4:
            return
        if self._left and number not in _DURING_DATA:
            return
        answer = card.command(number, self.get(regs.ARGUMENT, 4)) if card is not None else None
        if answer is None and kind:
            # The command has been sent, and nobody keeps the line busy.
            self._fail(regs.COMMAND_TIMEOUT)
            self._tell(regs.COMMAND_DONE | (regs.TRANSFER_DONE if kind == regs.ANSWER_BUSY else 0))
            return
        if answer is not None and kind:
            self._show(answer)
        if number in _ENDING_DATA:
            self._drop_data()
        self._tell(regs.COMMAND_DONE)
        if card is not None and command & regs.WITH_DATA and card.data is not None:
            many, counted = mode & regs.MANY, mode & regs.COUNT_BLOCKS
            self._left = (self.get(regs.BLOCKS, 2) if counted else -1) if many else 1
            if not self._left:
                self._end(card)
                return
            self._at = 0
            self._table = None
            if mode & regs.DMA and self._registers[regs.CONTROL] & regs.ADMA:
                wide = self._registers[regs.CONTROL] & regs.ADMA == regs.ADMA
                self._table = Table(self._memory, self.get(regs.ADMA_ADDRESS, 8 if wide else 4), wide=wide)
            self._next()
        elif kind == regs.ANSWER_BUSY:
            self._tell(regs.TRANSFER_DONE)

    def _show(self, answer: bytes) -> None:
        if len(answer) == 4:
            self.put(regs.RESPONSE, 16, int.from_bytes(answer, "big"))
        else:
            # Without the checksum at the end.
            self.put(regs.RESPONSE, 16, int.from_bytes(answer, "big") >> 8)

    # -- data

    @property
    def _block(self) -> int:
        return self.get(regs.BLOCK_SIZE, 2) & 0xFFF

    def _drop_data(self) -> None:
        card = self._bus.card
        if card is not None and self._left:
            card.device.requests.cancel()
            card.data_ended()
        self._left = 0
        self._buffer = bytearray()
        self._table = None

    def _waits(self) -> bool:
        return bool(self.get(regs.MODE, 2) & regs.DMA) and not self._buffer

    def _next(self) -> None:
        """Go on with the next block, or as many as DMA takes at once."""
        card = self._bus.card
        data = card.data if card is not None else None
        if card is None or data is None or not self._block:
            self._fail(regs.DATA_TIMEOUT)
            self._drop_data()
            return
        length = self._block
        if self.get(regs.MODE, 2) & regs.DMA:
            length = self._room(length)
            if not length:
                return
        if data.fixed is not None and self._at >= len(data.fixed):
            self._fail(regs.DATA_TIMEOUT)  # the card has sent all that it had
            self._drop_data()
        elif data.fixed is not None:
            piece = data.fixed[self._at : self._at + length].ljust(length, b"\0")
            self._fetched(card, piece, None)
        elif data.offset + self._at + length > card.length:
            self._fail(regs.DATA_TIMEOUT)
            card.failed()
            self._drop_data()
        elif data.reading:
            place = data.offset + self._at
            card.device.requests.submit(
                lambda backend: backend.read(place, length), partial(self._fetched, card), is_read=True
            )
        elif self.get(regs.MODE, 2) & regs.DMA:
            self._store(card, self._take(length))
        else:
            self._buffer = bytearray(length)
            self._filled = 0
            self._tell(regs.BUFFER_WRITABLE)

    _filled = 0

    def _room(self, block: int) -> int:
        """How many bytes DMA moves now: whole blocks. 0 where it waits for the driver, or has failed."""
        wanted = block * self._left if self._left > 0 else block
        if self._table is not None:
            try:
                length = self._table.room(min(wanted, max(_MAX_CHUNK // block, 1) * block))
            except TableError as error:
                self.put(regs.ADMA_ERROR, 1, error.state)
                self._fail(regs.ADMA_FAILED)
                self._drop_data()
                return 0
            return max(length // block * block, min(block, wanted))
        boundary = 4096 << (self.get(regs.BLOCK_SIZE, 2) >> 12 & 7)
        address = self.get(regs.DMA_ADDRESS, 4)
        left = boundary - address % boundary
        return max(min(wanted, left, _MAX_CHUNK) // block, 1) * block

    def _take(self, length: int) -> bytes:
        if self._table is not None:
            return b"".join(self._memory.read(address, size) for address, size in self._table.take(length))
        return self._memory.read(self.get(regs.DMA_ADDRESS, 4), length)

    def _give(self, data: bytes) -> None:
        if self._table is None:
            self._memory.write(self.get(regs.DMA_ADDRESS, 4), data)
            return
        at = 0
        for address, size in self._table.take(len(data)):
            self._memory.write(address, data[at : at + size])
            at += size

    def _fetched(self, card: Card, data: bytes | None, error: Exception | None) -> None:
        if error is not None or data is None:
            self._fail(regs.DATA_CHECKSUM)
            card.failed()
            self._drop_data()
        elif self.get(regs.MODE, 2) & regs.DMA:
            self._give(data)
            self._moved(card, len(data))
        else:
            self._buffer = bytearray(data)
            self._tell(regs.BUFFER_READABLE)

    def _store(self, card: Card, data: bytes) -> None:
        assert card.data is not None
        place = card.data.offset + self._at
        card.device.requests.submit(
            lambda backend: backend.write(place, data), partial(self._stored, card, len(data)), is_read=False
        )

    def _stored(self, card: Card, length: int, _none: None, error: Exception | None) -> None:
        if error is not None:
            self._fail(regs.DATA_CHECKSUM)
            card.failed()
            self._drop_data()
        else:
            self._moved(card, length)

    def _moved(self, card: Card, length: int) -> None:
        self._at += length
        blocks = length // (self._block or 1)
        if self._left > 0:
            self._left = max(self._left - blocks, 0)
            if self.get(regs.MODE, 2) & regs.COUNT_BLOCKS:
                self.put(regs.BLOCKS, 2, self._left)
        crossed = False
        if self.get(regs.MODE, 2) & regs.DMA and self._table is None:
            address = self.get(regs.DMA_ADDRESS, 4) + length
            self.put(regs.DMA_ADDRESS, 4, address)
            crossed = not address % (4096 << (self.get(regs.BLOCK_SIZE, 2) >> 12 & 7))
        if not self._left:
            self._end(card)
        elif crossed:
            self._tell(regs.DMA_BOUNDARY)
        else:
            self._next()

    def _end(self, card: Card) -> None:
        self._left = 0
        self._buffer = bytearray()
        if self.get(regs.MODE, 2) & regs.MANY and self.get(regs.MODE, 2) & 0x0C == regs.STOP_AFTER:
            answer = card.command(12, 0)
            if answer is not None:
                self.put(regs.RESPONSE + 12, 4, int.from_bytes(answer, "big"))
        card.data_ended()
        self._tell(regs.TRANSFER_DONE)

    # -- the buffer register

    def _read_buffer(self, width: int) -> int:
        card = self._bus.card
        if not self._buffer or card is None or card.data is None or not card.data.reading:
            return 0
        data = bytes(self._buffer[:width])
        del self._buffer[:width]
        if not self._buffer:
            self._moved(card, self._block)
        return int.from_bytes(data, "little")

    def _write_buffer(self, width: int, value: int) -> None:
        card = self._bus.card
        if not self._buffer or card is None or card.data is None or card.data.reading:
            return
        data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")[: len(self._buffer) - self._filled]
        self._buffer[self._filled : self._filled + len(data)] = data
        self._filled += len(data)
        if self._filled == len(self._buffer):
            block, self._buffer = bytes(self._buffer), bytearray()
            self._store(card, block)
