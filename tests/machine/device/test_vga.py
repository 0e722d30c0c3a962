"""VGA cards from the guest's side: registers, memory and the pictures that screens show."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from struct import pack

import pytest

from qobra.display.edid import edid
from qobra.machine.vmstate import StateSource, put_object, take_object
from qobra.testing import vga
from qobra.testing.vga import PLACE, Card, Pixel

_MEMORY, _REGISTERS = PLACE, PLACE + 0x1000000


@pytest.fixture
def card() -> Iterator[Card]:
    made = Card()
    yield made
    made.machine.close()


def _wide(channel: int) -> int:
    """A channel of six bits as eight."""
    return channel << 2 | (3 if channel & 1 else 0)


def test_ports_by_the_kind_of_monitor(card: Card) -> None:
    guest = card.guest
    guest.port_out(0x3B4, 1, 0x0E)
    assert (guest.port_in(0x3B4, 1), guest.port_in(0x3D4, 1)) == (0x0E, 0xFF)
    guest.port_out(0x3C2, 1, 0x67)
    assert (guest.port_in(0x3B4, 1), guest.port_in(0x3D4, 1), guest.port_in(0x3CC, 1)) == (0xFF, 0x0E, 0x67)
    # Who waits for a retrace, or for its end, goes on.
    assert [guest.port_in(0x3DA, 1) & 9 for _ in range(4)] == [9, 0, 9, 0]


def test_registers_keep_the_bits_that_they_have(card: Card) -> None:
    guest, driver = card.guest, card.vga
    guest.port_out(0x3C2, 1, 1)
    driver.seq(1, 0xFF)
    driver.gfx(5, 0xFF)
    driver.gfx(12, 0xFF)
    found = [guest.port_in(0x3C5, 1), guest.port_in(0x3CF, 1)]
    driver.gfx(5, 0xFF)
    assert [*found, guest.port_in(0x3CF, 1)] == [0x3D, 0, 0x7B]
    driver.attr(0x10, 0xFF)
    guest.port_in(0x3DA, 1)
    guest.port_out(0x3C0, 1, 0x10)
    assert guest.port_in(0x3C1, 1) == 0xEF
    assert guest.port_in(0x3C0, 1) == 0  # data are due
    guest.port_in(0x3DA, 1)
    assert guest.port_in(0x3C0, 1) == 0x10


def test_the_first_registers_of_the_crt_controller_can_be_protected(card: Card) -> None:
    guest, driver = card.guest, card.vga
    guest.port_out(0x3C2, 1, 1)
    for number, value in ((1, 0x4F), (7, 0x0F), (0x11, 0x80), (1, 0), (7, 0xFF), (0x0C, 0x12)):
        driver.crtc(number, value)
    found = []
    for number in (1, 7, 0x0C):
        guest.port_out(0x3D4, 1, number)
        found.append(guest.port_in(0x3D5, 1))
    assert found == [0x4F, 0x1F, 0x12]


def test_colours_change_as_a_whole(card: Card) -> None:
    guest = card.guest
    card.vga.colours(bytes((1, 2, 3, 4, 5)), 255)
    guest.port_out(0x3C7, 1, 255)
    assert guest.port_in(0x3C7, 1) == 3
    assert [guest.port_in(0x3C9, 1) for _ in range(6)] == [1, 2, 3, 0, 0, 0]
    card.vga.colours(bytes((4, 5, 6)))
    guest.port_out(0x3C7, 1, 0)
    assert [guest.port_in(0x3C9, 1) for _ in range(3)] == [4, 5, 6]


def test_planes_behind_the_window(card: Card) -> None:
    guest, driver = card.guest, card.vga
    driver.set_mode(vga.PLANES)

    def cell(number: int) -> bytes:
        return guest.read(_MEMORY + 4 * number, 4)

    driver.seq(2, 0b1010)
    guest.store(0xA0000, 1, 0x5A)
    assert cell(0) == b"\0\x5a\0\x5a"
    driver.seq(2, 15)
    driver.gfx(5, 2)  # the value is a colour
    driver.gfx(8, 0x0F)
    guest.load(0xA0000, 1)
    guest.store(0xA0000, 1, 0b0110)
    assert cell(0) == bytes((0x00, 0x5F, 0x0F, 0x50))
    driver.gfx(5, 1)  # the latches
    guest.load(0xA0000, 1)
    guest.store(0xA0010, 1, 0)
    assert cell(16) == cell(0)
    driver.gfx(5, 0)
    driver.gfx(8, 0xFF)
    driver.gfx(0, 0b0001)
    driver.gfx(1, 0b0011)  # planes 0 and 1 get what was set, the others the value, turned and combined
    driver.gfx(3, 0x18 | 4)
    guest.load(0xA0000, 1)
    guest.store(0xA0001, 1, 0x21)
    assert cell(1) == bytes((0xFF, 0x5F, 0x0F ^ 0x12, 0x50 ^ 0x12))
    driver.gfx(4, 1)
    assert guest.load(0xA0000, 1) == 0x5F
    driver.gfx(5, 8)  # where all planes that count have the colour
    driver.gfx(2, 0b0010)
    driver.gfx(7, 0b0011)
    assert guest.load(0xA0000, 1) == 0x5F
    driver.gfx(6, 0x0C | 1)  # at 0xb8000 now
    assert (guest.load(0xA0000, 1), guest.load(0xB8000, 1)) == (0xFF, 0x5F)


def test_the_window_shows_a_bank(card: Card) -> None:
    guest, driver = card.guest, card.vga
    driver.set_bochs_mode(640, 480, 8)
    driver.bochs(vga.BANK, 3)
    guest.store(0xA0010, 4, 0x11223344)
    assert guest.load(_MEMORY + 0x30010, 4) == 0x11223344
    assert guest.load(0xB0000, 4) == 0xFFFFFFFF
    driver.bochs(vga.ENABLE, 0)
    driver.set_mode(vga.BYTES)
    assert guest.load(0xA0010, 4) == guest.load(_MEMORY + 0x10, 4)


def test_bochs_registers(card: Card) -> None:
    driver = card.vga
    assert driver.bochs(0) == 0xB0C5
    assert (driver.bochs(0, 0xB0C2), driver.bochs(0, 0xB0C6)) == (0xB0C2, 0xB0C2)
    assert driver.bochs(vga.MEMORY) == 256
    driver.bochs(vga.ENABLE, 2)
    assert [driver.bochs(number) for number in (vga.WIDTH, vga.HEIGHT, vga.DEPTH)] == [16000, 12000, 32]
    card.guest.write(_MEMORY, b"\xff" * 4096)
    driver.set_bochs_mode(643, 481, 17, enable=1)
    found = [driver.bochs(number) for number in (vga.WIDTH, vga.HEIGHT, vga.DEPTH, vga.VIRTUAL_WIDTH)]
    assert found == [640, 481, 8, 640]
    assert card.guest.read(_MEMORY, 4096) == bytes(4096)
    assert driver.bochs(vga.VIRTUAL_HEIGHT) == (16 << 20) // 640
    assert (driver.bochs(vga.Y, 60000), driver.bochs(vga.DEPTH, 32), driver.bochs(vga.Y)) == (12000, 32, 0)
    assert driver.bochs(vga.Y, 100) == 100
    assert card.guest.port_in(0x1CF, 1) == 0xFF  # 16 bits at once, or nothing
    card.guest.port_out(0x1CE, 4, vga.DEPTH)
    assert card.guest.port_in(0x1CE, 2) == vga.Y


def test_registers_in_memory(card: Card) -> None:
    guest = card.guest
    assert guest.read(_REGISTERS, 256) == edid(1280, 800)[:256]
    guest.store(_REGISTERS + 0x502, 4, 600 << 16 | 800)
    assert (card.vga.bochs(vga.WIDTH), card.vga.bochs(vga.HEIGHT)) == (800, 600)
    guest.store(_REGISTERS + 0x404, 2, 0x0F02)
    assert guest.port_in(0x3C5, 1) == 0x0F
    assert (guest.load(_REGISTERS + 0x600, 4), guest.load(_REGISTERS + 0x604, 4)) == (8, 0x1E1E1E1E)
    for value, kept in ((0xBEBEBEBE, 0xBEBEBEBE), (1, 0xBEBEBEBE), (0x1E1E1E1E, 0x1E1E1E1E)):
        guest.store(_REGISTERS + 0x604, 4, value)
        assert guest.load(_REGISTERS + 0x604, 4) == kept
    assert guest.load(_REGISTERS + 0x608, 4) == 0xFFFFFFFF


# -- pictures


def _write_text(card: Card, text: bytes, attribute: int, at: int = 0) -> None:
    for number, character in enumerate(text):
        card.guest.write(_MEMORY + 4 * (at + number), bytes((character, attribute)))


def _glyph(card: Card, character: int, lines: bytes, font: int = 0) -> None:
    for number, dots in enumerate(lines):
        card.guest.write(_MEMORY + 4 * (0x2000 * font + 32 * character + number) + 2, bytes((dots,)))


@pytest.fixture
def text(card: Card) -> Card:
    """A card in text mode: colour N has N as its red channel."""
    card.vga.colours(b"".join(bytes((number, 0, 0)) for number in range(64)))
    card.vga.set_mode(vga.TEXT)
    for number in range(16):
        card.vga.attr(number, number)
    return card


def test_text_with_the_guests_font(text: Card, tmp_path: Path) -> None:
    _glyph(text, 0x41, b"\x81\x00\xff")
    _glyph(text, 0xC4, b"\x01")
    _write_text(text, b"A\xc4", 0x2F, at=1)
    width, height, pixel = text.picture(tmp_path)
    assert (width, height) == (720, 400)
    ink, paper, none = (_wide(15), 0, 0), (_wide(2), 0, 0), (0, 0, 0)
    assert [pixel(9 + x, 0) for x in range(9)] == [ink, *[paper] * 6, ink, paper]
    assert [pixel(9 + x, 1) for x in range(9)] == [paper] * 9
    assert [pixel(9 + x, 2) for x in range(9)] == [ink] * 8 + [paper]
    assert [pixel(18 + x, 0) for x in range(9)] == [paper] * 7 + [ink] * 2  # lines join
    assert pixel(0, 0) == pixel(27, 0) == none
    text.vga.seq(1, 1)
    assert text.picture(tmp_path)[0] == 640
    text.vga.seq(1, 8)
    width, _height, pixel = text.picture(tmp_path)
    assert width == 1280
    assert [pixel(16 + x, 0) for x in range(4)] == [ink, ink, paper, paper]


def test_a_second_font(text: Card, tmp_path: Path) -> None:
    _glyph(text, 0x41, b"\xf0")
    _glyph(text, 0x41, b"\x0f", font=2)
    _write_text(text, b"A", 0x07)
    _write_text(text, b"A", 0x0F, at=1)
    text.vga.seq(3, 0x04)  # bit 3 of the attribute chooses the font at 0x4000
    _width, _height, pixel = text.picture(tmp_path)
    assert [pixel(x, 0)[0] for x in (0, 4)] == [_wide(7), 0]
    assert [pixel(9 + x, 0)[0] for x in (0, 4)] == [0, _wide(15)]


def test_the_cursor_blinks(text: Card, tmp_path: Path) -> None:
    _write_text(text, b"   ", 0x07)
    text.vga.crtc(0x0A, 0x0E)
    text.vga.crtc(0x0B, 0x0F)
    text.vga.crtc(0x0F, 2)

    def shown() -> list[int]:
        pixel = text.picture(tmp_path)[2]
        return [pixel(18, y)[0] for y in (13, 14, 15)]

    assert shown() == [0, _wide(7), _wide(7)]
    assert text.picture(tmp_path)[2](17, 15) == text.picture(tmp_path)[2](27, 15) == (0, 0, 0)
    text.guest.step(300_000_000)
    assert shown() == [0, 0, 0]
    text.guest.step(200_000_000)
    assert shown() == [0, _wide(7), _wide(7)]
    text.vga.crtc(0x0A, 0x2E)
    assert shown() == [0, 0, 0]


def test_a_split_screen(text: Card, tmp_path: Path) -> None:
    for at, attribute in ((0, 0x10), (1000, 0x20), (1000 + 80, 0x30)):
        _write_text(text, b" " * 80, attribute, at)
    text.vga.crtc(0x0C, 1000 >> 8)
    text.vga.crtc(0x0D, 1000 & 0xFF)
    text.vga.crtc(7, 0x0F)
    text.vga.crtc(9, 0x0F)
    text.vga.crtc(0x18, 20)
    _width, _height, pixel = text.picture(tmp_path)
    assert [pixel(0, y)[0] for y in (0, 16, 32)] == [_wide(2), _wide(3), _wide(1)]


def test_planes(card: Card, tmp_path: Path) -> None:
    card.vga.colours(b"".join(bytes((number, 63 - number, 0)) for number in range(64)))
    card.vga.set_mode(vga.PLANES)
    card.guest.write(_MEMORY + 320, bytes((0x80, 0x40, 0xC0, 0x01)))
    width, height, pixel = card.picture(tmp_path)
    assert (width, height) == (640, 480)
    values = [0b0101, 0b0110, 0, 0, 0, 0, 0, 0b1000]
    assert [pixel(x, 1) for x in range(8)] == [(_wide(v), _wide(63 - v), 0) for v in values]
    card.vga.attr(0x12, 0b0100)
    assert [card.picture(tmp_path)[2](x, 1)[0] for x in range(8)] == [_wide(v & 4) for v in values]


def test_bytes_are_pixels_twice(card: Card, tmp_path: Path) -> None:
    card.vga.colours(bytes(range(64)) * 12)
    card.vga.set_mode(vga.BYTES)
    card.guest.write(0xA0000, bytes((1, 2, 3)))
    card.guest.write(0xA0000 + 320, bytes((4,)))
    width, height, pixel = card.picture(tmp_path)
    assert (width, height) == (640, 400)
    assert [pixel(x, y)[0] for x, y in ((0, 0), (1, 1), (2, 0), (4, 1), (0, 2), (1, 3))] == [
        _wide(3 * number) for number in (1, 1, 2, 3, 4, 4)
    ]


def test_pairs_of_bits_lie_in_two_halves(card: Card, tmp_path: Path) -> None:
    card.vga.colours(b"".join(bytes((number, 0, 0)) for number in range(64)))
    card.vga.set_mode(vga.PAIRS)
    card.guest.write(0xB8000, bytes((0b00011011,)))
    card.guest.write(0xBA000, bytes((0b11100100,)))
    width, height, pixel = card.picture(tmp_path)
    assert (width, height) == (640, 400)
    colours = [_wide(number) for number in (0, 0x13, 0x15, 0x17)]
    assert [pixel(2 * x, 0)[0] for x in range(4)] == colours
    assert [pixel(2 * x, 2)[0] for x in range(4)] == colours[::-1]


@pytest.mark.parametrize(
    ("depth", "memory", "little", "big"),
    [
        (15, pack("<H", 0b0_10110_01111_11000), (0xB0, 0x78, 0xC0), None),
        (16, pack("<H", 0b00101_011111_11001), (0x29, 0x7D, 0xCE), None),
        (24, b"\1\2\3", (3, 2, 1), (1, 2, 3)),
        (32, b"\1\2\3\4", (3, 2, 1), (2, 3, 4)),
    ],
)
def test_direct_colours(
    card: Card, tmp_path: Path, depth: int, memory: bytes, little: Pixel, big: Pixel | None
) -> None:
    card.vga.set_bochs_mode(640, 480, depth)
    card.vga.bochs(vga.VIRTUAL_WIDTH, 800)
    card.vga.bochs(vga.X, 4)
    card.vga.bochs(vga.Y, 2)
    card.guest.write(_MEMORY + (5 * 800 + 4 + 7) * len(memory), memory)
    width, height, pixel = card.picture(tmp_path)
    assert (width, height, pixel(7, 3), pixel(8, 3)) == (640, 480, little, (0, 0, 0))
    card.guest.store(_REGISTERS + 0x604, 4, 0xBEBEBEBE)
    turned = big
    if turned is None:
        card.guest.write(_MEMORY + (5 * 800 + 4 + 7) * len(memory), memory[::-1])
        turned = tuple(channel & (0xFC if i == 1 and depth == 16 else 0xF8) for i, channel in enumerate(little))  # type: ignore[assignment]
    assert card.picture(tmp_path)[2](7, 3) == turned


def test_a_palette_of_eight_bits(card: Card, tmp_path: Path) -> None:
    card.vga.colours(bytes((0x81, 0x42, 0x23)), 9)
    card.vga.set_bochs_mode(640, 480, 8)
    card.guest.write(_MEMORY, b"\x09")
    assert card.picture(tmp_path)[2](0, 0) == (_wide(1), _wide(2), _wide(0x23))
    card.vga.bochs(vga.ENABLE, 0xA1)
    assert card.picture(tmp_path)[2](0, 0) == (0x81, 0x42, 0x23)


def test_viewers_hear_of_what_changed_alone(card: Card) -> None:
    (console,) = card.board.consoles
    heard: list[tuple[int, ...]] = []
    console.on_updated.append(lambda *area: heard.append(area))
    console.on_resized.append(lambda: heard.append((console.surface.width, console.surface.height)))

    def look() -> list[tuple[int, ...]]:
        heard.clear()
        with card.machine.control:
            console.bring_up_to_date()
        return list(heard)

    assert look() == []  # the card is dark
    card.vga.set_bochs_mode(800, 600, 32)
    assert look() == [(800, 600)]
    assert look() == []
    card.guest.write(_MEMORY + 10 * 3200, b"x")
    card.guest.write(_MEMORY + 17 * 3200, b"x")
    assert look() == [(0, 10, 800, 8)]
    card.vga.bochs(vga.ENABLE, 0)
    card.vga.set_mode(vga.TEXT)
    assert look() == [(720, 400)]
    _write_text(card, b"x", 0x70, at=85)
    assert look() == [(0, 16, 720, 16)]
    card.vga.show(False)
    assert look() == [(720, 400)]
    assert not any(console.surface.data)


def test_state(card: Card, tmp_path: Path) -> None:
    rnd = random.Random(1)
    card.vga.colours(rnd.randbytes(768))
    card.vga.set_mode(vga.BYTES)
    card.guest.write(_MEMORY, rnd.randbytes(64000))
    card.vga.bochs(vga.BANK, 1)
    saved = bytearray()
    put_object(saved, card.device)
    memory = card.guest.read(_MEMORY, 1 << 18)
    _width, _height, before = card.picture(tmp_path)
    other = Card()
    other.guest.write(_MEMORY, memory)
    source = StateSource(bytes(saved))
    with other.machine.control:
        take_object(source, other.device)
        for each in source.loaded:
            getattr(each, "state_loaded", lambda: None)()
    _width, _height, after = other.picture(tmp_path)
    assert all(before(x, y) == after(x, y) for x in range(0, 640, 7) for y in range(0, 400, 9))
    assert (
        other.guest.load(0xA0020, 4) == card.guest.load(_MEMORY + 0x10020, 4) == other.guest.load(_MEMORY + 0x10020, 4)
    )
    other.machine.close()


def test_state_of_a_liar_fits_in_memory(card: Card) -> None:
    card.vga.set_bochs_mode(640, 480, 32)
    card.device.core.dispi.registers[:] = [0xFFFF] * 11
    saved = bytearray()
    put_object(saved, card.device)
    other = Card()
    source = StateSource(bytes(saved))
    with other.machine.control:
        take_object(source, other.device)
        for each in source.loaded:
            getattr(each, "state_loaded", lambda: None)()
        next(iter(other.board.consoles)).bring_up_to_date()
    assert other.vga.bochs(vga.BANK) == 255
    other.machine.close()
