"""Offsets and bits of the registers of SD host controllers."""

from __future__ import annotations

DMA_ADDRESS, BLOCK_SIZE, BLOCKS, ARGUMENT, MODE, COMMAND = 0x00, 0x04, 0x06, 0x08, 0x0C, 0x0E
RESPONSE, BUFFER, PRESENT, CONTROL, POWER, CLOCK, RESET = 0x10, 0x20, 0x24, 0x28, 0x29, 0x2C, 0x2F
STATUS, ERROR_STATUS, STATUS_ENABLE, ERROR_ENABLE = 0x30, 0x32, 0x34, 0x36
SIGNAL_ENABLE, ERROR_SIGNAL_ENABLE = 0x38, 0x3A
CAPABILITIES, MAXIMA, ADMA_ERROR, ADMA_ADDRESS = 0x40, 0x48, 0x54, 0x58
SLOT_INTERRUPT, VERSION = 0xFC, 0xFE

DMA, COUNT_BLOCKS, STOP_AFTER, READ, MANY = 0x01, 0x02, 0x04, 0x10, 0x20
"""Transfer mode."""

ANSWER_BUSY, WITH_DATA = 3, 0x20
"""Command."""

ADMA = 0x18
"""Host control: which DMA; 0 for the simple one."""

COMMAND_DONE, TRANSFER_DONE, DMA_BOUNDARY = 0x01, 0x02, 0x08
BUFFER_WRITABLE, BUFFER_READABLE, INSERTED, REMOVED, ERROR = 0x10, 0x20, 0x40, 0x80, 0x8000
"""Normal interrupt status."""

COMMAND_TIMEOUT, DATA_TIMEOUT, DATA_CHECKSUM, ADMA_FAILED = 0x01, 0x10, 0x20, 0x200
"""Error interrupt status."""

DATA_INHIBIT, DATA_ACTIVE, WRITE_ACTIVE, READ_ACTIVE, CAN_WRITE, CAN_READ = 0x02, 0x04, 0x100, 0x200, 0x400, 0x800
CARD_INSERTED, CARD_STABLE, CARD_DETECTED, WRITE_ENABLED = 0x10000, 0x20000, 0x40000, 0x80000
LINES_HIGH = 0x01F00000
"""Present state."""

CLEARED = frozenset((0x30, 0x31, 0x32, 0x33))
"""Bytes whose bits are cleared by writing ones."""

WRITABLE = (
    dict.fromkeys((*range(12), 12, 14, 45, 46, 47, *range(88, 96)), 255)
    | {0x05: 0x7F, 0x0F: 0x3F, 0x28: 0xFF, 0x29: 0x0F, 0x2A: 0x0F, 0x2B: 0x07, 0x2C: 0x0D}
    | dict.fromkeys((0x34, 0x36, 0x38, 0x3A), 0xFF)
    | {0x35: 0x01, 0x37: 0x13, 0x39: 0x01, 0x3B: 0x13}
)
"""What the driver can write of each byte."""
