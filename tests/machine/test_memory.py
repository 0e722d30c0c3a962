"""Address spaces: overlap, priorities, access splitting."""

from __future__ import annotations

import random

import pytest

from qobra.machine.memory import AddressSpace, Ram, Registers, Window


class _Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int, int]] = []

    def read(self, offset: int, width: int) -> int:
        self.calls.append(("r", offset, width, 0))
        return 0x1122334455667788 & ((1 << 8 * width) - 1)

    def write(self, offset: int, width: int, value: int) -> None:
        self.calls.append(("w", offset, width, value))


def test_ram_and_holes() -> None:
    space = AddressSpace("m")
    space.map(0x1000, Ram("a", 0x1000))
    space.store(0x1FFC, 8, 0x1122334455667788)  # the upper half is lost beyond the end
    assert space.load(0x1FFC, 4) == 0x55667788
    assert space.load(0x1FFC, 8) == 0x55667788
    assert space.read(0xFFE, 4) == bytes(4)
    assert AddressSpace("io", unassigned=0xFF).load(5, 2) == 0xFFFF


def test_the_higher_priority_shows_and_moves() -> None:
    space = AddressSpace("m")
    low, high = Ram("low", 0x3000), Ram("high", 0x1000)
    low.view[:] = b"l" * 0x3000
    high.view[:] = b"h" * 0x1000
    space.map(0, low)
    mapping = space.map(0x1000, high, priority=1)
    assert space.read(0xFFF, 2) == b"lh" and space.read(0x1FFF, 2) == b"hl"
    mapping.place(0x2000)
    assert space.read(0x1FFF, 2) == b"lh"
    mapping.place(None)
    assert space.read(0x1FFF, 2) == b"ll"
    mapping.remove()
    assert len(space.flat()) == 1


@pytest.mark.parametrize(
    ("impl", "width", "calls"),
    [
        ((1, 4), 4, [("r", 8, 4, 0)]),
        ((1, 1), 4, [("r", 8, 1, 0), ("r", 9, 1, 0), ("r", 10, 1, 0), ("r", 11, 1, 0)]),
        ((4, 4), 1, [("r", 8, 4, 0)]),
        ((1, 4), 8, []),
    ],
)
def test_registers_are_reached_in_the_widths_that_they_take(
    impl: tuple[int, int], width: int, calls: list[tuple[str, int, int, int]]
) -> None:
    recorder = _Recorder()
    registers = Registers("r", 0x100, recorder.read, recorder.write, valid=(1, 4), impl=impl)
    registers.load(8, width)
    assert recorder.calls == calls


def test_an_access_belongs_to_the_register_that_it_begins_in() -> None:
    first, second = _Recorder(), _Recorder()
    space = AddressSpace("io")
    space.map(0xCF8, Registers("index", 4, first.read, first.write))
    space.map(0xCF9, Registers("reset", 1, second.read, second.write), priority=1)
    space.store(0xCF8, 4, 0x80000000)
    space.store(0xCF9, 1, 6)
    assert first.calls == [("w", 0, 4, 0x80000000)] and second.calls == [("w", 0, 1, 6)]


def test_rom_is_not_written() -> None:
    space = AddressSpace("m")
    rom = Ram("rom", 0x1000, readonly=True)
    space.map(0, rom)
    space.store(0, 4, 1)
    space.write(0, b"xyz")
    assert not any(rom.view[:16])
    assert space.ram(0, 16) is not None and space.ram(0, 16, writable=True) is None
    assert space.ram(0xFF8, 16) is None


def test_the_flat_view_agrees_with_painting() -> None:
    random.seed(5)
    for _ in range(50):
        space = AddressSpace("m")
        shown = []
        for i in range(8):
            base, size = random.randrange(200), random.randrange(1, 80)
            ram = Ram(str(i), 4096)
            ram.view[:] = bytes([i + 1]) * 4096
            priority = random.randrange(3)
            space.map(base, ram, size=size, priority=priority)
            shown.append((priority, i, base, size))
        painted = bytearray(300)
        for _priority, i, base, size in sorted(shown):
            painted[base : base + size] = bytes([i + 1]) * size
        assert space.read(0, 300) == bytes(painted)


def test_a_window_shows_what_another_space_has_and_lets_the_rest_through() -> None:
    outer, first, second = (AddressSpace(name) for name in ("outer", "first", "second"))
    below = Ram("below", 0x4000)
    outer.map(0x1000, below, priority=-3)
    outer.map(0x1000, Window("first", first), offset=0x1000, size=0x2000, priority=-2)
    late = outer.map(0x1000, Window("second", second), offset=0x1000, size=0x2000, priority=-2)
    left, right = Ram("left", 0x1000), Ram("right", 0x1000)
    first.map(0x800, left)  # half of it lies before the window
    mapping = second.map(0x2800, right)
    flat = [(start, end, region.name, offset) for start, end, region, offset in outer.flat()]
    assert flat == [
        (0x1000, 0x1800, "left", 0x800),
        (0x1800, 0x2800, "below", 0x800),
        (0x2800, 0x3000, "right", 0),
        (0x3000, 0x5000, "below", 0x2000),
    ]
    outer.store(0x2804, 4, 7)
    assert right.load(4, 4) == 7
    mapping.place(0x1000)
    outer.store(0x1004, 4, 8)
    assert right.load(4, 4) == 8 and left.load(0x804, 4) == 0
    late.remove()
    outer.store(0x1004, 4, 9)
    assert left.load(0x804, 4) == 9
    assert not second.listeners and len(first.listeners) == 1
