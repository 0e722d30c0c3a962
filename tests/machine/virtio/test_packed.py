"""Packed rings, as a driver sees them that may write anything."""

from __future__ import annotations

import struct

import pytest

from qobra.machine.memory import AddressSpace, Ram
from qobra.machine.virtio.packed import PackedRing
from qobra.machine.virtio.queue import INDIRECT, NEXT, WRITE, Queue, VirtioError

SIZE = 4
DRIVER, DEVICE, DATA = 0x400, 0x500, 0x1000
AVAILABLE, USED = 1 << 7, 1 << 15
ENABLE, DISABLE, AT = 0, 1, 2


class Driver:
    """The other side of a ring of ``SIZE`` descriptors at 0."""

    def __init__(self, *, event_index: bool = False) -> None:
        self._memory = AddressSpace("m")
        self.ram = Ram("m", 0x4000)
        self._memory.map(0, self.ram)
        self.queue = Queue(self._memory, 0, SIZE)
        self.queue.descriptors, self.queue.driver_area, self.queue.device_area = 0, DRIVER, DEVICE
        ring = self.queue.activate(packed=True, event_index=event_index)
        assert isinstance(ring, PackedRing)
        self.ring = ring
        self._place, self._wrap = 0, True

    def describe(self, at: int, address: int, length: int, flags: int, number: int = 0) -> None:
        self.ram.view[at : at + 16] = struct.pack("<QIHH", address, length, number, flags)

    def offer(self, *descriptors: tuple[int, int, int], number: int = 7) -> None:
        """Make a buffer of (address, length, flags) available."""
        for address, length, flags in descriptors:
            turn = AVAILABLE if self._wrap else USED
            self.describe(16 * self._place, address, length, flags | turn, number)
            self._place += 1
            if self._place == SIZE:
                self._place, self._wrap = 0, not self._wrap

    def flags(self, index: int) -> int:
        return int.from_bytes(self.ram.view[16 * index + 14 : 16 * index + 16], "little")

    def ask(self, flags: int, where: int = 0, wrap: bool = True) -> None:
        """When to be interrupted."""
        self.ram.view[DRIVER : DRIVER + 4] = struct.pack("<HH", where | wrap << 15, flags)

    def asked(self) -> tuple[int, int]:
        """When the device wants to be told: position and wrap counter, flags."""
        where, flags = struct.unpack("<HH", self.ram.view[DEVICE : DEVICE + 4])
        return where, flags


def test_buffers_go_around_and_come_back_with_their_numbers() -> None:
    driver = Driver()
    for turn in range(8):  # three places of four each: the ends fall anywhere
        assert driver.ring.pop() is None
        first = 3 * turn % SIZE
        driver.offer((DATA, 16, NEXT), (DATA + 512, 512, NEXT | WRITE), (DATA + 2048, 1, WRITE), number=turn)
        buffer = driver.ring.pop()
        assert buffer is not None
        assert (buffer.index, buffer.count) == (turn, 3)
        assert [len(view) for view in buffer.readable] == [16] and buffer.writable_length == 513
        driver.ring.push(buffer, 5 if turn % 2 else 0)
        is_even_lap = 3 * turn // SIZE % 2 == 0
        assert driver.flags(first) == (AVAILABLE | USED if is_even_lap else 0) | (WRITE if turn % 2 else 0)
        length, number = struct.unpack("<IH", driver.ram.view[16 * first + 8 : 16 * first + 14])
        assert (length, number) == (5 if turn % 2 else 0, turn)


def test_what_is_taken_back_is_popped_again_over_the_end_too() -> None:
    driver = Driver()
    for turn in range(5):
        driver.offer((DATA, 1 + turn, NEXT), (DATA, 16, NEXT), (DATA, 16, 0))
        buffer = driver.ring.pop()
        assert buffer is not None
        driver.ring.unpop(buffer)
        again = driver.ring.pop()
        assert again is not None and again.readable_length == 33 + turn
        driver.ring.push(again, 0)


def test_a_ring_is_walked_on_from_a_position_and_from_no_other() -> None:
    driver = Driver()
    for _ in range(3):
        driver.offer((DATA, 16, NEXT), (DATA, 16, 0))
        buffer = driver.ring.pop()
        assert buffer is not None
        driver.ring.push(buffer, 0)
    other = PackedRing(driver.queue, False)
    other.resume(driver.ring.position)
    driver.offer((DATA, 99, 0))
    found = other.pop()
    assert found is not None and found.readable_length == 99
    for position in ([SIZE, 1, 0, 1, None], [0, 1, SIZE, 1, None], [None, 1, 0, 1, None], [0, 0, None]):
        with pytest.raises(VirtioError):
            other.resume(position)


def test_when_nothing_is_there_the_device_asks_to_be_told() -> None:
    driver = Driver(event_index=True)
    for turn in range(SIZE + 1):
        assert driver.ring.pop() is None
        assert driver.asked() == (turn % SIZE | (turn < SIZE) << 15, AT)
        driver.offer((DATA, 16, 0))
        assert driver.ring.pop() is not None
    quiet = Driver()
    assert quiet.ring.pop() is None and quiet.asked() == (0, ENABLE)


def served(driver: Driver, count: int) -> bool:
    """Serve ``count`` buffers of one descriptor, and tell whether that is worth an interrupt."""
    for _ in range(count):
        driver.offer((DATA, 16, 0))
        buffer = driver.ring.pop()
        assert buffer is not None
        driver.ring.push(buffer, 0)
    return driver.ring.wants_interrupt()


def test_interrupts_come_always_never_or_where_they_are_asked_for() -> None:
    driver = Driver(event_index=True)
    assert served(driver, 1)
    driver.ask(DISABLE)
    assert not served(driver, 1)
    driver.ask(ENABLE)
    assert served(driver, 1)

    driver = Driver(event_index=True)
    driver.ask(AT, where=2)
    assert served(driver, 1)  # the first time nobody knows what was told
    assert not served(driver, 1)
    assert served(driver, 1)  # the third descriptor, at 2, is used now
    driver.ask(AT, where=0, wrap=False)
    assert served(driver, 1)  # over the end it is always told
    assert served(driver, 1)
    driver.ask(AT, where=0, wrap=False)  # was told of already
    assert not served(driver, 1)
    driver.ask(AT, where=3, wrap=False)
    assert not served(driver, 1)
    assert served(driver, 1)
    driver = Driver(event_index=True)
    assert served(driver, SIZE + 1)
    driver.ask(AT, where=2, wrap=False)
    assert served(driver, 2)
    assert not served(driver, 0)


def test_what_is_neither_offered_nor_used_is_not_there() -> None:
    driver = Driver()
    driver.describe(0, DATA, 16, AVAILABLE | USED)
    assert driver.ring.pop() is None


def test_tables_hold_longer_chains() -> None:
    driver = Driver()
    table = 0x2000
    for number, (address, length, flags) in enumerate(((DATA, 16, 0), (DATA + 64, 20, WRITE), (DATA + 128, 1, WRITE))):
        driver.describe(table + 16 * number, address, length, flags)
    driver.offer((table, 48, INDIRECT))
    buffer = driver.ring.pop()
    assert buffer is not None and buffer.count == 1
    assert (buffer.readable_length, buffer.writable_length) == (16, 21)
    for number in range(200):
        driver.describe(table + 16 * number, DATA, 1 + number, 0)
    driver.offer((table, 16 * 200, INDIRECT))
    buffer = driver.ring.pop()
    assert buffer is not None and len(buffer.readable) == 200


@pytest.mark.parametrize(
    ("descriptors", "text"),
    [
        ([(DATA, 16, NEXT)] * SIZE, "Looped descriptor"),
        ([(DATA, 0, 0)], "zero sized"),
        ([(0x10000, 16, 0)], "bogus descriptor"),
        ([(DATA, 16, WRITE | NEXT), (DATA, 16, 0)], "Incorrect order"),
        ([(DATA, 16, NEXT), (0x2000, 16, INDIRECT)], "Invalid use of an indirect"),
        ([(0x2000, 16, INDIRECT | NEXT), (DATA, 16, 0)], "Invalid use of an indirect"),
        ([(0x2000, 0, INDIRECT)], "Invalid size for indirect"),
        ([(0x2000, 24, INDIRECT)], "Invalid size for indirect"),
        ([(0x2000, 16 * 1025, INDIRECT)], "too long"),
        ([(0x3FF8, 16, INDIRECT)], "Cannot map indirect"),
        ([(0x3000, 16, INDIRECT)], "Invalid use of an indirect"),
    ],
)
def test_chains_that_break_the_rules_are_refused(descriptors: list[tuple[int, int, int]], text: str) -> None:
    driver = Driver()
    driver.describe(0x2000, DATA, 16, 0)
    driver.describe(0x3000, 0x2000, 16, INDIRECT)
    driver.offer(*descriptors)
    with pytest.raises(VirtioError, match=text):
        driver.ring.pop()


def test_a_chain_may_take_all_of_the_ring() -> None:
    driver = Driver()
    driver.offer(*[(DATA, 16, NEXT)] * (SIZE - 1), (DATA, 16, 0))
    buffer = driver.ring.pop()
    assert buffer is not None and buffer.count == SIZE
    with pytest.raises(VirtioError, match="Desc index is 4"):
        driver.ring.again(SIZE)


def test_a_ring_has_to_lie_in_memory() -> None:
    driver = Driver()
    driver.queue.device_area = 0x4000
    with pytest.raises(VirtioError, match="Cannot map queue 0"):
        PackedRing(driver.queue, False)
