"""Split rings, as a driver sees them that may write anything."""

from __future__ import annotations

import struct

import pytest

from qobra.machine.memory import AddressSpace, Ram
from qobra.machine.virtio.queue import INDIRECT, NEXT, WRITE, Queue, VirtioError
from qobra.machine.virtio.split import SplitRing

SIZE = 4
AVAILABLE, USED, DATA, TABLE = 0x400, 0x500, 0x1000, 0x2000
NO_INTERRUPT = 1


class Driver:
    """The other side of a ring of ``SIZE`` descriptors at 0."""

    def __init__(self, *, event_index: bool = False, start: int = 0) -> None:
        """``start``: how many buffers were used before."""
        memory = AddressSpace("m")
        self.ram = Ram("m", 0x4000)
        memory.map(0, self.ram)
        self.queue = Queue(memory, 0, SIZE)
        self.queue.descriptors, self.queue.driver_area, self.queue.device_area = 0, AVAILABLE, USED
        ring = self.queue.activate(packed=False, event_index=event_index)
        assert isinstance(ring, SplitRing)
        self.ring = ring
        self.ring.resume([start, start, None])
        self._offered = start
        self.number(AVAILABLE + 2, start)

    def number(self, at: int, value: int | None = None) -> int:
        if value is not None:
            self.ram.view[at : at + 2] = value.to_bytes(2, "little")
        return int.from_bytes(self.ram.view[at : at + 2], "little")

    def describe(self, at: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.ram.view[at : at + 16] = struct.pack("<QIHH", address, length, flags, following)

    def offer(self, head: int) -> None:
        self.number(AVAILABLE + 4 + 2 * (self._offered % SIZE), head)
        self._offered += 1
        self.number(AVAILABLE + 2, self._offered & 0xFFFF)

    def serve(self, count: int = 1) -> bool:
        """Serve ``count`` buffers, and tell whether that is worth an interrupt."""
        for _ in range(count):
            self.describe(0, DATA, 16)
            self.offer(0)
            buffer = self.ring.pop()
            assert buffer is not None
            self.ring.push(buffer, 0)
        return self.ring.wants_interrupt()

    def ask(self, place: int) -> None:
        """Be told once the buffer at ``place`` was used."""
        self.number(AVAILABLE + 4 + 2 * SIZE, place & 0xFFFF)


def test_buffers_go_around_and_come_back_with_their_numbers() -> None:
    driver = Driver(start=0xFFF8)
    for turn in range(0xFFF8, 0x10008):  # past the end of the ring's numbers
        head = turn % SIZE
        driver.describe(16 * head, DATA, 1 + turn % 100, WRITE)
        driver.offer(head)
        buffer = driver.ring.pop()
        assert buffer is not None and buffer.index == head and buffer.writable_length == 1 + turn % 100
        driver.ring.push(buffer, turn)
        place = USED + 4 + 8 * (turn % SIZE)
        assert struct.unpack("<II", driver.ram.view[place : place + 8]) == (head, turn)
        assert driver.number(USED + 2) == (turn + 1) & 0xFFFF
    assert driver.ring.pop() is None


def test_what_is_taken_back_is_popped_again() -> None:
    driver = Driver()
    driver.describe(32, DATA, 5)
    driver.offer(2)
    buffer = driver.ring.pop()
    assert buffer is not None and driver.ring.pop() is None
    driver.ring.unpop(buffer)
    again = driver.ring.pop()
    assert again is not None and again.index == 2


def test_a_ring_is_walked_on_from_a_position_and_from_no_other() -> None:
    driver = Driver()
    driver.serve(3)
    driver.describe(16, DATA, 99)
    other = SplitRing(driver.queue, False)
    other.resume(driver.ring.position)
    driver.offer(1)
    found = other.pop()
    assert found is not None and found.readable_length == 99
    other.resume([SIZE, 0, None])
    assert other.position == [SIZE, 0, None]
    for position in ([SIZE + 1, 0, None], [0, 1, None], [None, 0, None], [0, None, None], [0, 0, 0, 0, 0]):
        with pytest.raises(VirtioError):
            other.resume(position)


def test_when_nothing_is_there_the_device_asks_to_be_told() -> None:
    driver = Driver(event_index=True)
    driver.serve(3)
    assert driver.ring.pop() is None and driver.number(USED + 4 + 8 * SIZE) == 3
    quiet = Driver()
    quiet.serve(3)
    assert quiet.ring.pop() is None and quiet.number(USED + 4 + 8 * SIZE) == 0


def test_interrupts_come_unless_they_are_not_wanted() -> None:
    driver = Driver()
    assert driver.serve()
    driver.number(AVAILABLE, NO_INTERRUPT)
    assert not driver.serve()


@pytest.mark.parametrize("start", [0, 0xFFFE])
def test_interrupts_come_where_they_are_asked_for(start: int) -> None:
    driver = Driver(event_index=True, start=start)
    driver.ask(start + 100)
    assert driver.serve()  # the first time nobody knows what was told
    driver.ask(start + 2)
    assert not driver.serve()
    assert driver.serve()
    driver.ask(start + 2)  # was told of already
    assert not driver.serve()
    driver.ask(start + 4)
    assert driver.serve(3)
    assert not driver.serve(0)


@pytest.mark.parametrize(
    ("first", "text"),
    [
        ((DATA, 16, NEXT, 0), "Looped descriptor"),
        ((DATA, 16, NEXT, SIZE), "Desc next is 4"),
        ((DATA, 0, 0, 0), "zero sized"),
        ((0x10000, 16, 0, 0), "bogus descriptor"),
        ((DATA, 16, NEXT | WRITE, 1), "Incorrect order"),
        ((TABLE, 16, INDIRECT | NEXT, 1), "Invalid use of an indirect"),
        ((TABLE, 0, INDIRECT, 0), "Invalid size for indirect"),
        ((TABLE, 24, INDIRECT, 0), "Invalid size for indirect"),
        ((TABLE, 16 * 4097, INDIRECT, 0), "too long"),
        ((0x3FF8, 16, INDIRECT, 0), "Cannot map indirect"),
        ((TABLE, 16, INDIRECT, 0), "Invalid use of an indirect"),
        ((TABLE + 16, 32, INDIRECT, 0), "Desc next is 2"),
    ],
)
def test_chains_that_break_the_rules_are_refused(first: tuple[int, int, int, int], text: str) -> None:
    driver = Driver()
    driver.describe(0, *first)
    driver.describe(16, DATA, 16)
    driver.describe(TABLE, TABLE, 16, INDIRECT)
    driver.describe(TABLE + 16, DATA, 16, NEXT, 2)
    driver.offer(0)
    with pytest.raises(VirtioError, match=text):
        driver.ring.pop()


def test_tables_hold_longer_chains() -> None:
    driver = Driver()
    for number in range(200):
        driver.describe(TABLE + 16 * number, DATA, 1 + number, NEXT if number < 199 else 0, number + 1)
    driver.describe(0, TABLE, 16 * 200, INDIRECT)
    driver.offer(0)
    buffer = driver.ring.pop()
    assert buffer is not None and [len(view) for view in buffer.readable] == [*range(1, 201)]


def test_numbers_that_cannot_be_are_refused() -> None:
    driver = Driver()
    driver.offer(SIZE)
    with pytest.raises(VirtioError, match="Guest says index 4 is available"):
        driver.ring.pop()
    driver.number(AVAILABLE + 2, 1 + SIZE + 1)
    with pytest.raises(VirtioError, match="Guest moved used index from 1 to 6"):
        driver.ring.pop()
