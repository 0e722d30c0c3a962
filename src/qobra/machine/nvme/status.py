"""How a command ended (NVM Express 1.4, section 4.6.1): the status field without its phase bit."""

from __future__ import annotations

DO_NOT_RETRY = 0x4000

SUCCESS = 0x000
INVALID_OPCODE = 0x001 | DO_NOT_RETRY
INVALID_FIELD = 0x002 | DO_NOT_RETRY
INTERNAL_ERROR = 0x006
ABORTED_BY_DELETION = 0x008
INVALID_NAMESPACE = 0x00B | DO_NOT_RETRY
INVALID_PRP_OFFSET = 0x013 | DO_NOT_RETRY
WRITE_PROTECTED = 0x020 | DO_NOT_RETRY
LBA_OUT_OF_RANGE = 0x080 | DO_NOT_RETRY

INVALID_COMPLETION_QUEUE = 0x100 | DO_NOT_RETRY
INVALID_QUEUE = 0x101 | DO_NOT_RETRY
INVALID_QUEUE_SIZE = 0x102 | DO_NOT_RETRY
TOO_MANY_EVENTS = 0x105 | DO_NOT_RETRY
INVALID_VECTOR = 0x108 | DO_NOT_RETRY
INVALID_LOG_PAGE = 0x109 | DO_NOT_RETRY
QUEUE_IN_USE = 0x10C
NOT_SAVEABLE = 0x10D | DO_NOT_RETRY

WRITE_FAULT = 0x280
UNRECOVERED_READ = 0x281
COMPARE_FAILURE = 0x285


class Refused(Exception):
    """A command ends with ``status``."""

    def __init__(self, status: int) -> None:
        super().__init__(f"NVMe status {status:#x}")
        self.status = status
