"""Sense: why a command failed (SPC-4, section 4.5)."""

from __future__ import annotations

NO_SENSE, NOT_READY, MEDIUM_ERROR, ILLEGAL_REQUEST, UNIT_ATTENTION, DATA_PROTECT = 0x0, 0x2, 0x3, 0x5, 0x6, 0x7
HARDWARE_ERROR = 0x4
ABORTED_COMMAND = 0xB

GOOD, CHECK_CONDITION, CONDITION_GOOD, BUSY, RESERVATION_CONFLICT, TASK_SET_FULL = 0x00, 0x02, 0x04, 0x08, 0x18, 0x28


class Sense(Exception):
    """A command ends with CHECK CONDITION: sense key, additional code, qualifier."""

    def __init__(self, key: int, code: int, qualifier: int = 0) -> None:
        super().__init__(f"sense {key:x}/{code:02x}/{qualifier:02x}")
        self.key = key
        self.code = code
        self.qualifier = qualifier

    def data(self) -> bytes:
        """18 bytes of fixed-format sense data."""
        sense = bytearray(18)
        sense[0], sense[2], sense[7] = 0x70, self.key, 10
        sense[12], sense[13] = self.code, self.qualifier
        return bytes(sense)


NO_MEDIUM = (NOT_READY, 0x3A, 0x00)
LUN_NOT_READY = (NOT_READY, 0x04, 0x03)
INVALID_OPCODE = (ILLEGAL_REQUEST, 0x20, 0x00)
LBA_OUT_OF_RANGE = (ILLEGAL_REQUEST, 0x21, 0x00)
INVALID_FIELD = (ILLEGAL_REQUEST, 0x24, 0x00)
INVALID_PARAMETER = (ILLEGAL_REQUEST, 0x26, 0x00)
INVALID_PARAMETER_LENGTH = (ILLEGAL_REQUEST, 0x1A, 0x00)
LUN_NOT_SUPPORTED = (ILLEGAL_REQUEST, 0x25, 0x00)
SAVING_NOT_SUPPORTED = (ILLEGAL_REQUEST, 0x39, 0x00)
REMOVAL_PREVENTED = (ILLEGAL_REQUEST, 0x53, 0x02)
REMOVAL_PREVENTED_NO_MEDIUM = (NOT_READY, 0x53, 0x02)
MEDIUM_GONE = (UNIT_ATTENTION, 0x3A, 0x00)
WRITE_PROTECTED = (DATA_PROTECT, 0x27, 0x00)
RESET_OCCURRED = (UNIT_ATTENTION, 0x29, 0x00)
MEDIUM_CHANGED = (UNIT_ATTENTION, 0x28, 0x00)
CAPACITY_CHANGED = (UNIT_ATTENTION, 0x2A, 0x09)
REPORTED_LUNS_CHANGED = (UNIT_ATTENTION, 0x3F, 0x0E)
TARGET_FAILURE = (HARDWARE_ERROR, 0x44, 0x00)
IO_ERROR = (ABORTED_COMMAND, 0x00, 0x06)
SPACE_ALLOCATION_FAILED = (DATA_PROTECT, 0x27, 0x07)
UNRECOVERED_READ = (MEDIUM_ERROR, 0x11, 0x00)
