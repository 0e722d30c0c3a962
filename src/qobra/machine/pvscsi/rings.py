"""The three rings, and the page that says how far each side has come."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from qobra.machine.dma import GuestMemory
from qobra.machine.vmstate import Number, VmState, listed, u32, u64

PAGE = 4096
REQUEST = Struct("<QQQQII16sB8sBBBB59x")
"""Context, data's address and length, sense's address and length, flags, command block and its length, LUN, tag, bus,
target, and which CPU asked."""
COMPLETION = Struct("<QQIHH8x")
"""Context, bytes moved, bytes of sense, the adapter's status, the unit's."""
MESSAGE = Struct("<III8s108x")
_REQUEST_AT, _COMPLETION_AT, _MESSAGE_AT = 0, 12, 128
_LOG_AT = 8
_COUNTER = 1 << 32


class Rings:
    """Where the rings are: ``state`` is the page of counters, 0 until the driver has said so."""

    vmstate = VmState(
        u64("state"),
        listed("_requests", "_completions", "_messages", kind=Number(8), maximum=32),
        u32("_taken", "_told", "_sent"),
    )

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.reset()

    def reset(self) -> None:
        """There are none."""
        self.state = 0
        self._requests: list[int] = []
        self._completions: list[int] = []
        self._messages: list[int] = []
        self._taken = self._told = self._sent = 0

    def set_up(self, state: int, requests: list[int], completions: list[int]) -> None:
        """The driver has made the rings, of whole pages each."""
        self.reset()
        self.state, self._requests, self._completions = state, requests, completions
        self._put_log(_REQUEST_AT, len(requests) * PAGE // REQUEST.size)
        self._put_log(_COMPLETION_AT, len(completions) * PAGE // COMPLETION.size)

    def set_up_messages(self, pages: list[int]) -> None:
        """The driver wants messages."""
        self._messages, self._sent = pages, 0
        self._put_log(_MESSAGE_AT, len(pages) * PAGE // MESSAGE.size)

    @property
    def has_messages(self) -> bool:
        """Whether there is a ring for messages."""
        return bool(self.state and self._messages)

    def requests(self) -> Iterator[tuple[int, ...]]:
        """What is in the ring of requests, each once, as :data:`REQUEST` has it; as many as fit at most."""
        count = _slots(self._requests, REQUEST.size)
        for _ in range(count):
            if not self.state or self._memory.number(self.state + _REQUEST_AT, 4) == self._taken:
                return
            place = self._place(self._requests, self._taken, count, REQUEST.size)
            data = self._memory.read(place, REQUEST.size)
            self._taken = (self._taken + 1) % _COUNTER
            self._memory.write(self.state + _REQUEST_AT + 4, self._taken.to_bytes(4, "little"))
            yield REQUEST.unpack(data)

    def complete(self, *values: int) -> None:
        """Tell how a request ended, as :data:`COMPLETION` has it."""
        count = _slots(self._completions, COMPLETION.size)
        if self.state and count:
            place = self._place(self._completions, self._told, count, COMPLETION.size)
            self._memory.write(place, COMPLETION.pack(*values))
            self._told = (self._told + 1) % _COUNTER
            self._memory.write(self.state + _COMPLETION_AT, self._told.to_bytes(4, "little"))

    def send(self, message: bytes) -> bool:
        """Put a message into its ring, if there is room."""
        if not self.has_messages:
            return False
        count = _slots(self._messages, MESSAGE.size)
        seen = self._memory.number(self.state + _MESSAGE_AT + 4, 4)
        if (self._sent - seen) % _COUNTER >= count:
            return False
        self._memory.write(self._place(self._messages, self._sent, count, MESSAGE.size), message)
        self._sent = (self._sent + 1) % _COUNTER
        self._memory.write(self.state + _MESSAGE_AT, self._sent.to_bytes(4, "little"))
        return True

    def _put_log(self, at: int, count: int) -> None:
        self._memory.write(self.state + at + _LOG_AT, (count.bit_length() - 1).to_bytes(4, "little"))

    @staticmethod
    def _place(pages: list[int], index: int, count: int, size: int) -> int:
        at = index % count * size
        return pages[at // PAGE] + at % PAGE


def _slots(pages: list[int], size: int) -> int:
    """Entries of ``size`` bytes in a ring: a power of two, as the counters run on over its end."""
    count = len(pages) * PAGE // size
    return 1 << count.bit_length() - 1 if count else 0
