"""Submission and completion queues, which lie in guest memory (4.1), and the memory that a command means (4.3)."""

from __future__ import annotations

from collections import deque

from qobra.machine.dma import GuestMemory, ScatterList
from qobra.machine.nvme import status
from qobra.machine.nvme.status import Refused

COMMAND_SIZE, COMPLETION_SIZE = 64, 16
MAX_TRANSFER = 32 << 20
"""Bytes of one command, whatever the guest and the controller's user agree on."""


class Command:
    """One command, read from its queue once."""

    __slots__ = ("data", "id", "namespace", "opcode", "prp1", "prp2", "queue")

    def __init__(self, queue: SubmissionQueue, data: bytes) -> None:
        self.queue = queue
        self.data = data
        self.opcode = data[0]
        self.id = int.from_bytes(data[2:4], "little")
        self.namespace = int.from_bytes(data[4:8], "little")
        self.prp1 = int.from_bytes(data[24:32], "little")
        self.prp2 = int.from_bytes(data[32:40], "little")

    def dword(self, number: int) -> int:
        """Dword 10 to 15."""
        return int.from_bytes(self.data[4 * number : 4 * number + 4], "little")

    @property
    def uses_prp(self) -> bool:
        """Whether memory is given as physical pages."""
        return not self.data[1] & 0xC0


class CompletionQueue:
    """Where the controller says how commands ended. ``waiting`` holds what found no room."""

    def __init__(self, memory: GuestMemory, number: int, base: int, size: int, vector: int | None) -> None:
        self._memory = memory
        self.number = number
        self.base = base
        self.size = size
        self.vector = vector
        self.head = self.tail = 0
        self.phase = 1
        self.users = 0
        self.waiting: deque[tuple[Command, int, int]] = deque()

    @property
    def full(self) -> bool:
        """Whether nothing more fits until the guest has read something."""
        return (self.tail + 1) % self.size == self.head

    @property
    def empty(self) -> bool:
        """Whether the guest has read all."""
        return self.head == self.tail

    def flush(self) -> bool:
        """Write what waits, as far as there is room; True if anything was written."""
        wrote = False
        while self.waiting and not self.full:
            command, result, code = self.waiting.popleft()
            queue = command.queue
            entry = (
                (result & (1 << 64) - 1).to_bytes(8, "little")
                + queue.head.to_bytes(2, "little")
                + queue.number.to_bytes(2, "little")
                + command.id.to_bytes(2, "little")
                + (code << 1 | self.phase).to_bytes(2, "little")
            )
            self._memory.write(self.base + self.tail * COMPLETION_SIZE, entry)
            self.tail += 1
            if self.tail == self.size:
                self.tail = 0
                self.phase ^= 1
            wrote = True
        return wrote


class SubmissionQueue:
    """Where the guest puts commands; they end in ``completions``."""

    def __init__(self, memory: GuestMemory, number: int, base: int, size: int, completions: CompletionQueue) -> None:
        self._memory = memory
        self.number = number
        self.base = base
        self.size = size
        self.completions = completions
        self.head = self.tail = 0
        self.closed = False
        completions.users += 1

    def next(self) -> Command | None:
        """The next command, or None."""
        if self.head == self.tail:
            return None
        data = self._memory.read(self.base + self.head * COMMAND_SIZE, COMMAND_SIZE)
        self.head = (self.head + 1) % self.size
        return Command(self, data)

    def close(self) -> None:
        """The queue is deleted; what it had under way ends unseen."""
        self.closed = True
        self.completions.users -= 1


def pages(memory: GuestMemory, page: int, command: Command, length: int) -> ScatterList:
    """The guest memory of ``length`` bytes that the command's two page pointers mean. Raises Refused."""
    if not command.uses_prp:
        raise Refused(status.INVALID_FIELD)
    pieces = ScatterList(memory)
    first = min(length, page - command.prp1 % page)
    pieces.add(command.prp1, first)
    left = length - first
    if left <= 0:
        return pieces
    if left <= page:
        _add(pieces, command.prp2, left, page)
        return pieces
    # A list of pages; the last entry of a full page of the list leads to the next.
    at = command.prp2
    if at % 8:
        raise Refused(status.INVALID_PRP_OFFSET)
    entries = memory.read(at, page - at % page)
    position = 0
    while left > 0:
        last = position + 8 >= len(entries)
        pointer = int.from_bytes(entries[position : position + 8], "little")
        if last and left > page:
            if pointer % page:
                raise Refused(status.INVALID_PRP_OFFSET)
            entries, position = memory.read(pointer, page), 0
            continue
        _add(pieces, pointer, min(left, page), page)
        left -= page
        position += 8
    return pieces


def _add(pieces: ScatterList, address: int, length: int, page: int) -> None:
    if address % page:
        raise Refused(status.INVALID_PRP_OFFSET)
    pieces.add(address, length)
