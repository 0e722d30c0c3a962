"""Graphics cards beside QEMU's: registers and memory written at random read the same, and make the same picture.

Cursors are left out, whose phase depends on what was drawn before, and so are planes of Bochs' modes.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from qobra.testing import vga
from qobra.testing.guest import PciFunction
from qobra.testing.system import SystemProgram, peer_available, program_command
from qobra.testing.vga import Mode, VgaDriver

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_SLOT = 5
_MODES = (vga.TEXT, vga.PLANES, vga.BYTES, vga.PAIRS)
_CRTC = (0x01, 0x07, 0x09, 0x0B, 0x0C, 0x0D, 0x12, 0x13, 0x17, 0x18)


class Both:
    """A card in our program and in QEMU's; what is done is done to both, what is seen is seen of both."""

    def __init__(self, directory: Path, device: str) -> None:
        self._path = directory / "picture"
        arguments = ("-machine", "pc", "-m", "16", "-device", f"{device},addr={_SLOT},id=v")
        self.programs = [SystemProgram(directory, "x86_64", *arguments, peer=peer) for peer in (False, True)]
        self.functions = [PciFunction(program.guest, _SLOT << 3) for program in self.programs]
        for function in self.functions:
            function.enable()
        self.bars = self.functions[0].bars
        self.cards = [VgaDriver(program.guest) for program in self.programs]

    def close(self) -> None:
        for program in self.programs:
            program.__exit__()

    def read(self, address: int, length: int) -> list[bytes]:
        return [program.guest.read(address, length) for program in self.programs]

    def write(self, address: int, data: bytes) -> None:
        for program in self.programs:
            program.guest.write(address, data)

    def picture(self) -> list[bytes]:
        found = []
        for program in self.programs:
            assert program.qmp("screendump", {"filename": str(self._path), "device": "v"}) == {}
            found.append(self._path.read_bytes())
        return found

    def whole_picture(self) -> list[bytes]:
        """The same, after it was dark: QEMU does not draw anew what other registers have changed."""
        for shown in (False, True):
            for card in self.cards:
                card.show(shown)
            found = self.picture()
        return found


@pytest.fixture
def both(tmp_path: Path, request: Any) -> Iterator[Both]:
    made = Both(tmp_path, getattr(request, "param", "VGA"))
    yield made
    made.close()


def _fill(both: Both, rnd: random.Random) -> None:
    colours = bytes(rnd.getrandbits(6) for _ in range(768))
    for card in both.cards:
        card.colours(colours)
    both.write(both.bars[0], rnd.randbytes(1 << 19))


def _change(card: VgaDriver, rnd: random.Random) -> None:
    kind = rnd.random()
    if kind < 0.2:
        card.seq(*rnd.choice(((1, rnd.choice((0, 1, 8, 9))), (3, rnd.getrandbits(6)), (4, rnd.getrandbits(4)))))
    elif kind < 0.3:
        card.gfx(5, rnd.getrandbits(7))
    elif kind < 0.75:
        number = rnd.choice(_CRTC)
        # Widths of whole words, which QEMU's pictures need.
        card.crtc(number, rnd.choice((0x27, 0x4F, 0x63)) if number == 1 else rnd.getrandbits(8))
    else:
        card.attr(rnd.choice((*range(16), 0x10, 0x12, 0x13, 0x14)), rnd.getrandbits(8))


@pytest.mark.parametrize("both", ["VGA", "VGA,vgamem_mb=1", "virtio-vga"], indirect=True)
@pytest.mark.parametrize("mode", _MODES)
def test_pictures_of_modes(both: Both, mode: Mode) -> None:
    rnd = random.Random(repr(mode))
    _fill(both, rnd)
    for _ in range(8):
        seed = rnd.getrandbits(32)
        for card in both.cards:
            card.set_mode(mode)
            own = random.Random(seed)
            for _ in range(own.randrange(6)):
                _change(card, own)
        pictures = both.whole_picture()
        assert pictures[0] == pictures[1], seed


@pytest.mark.parametrize("depth", [8, 15, 16, 24, 32])
def test_pictures_of_bochs(both: Both, depth: int) -> None:
    rnd = random.Random(depth)
    _fill(both, rnd)
    for order in (0x1E1E1E1E, 0xBEBEBEBE):
        for _ in range(3):
            width, height = rnd.randrange(1, 100) * 16, rnd.randrange(1, 900)
            more = [(vga.VIRTUAL_WIDTH, rnd.randrange(2000)), (vga.X, rnd.randrange(300)), (vga.Y, rnd.randrange(300))]
            for card, program in zip(both.cards, both.programs, strict=True):
                card.set_bochs_mode(width, height, depth)
                for number, value in more:
                    card.bochs(number, value)
                program.guest.store(both.bars[2] + 0x604, 4, order)
            pictures = both.picture()
            assert pictures[0] == pictures[1], (width, height, more, order)


@pytest.mark.parametrize("seed", range(3))
def test_registers_and_the_window(both: Both, seed: int) -> None:
    rnd = random.Random(seed)
    _fill(both, rnd)
    ports = (0x3B4, 0x3B5, 0x3BA, *range(0x3C0, 0x3D0), 0x3D4, 0x3D5, 0x3DA)
    places = (0xA0000, 0xA0040, 0xAFFF8, 0xB0000, 0xB8000, 0xBFFF0)
    for step in range(600):
        kind = rnd.random()
        width, value = rnd.choice((1, 2, 4)), rnd.choice((rnd.getrandbits(32), rnd.getrandbits(8), rnd.getrandbits(4)))
        port, place, offset = rnd.choice(ports), rnd.choice(places) + rnd.randrange(8), rnd.randrange(0x400, 0x608)
        depth = rnd.choice((8, 16, 32))
        number = rnd.randrange(12)
        seen = []
        for card, program in zip(both.cards, both.programs, strict=True):
            guest = program.guest
            if kind < 0.2:
                guest.port_out(port, 1, value & 0xFF)
            elif kind < 0.3:
                seen.append(guest.port_in(port, 1))
            elif kind < 0.4:
                card.seq(2 + 2 * (value & 1), value >> 4 & 15)
            elif kind < 0.5:
                card.gfx(value & 7 or 5, value >> 8 & 0xFF)
            elif kind < 0.6:
                seen.append(card.bochs(number, depth if number == vga.DEPTH else value & 0x7FFF))
            elif kind < 0.7:
                guest.store(place, width, value & (1 << 8 * width) - 1)
            elif kind < 0.85:
                seen.append(guest.load(place, width))
            elif kind < 0.95:
                seen.append(guest.load(both.bars[2] + offset, width))
            elif not 0x506 <= offset < 0x508:
                guest.store(both.bars[2] + offset, width, value & (1 << 8 * width) - 1)
        assert len(seen) < 2 or seen[0] == seen[1], (step, kind)
        if step % 100 == 99:
            own, theirs = both.read(both.bars[0], 1 << 19)
            assert own == theirs, step


@pytest.mark.parametrize(
    "options",
    [
        "",
        ",xres=3840,yres=2160",
        ",xres=640,yres=480,refresh_rate=60000",
        ",xmax=1024,ymax=768",
        ",xmax=1921",
        ",xres=10000,yres=8000,xmax=1860",
        ",edid=off,qemu-extended-regs=off",
    ],
)
def test_what_the_monitor_says(tmp_path: Path, options: str) -> None:
    both = Both(tmp_path, f"VGA{options}")
    try:
        own, theirs = both.read(both.bars[2], 0x1000)
        assert own == theirs
    finally:
        both.close()


@pytest.mark.parametrize("both", ["bochs-display"], indirect=True)
def test_bochs_display(both: Both) -> None:
    rnd = random.Random(1)
    both.write(both.bars[0], rnd.randbytes(1 << 19))
    for _ in range(12):
        values = {
            vga.WIDTH: rnd.randrange(1, 60) * 16,
            vga.HEIGHT: rnd.randrange(50, 600),
            vga.DEPTH: rnd.choice((15, 16, 24, 32, 32)),
            vga.ENABLE: rnd.choice((0, 1, 0x41, 0xC1)),
            vga.VIRTUAL_WIDTH: rnd.randrange(2000),
            vga.X: rnd.randrange(300),
            vga.Y: rnd.choice((0, 5, 60000)),
        }
        for program in both.programs:
            for number, value in values.items():
                program.guest.store(both.bars[2] + 0x500 + 2 * number, 2, value)
        own, theirs = both.picture()
        assert own == theirs or values[vga.ENABLE] & 1 == 0, values
        assert len({bytes(each) for each in both.read(both.bars[2], 0x1000)}) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-machine", "q35"),
        ("-vga", "virtio"),
        ("-vga", "none"),
        ("-nodefaults", "-vga", "std"),
        ("-device", "VGA,addr=9"),
        ("-device", "isa-vga"),
        ("-device", "secondary-vga"),
        ("-device", "virtio-vga"),
        ("-device", "bochs-display"),
        ("-device", "ramfb"),
        ("-nographic", "-serial", "none", "-monitor", "none"),
    ],
)
def test_which_cards_there_are(arguments: tuple[str, ...]) -> None:
    assert _cards(program_command("x86_64", peer=False), arguments) == _cards(["qemu-system-x86_64"], arguments)


def _cards(command: list[str], arguments: tuple[str, ...]) -> list[Any]:
    """The graphics cards that there are, by what a monitor on standard input says."""
    requests = [{"execute": name} for name in ("qmp_capabilities", "query-pci", "query-display-options", "quit")]
    line = [*command, "-S", "-display", "none", "-net", "none", *arguments, "-qmp", "stdio"]
    text = "".join(map(json.dumps, requests))
    done = subprocess.run(line, input=text, capture_output=True, text=True, timeout=60, check=True)
    answers = [json.loads(each)["return"] for each in done.stdout.splitlines() if each.startswith('{"return"')]
    functions = [each for bus in answers[1] for each in bus["devices"] if each["class_info"]["class"] >> 8 == 3]
    return [functions, answers[2]]


def test_ramfb(tmp_path: Path) -> None:
    pictures = []
    rnd = random.Random(1)
    memory = rnd.randbytes(1 << 18)
    for peer in (False, True):
        with SystemProgram(tmp_path, "x86_64", "-machine", "pc", "-device", "ramfb,id=v", peer=peer) as program:
            guest, found = program.guest, []
            guest.write(0x100000, memory)
            for code, *numbers in (
                (b"XR24", 0x100000, 0, 64, 48, 0),
                (b"RG24", 0x100001, 0, 64, 48, 300),
                (b"XR24", 0x100000, 0, 64, 12, 0),
                (b"XB24", 0x100000, 0, 32, 32, 0),
                (b"AR24", 0x110000, 0, 100, 50, 40),
                (b"XR24", 0x7FFF000, 0, 64, 48, 0),
            ):
                address, flags, width, height, step = numbers
                guest.write(0x2000, pack(">Q4sIIII", address, code[::-1], flags, width, height, step))
                guest.write(0x1000, pack(">IIQ", _key(guest, "etc/ramfb") << 16 | 8 | 16, 28, 0x2000))
                guest.port_out(0x514, 4, 0)
                guest.port_out(0x518, 4, int.from_bytes(pack(">I", 0x1000), "little"))
                assert program.qmp("screendump", {"filename": str(tmp_path / "p")}) == {}
                found.append((guest.read(0x1000, 4), (tmp_path / "p").read_bytes()))
        pictures.append(found)
    assert pictures[0] == pictures[1]


def _key(guest: Any, name: str) -> int:
    def item(key: int, length: int) -> bytes:
        guest.port_out(0x510, 2, key)
        return bytes(guest.port_in(0x511, 1) for _ in range(length))

    directory = item(0x19, 4 + 64 * int.from_bytes(item(0x19, 4), "big"))
    entries = (directory[at : at + 64] for at in range(4, len(directory), 64))
    return next(int.from_bytes(each[4:6], "big") for each in entries if each[8:].rstrip(b"\0") == name.encode())
