"""Rings of transfer request blocks (xHCI 1.1, sections 4.9 and 6.4)."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from qobra.machine.vmstate import VmState, u8, u64

if TYPE_CHECKING:
    from qobra.machine.dma import GuestMemory

# Types (6.4.6).
NORMAL, SETUP, DATA, STATUS, ISOCH, LINK, EVENT_DATA, NO_OP = range(1, 9)
TRANSFER_EVENT, COMMAND_COMPLETION, PORT_STATUS_CHANGE = 32, 33, 34
HOST_CONTROLLER, MFINDEX_WRAP = 37, 39

# Completion codes (6.4.5).
SUCCESS, TRANSACTION_ERROR, TRB_ERROR, STALL_ERROR = 1, 4, 5, 6
NO_SLOTS, SLOT_NOT_ENABLED, ENDPOINT_NOT_ENABLED, SHORT_PACKET = 9, 11, 12, 13
PARAMETER_ERROR, CONTEXT_STATE_ERROR = 17, 19
EVENT_RING_FULL, COMMAND_RING_STOPPED, STOPPED = 21, 24, 26

CYCLE, TOGGLE_CYCLE, SHORT_EVENT, CHAIN, ON_COMPLETION, IMMEDIATE = 0x01, 0x02, 0x04, 0x10, 0x20, 0x40
NO_INTERRUPT, TO_HOST = 0x200, 0x10000

TRB_SIZE = 16
WORDS = Struct("<QII")
"""Parameter, status, control."""
MAX_LINKS = 32
"""How many links in a row are followed: more lead in circles."""


class RingBroken(Exception):
    """Links that lead nowhere."""


class Trb:
    """One request, and where it lies."""

    __slots__ = ("address", "control", "parameter", "status")

    def __init__(self, address: int, parameter: int, status: int, control: int) -> None:
        self.address = address
        self.parameter = parameter
        self.status = status
        self.control = control

    @property
    def kind(self) -> int:
        """The type."""
        return self.control >> 10 & 0x3F

    @property
    def length(self) -> int:
        """Bytes to transfer."""
        return self.status & 0x1FFFF

    @property
    def slot(self) -> int:
        """The slot that a command is for."""
        return self.control >> 24

    @property
    def endpoint(self) -> int:
        """The endpoint that a command is for, by its place in the device context."""
        return self.control >> 16 & 0x1F


class Ring:
    """Where the controller is in a ring that the guest fills."""

    __slots__ = ("_memory", "cycle", "dequeue")

    vmstate = VmState(u64("dequeue"), u8("cycle", maximum=1))

    def __init__(self, memory: GuestMemory, dequeue: int = 0, cycle: int = 0) -> None:
        self._memory = memory
        self.dequeue = dequeue
        self.cycle = cycle

    def here(self) -> Ring:
        """Another reader at the same place."""
        return Ring(self._memory, self.dequeue, self.cycle)

    def fetch(self) -> Trb | None:
        """The next request, past any links; None if the guest has not written it yet. Raises RingBroken."""
        for _ in range(MAX_LINKS):
            address = self.dequeue
            parameter, status, control = WORDS.unpack(self._memory.read(address, TRB_SIZE))
            if control & CYCLE != self.cycle:
                return None
            if control >> 10 & 0x3F != LINK:
                self.dequeue = address + TRB_SIZE & 0xFFFFFFFFFFFFFFFF
                return Trb(address, parameter, status, control)
            self.dequeue = parameter & ~0xF
            if control & TOGGLE_CYCLE:
                self.cycle ^= 1
        raise RingBroken
