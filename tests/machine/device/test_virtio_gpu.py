"""virtio-gpu from the guest's side, and what screendump makes of it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.display.console import Console
from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.memory import AddressSpace, Ram
from qobra.machine.plug import add_device
from qobra.machine.virtio.gpu_commands import GpuCommands
from qobra.machine.vmstate import StateSource, put_object, take_object
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess, Memory, ModernPci, PciFunction, Queue, driver_ok, start_driver

_WIDTH, _HEIGHT = 64, 48
_OK, _UNSPECIFIED, _NO_MEMORY, _BAD_SCANOUT, _BAD_RESOURCE, _BAD_PARAMETER = 0x1100, *range(0x1200, 0x1204), 0x1205


class Card:
    """The driver of a virtio-gpu device in slot 5 of a PC."""

    def __init__(self, **options: Any) -> None:
        self.machine = simple_machine("x86_64", "pc", memory=32 << 20)
        self.access = BoardAccess(self.machine)
        board: Any = self.machine.board
        with self.machine.control:
            board.ready = False
            add_device(self.machine, {"driver": "virtio-gpu-pci", "id": "g", "addr": 5 << 3} | options, keyval=False)
            board.ready = True
        self.memory = Memory()
        function = PciFunction(self.access, 5 << 3)
        function.enable()
        self.transport = ModernPci(function)
        start_driver(self.transport, 1 << 32 | 2)
        self.queues = [Queue(self.transport, self.memory, number) for number in (0, 1)]
        driver_ok(self.transport)

    def ask(self, kind: int, *numbers: int, more: bytes = b"", fence: int | None = None, queue: int = 0) -> bytes:
        flags = 0 if fence is None else 1
        request = pack("<IIQII", kind, flags, fence or 0, 0, 0) + pack(f"<{len(numbers)}I", *numbers) + more
        there, back = self.memory.take(len(request)), self.memory.take(2048)
        self.access.write(there, request)
        self.queues[queue].send([(there, len(request), False), (back, 2048, True)])
        return self.access.read(back, self.queues[queue].wait_used()[1])

    def status(self, kind: int, *numbers: int, more: bytes = b"") -> int:
        found: int = unpack_from("<I", self.ask(kind, *numbers, more=more))[0]
        return found

    def draw(self, number: int, format: int, pixels: bytes) -> int:
        """A resource of the usual size, with these pixels; the address of its memory."""
        assert self.status(0x101, number, format, _WIDTH, _HEIGHT) == _OK
        address = self.memory.take(len(pixels), 4096)
        self.access.write(address, pixels)
        pieces = pack("<QII", address, 4096, 0) + pack("<QII", address + 4096, len(pixels) - 4096, 0)
        assert self.status(0x106, number, 2, more=pieces) == _OK
        assert self.status(0x105, 0, 0, _WIDTH, _HEIGHT, 0, 0, number, 0) == _OK
        return address

    def call(self, command: str, **arguments: Any) -> Any:
        with self.machine.control:
            return dispatch.call(self.machine, command, arguments)

    def picture(self, path: Path, **arguments: Any) -> tuple[int, int, bytes]:
        self.call("screendump", filename=str(path), **arguments)
        head, size, _, pixels = path.read_bytes().split(b"\n", 3)
        assert head == b"P6"
        width, height = map(int, size.split())
        return width, height, pixels


@pytest.fixture
def card() -> Iterator[Card]:
    card = Card()
    yield card
    card.machine.close()


def _pixels(order: str) -> tuple[bytes, bytes]:
    """Pixels in that order of channels, and what they look like in red, green, blue."""
    raw, shown = bytearray(), bytearray()
    for y in range(_HEIGHT):
        for x in range(_WIDTH):
            channels = {"r": x * 4, "g": y * 5, "b": (x + y) & 0xFF, "x": 0xAA}
            raw += bytes(channels[letter] for letter in order)
            shown += bytes(channels[letter] for letter in "rgb")
    return bytes(raw), bytes(shown)


@pytest.mark.parametrize(
    ("format", "order"),
    [(1, "bgrx"), (2, "bgrx"), (3, "xrgb"), (4, "xrgb"), (67, "rgbx"), (68, "xbgr"), (121, "xbgr"), (134, "rgbx")],
)
def test_what_the_guest_draws_is_what_is_saved(card: Card, tmp_path: Path, format: int, order: str) -> None:
    raw, shown = _pixels(order)
    card.draw(1, format, raw)
    assert card.picture(tmp_path / "before")[:2] == (640, 480)
    assert card.status(0x103, 0, 0, _WIDTH, _HEIGHT, 0, 1) == _OK
    assert card.picture(tmp_path / "all", device="g", head=0) == (_WIDTH, _HEIGHT, shown)


def test_a_part_of_a_resource_and_a_part_of_a_transfer(card: Card, tmp_path: Path) -> None:
    raw, _ = _pixels("bgrx")
    address = card.draw(1, 2, raw)
    assert card.status(0x103, 8, 4, 20, 16, 0, 1) == _OK
    card.access.write(address, b"\xff" * len(raw))
    # Two pixels in the second row that is shown.
    offset = (5 * _WIDTH + 9) * 4
    assert card.status(0x105, 9, 5, 2, 1, offset, 0, 1, 0) == _OK
    assert card.status(0x104, 9, 5, 2, 1, 1, 0) == _OK
    width, height, pixels = card.picture(tmp_path / "part")
    assert (width, height) == (20, 16)
    assert pixels[: 3 * 20] == b"".join(bytes((4 * x, 20, x + 4)) for x in range(8, 28))
    second = pixels[3 * 20 : 3 * 40]
    assert second[:9] == bytes((32, 25, 13)) + b"\xff" * 6
    assert second[9:12] == bytes((44, 25, 16))


def test_png(card: Card, tmp_path: Path) -> None:
    raw, shown = _pixels("bgrx")
    card.draw(1, 2, raw)
    card.status(0x103, 0, 0, _WIDTH, _HEIGHT, 0, 1)
    card.call("screendump", filename=str(tmp_path / "x.png"), format="png")
    data, chunks, at = (tmp_path / "x.png").read_bytes(), {}, 8
    while at < len(data):
        length, kind = unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        assert unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    assert unpack_from(">II", chunks[b"IHDR"]) == (_WIDTH, _HEIGHT)
    rows = zlib.decompress(chunks[b"IDAT"])
    assert b"".join(rows[y * (3 * _WIDTH + 1) + 1 : (y + 1) * (3 * _WIDTH + 1)] for y in range(_HEIGHT)) == shown


def test_refusals(card: Card) -> None:
    assert card.status(0x101, 0, 1, 8, 8) == _BAD_RESOURCE
    assert card.status(0x101, 1, 99, 8, 8) == _BAD_PARAMETER
    assert card.status(0x101, 1, 1, 40000, 40000) == _NO_MEMORY
    assert card.status(0x101, 1, 1, 0, 0xFFFFFFFF) == _NO_MEMORY
    assert card.status(0x105, 0, 0, 1, 1, 0, 0, 1, 0) == _BAD_RESOURCE
    assert card.status(0x101, 1, 1, 64, 48) == _OK
    assert card.status(0x101, 1, 1, 64, 48) == _BAD_RESOURCE
    assert card.status(0x105, 0, 0, 1, 1, 0, 0, 1, 0) == _UNSPECIFIED
    assert card.status(0x106, 1, 1, more=pack("<QII", 1 << 40, 4096, 0)) == _UNSPECIFIED
    assert card.status(0x106, 1, 2, more=pack("<QII", 0, 4096, 0)) == _UNSPECIFIED
    assert card.status(0x103, 0, 0, 64, 48, 3, 1) == _BAD_SCANOUT
    assert card.status(0x103, 0, 0, 15, 16, 0, 1) == _BAD_PARAMETER
    assert card.status(0x103, 0xFFFFFFFF, 0, 64, 48, 0, 1) == _BAD_PARAMETER
    assert card.status(0x104, 0, 0, 64, 49, 1, 0) == _BAD_PARAMETER
    assert card.status(0x107, 1, 0) == _UNSPECIFIED
    assert card.status(0x1FF) == _UNSPECIFIED
    assert card.status(0x10C, 0) == _BAD_PARAMETER


def test_displays_edid_and_fences(card: Card) -> None:
    answer = card.ask(0x100, fence=0x1234)
    assert unpack_from("<IIQ", answer) == (0x1101, 1, 0x1234)
    assert unpack_from("<IIIII", answer, 24) == (0, 0, 1280, 800, 1)
    answer = card.ask(0x10A, 0, 0)
    blocks = answer[32 : 32 + 256]
    assert blocks[:8] == b"\0\xff\xff\xff\xff\xff\xff\0"
    assert sum(blocks[:128]) & 0xFF == sum(blocks[128:]) & 0xFF == 0
    assert blocks[56] | (blocks[58] & 0xF0) << 4 == 1280
    board: Any = card.machine.board
    with card.machine.control:
        board.peripheral.children["g"].device.set_size(0, 1024, 768)
    assert card.transport.config(0, 4) == 1
    assert unpack_from("<IIII", card.ask(0x100), 24)[2:] == (1024, 768)


def test_the_pointer(card: Card) -> None:
    board: Any = card.machine.board
    console = board.consoles.first()
    assert card.status(0x101, 5, 1, 64, 64) == _OK
    card.ask(0x300, 0, 10, 20, 0, 5, 3, 4, 0, queue=1)
    assert console.cursor_place == (10, 20)
    assert (console.cursor.hot_x, console.cursor.hot_y, len(console.cursor.data)) == (3, 4, 64 * 64 * 4)
    card.ask(0x301, 0, 11, 21, 0, 0, 0, 0, 0, queue=1)
    assert console.cursor_place == (11, 21)
    card.ask(0x300, 0, 0, 0, 0, 0, 0, 0, 0, queue=1)
    assert console.cursor is None


def test_a_reset_and_an_unref_darken_the_output(card: Card, tmp_path: Path) -> None:
    raw, shown = _pixels("bgrx")
    dark = (_WIDTH, _HEIGHT, bytes(len(shown)))
    for reset in (False, True):
        card.draw(1, 2, raw)
        card.status(0x103, 0, 0, _WIDTH, _HEIGHT, 0, 1)
        assert card.picture(tmp_path / "on")[2] == shown
        if reset:
            card.transport.status(0)
        else:
            assert card.status(0x102, 1, 0) == _OK
        assert card.picture(tmp_path / "off") == dark


def test_screendump_without_a_display() -> None:
    machine = simple_machine("x86_64", "pc", memory=1 << 20)
    with machine.control, pytest.raises(QobraError, match="There is no console to take a screendump from"):
        dispatch.call(machine, "screendump", {"filename": "/nowhere"})
    machine.close()


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*range(0x100, 0x10E), 0x300, 0x301]),
            st.lists(st.sampled_from([0, 1, 2, 4, 16, 64, 4096, 0x7FFFFFFF, 0xFFFFFFFF]), max_size=12),
        ),
        max_size=30,
    )
)
def test_any_commands(commands: list[tuple[int, list[int]]]) -> None:
    space, ram = AddressSpace("memory"), Ram("ram", 1 << 20)
    space.map(0, ram)
    gpu = GpuCommands(space, [Console(None, 0)], memory_limit=1 << 20, size=(640, 480))
    for kind, numbers in commands:
        request = pack("<IIQII", kind, 0, 0, 0, 0) + pack(f"<{len(numbers)}I", *numbers)
        assert len(gpu.control(request)) >= 24
        gpu.cursor(request)
    gpu.reset()
    assert gpu._used == 0
    ram.close()


def test_the_state_of_a_card(card: Card, tmp_path: Path) -> None:
    raw, _ = _pixels("xrgb")
    card.draw(1, 3, raw)
    assert card.status(0x101, 2, 1, 8, 8) == _OK
    card.status(0x103, 8, 4, 20, 16, 0, 1)
    before = card.picture(tmp_path / "before")
    board: Any = card.machine.board
    commands = board.peripheral.children["g"].device._commands
    out = bytearray()
    put_object(out, commands)
    commands.reset()
    assert card.picture(tmp_path / "dark") != before
    with card.machine.control:
        take_object(StateSource(bytes(out)), commands)
    assert card.picture(tmp_path / "after") == before
    # The resources are what they were: there, and backed or not.
    assert card.status(0x101, 2, 1, 8, 8) == _BAD_RESOURCE
    assert card.status(0x105, 0, 0, _WIDTH, _HEIGHT, 0, 0, 1, 0) == _OK
    assert card.status(0x105, 0, 0, 8, 8, 0, 0, 2, 0) == _UNSPECIFIED
    for position in range(0, len(out), 997):
        broken = bytearray(out)
        broken[position] ^= 0xFF
        try:
            with card.machine.control:
                take_object(StateSource(bytes(broken)), commands)
        except QobraError:
            pass
    assert card.status(0x100) == 0x1101
