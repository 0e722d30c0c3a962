"""Text consoles as character devices: pictures, keys, and their place among the consoles."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.chardev.options import parse, parse_short
from qobra.display import font
from qobra.display.vnc.keysyms import Typing
from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.testing.waiting import wait_until


class Port:
    """A front end that takes so much."""

    hotswap = True

    def __init__(self, room: int = 100) -> None:
        self.room = room
        self.data = b""

    def receive(self, data: bytes) -> None:
        self.data += data
        self.room -= len(data)

    def event(self, name: str) -> None:
        pass

    def can_receive(self) -> int:
        return self.room


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = simple_machine("x86_64", "none", memory=0)
    yield machine
    machine.close()


def _make(machine: Machine, **options: int) -> Any:
    return machine.chardevs.create("c", {"type": "vc", "data": options})


def _picture(machine: Machine, path: Path) -> tuple[tuple[int, int], bytes]:
    dispatch.call(machine, "screendump", {"filename": str(path)})
    kind, size, _most, pixels = path.read_bytes().split(b"\n", 3)
    assert kind == b"P6"
    width, height = map(int, size.split())
    return (width, height), pixels


def _cell(pixels: bytes, width: int, x: int, y: int) -> list[bytes]:
    """The pixels of a character, line by line."""
    starts = (3 * ((16 * y + line) * width + 8 * x) for line in range(16))
    return [pixels[start : start + 24] for start in starts]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (640, 384)),
        ({"cols": 100, "rows": 30}, (800, 480)),
        ({"width": 500, "height": 300}, (500, 300)),
        ({"width": 500, "rows": 3}, (500, 48)),
        ({"width": 5, "height": 3}, (5, 3)),
        ({"cols": 100}, (640, 384)),
    ],
)
def test_size(machine: Machine, tmp_path: Path, options: dict[str, int], size: tuple[int, int]) -> None:
    _make(machine, **options).write(b"x" * 5000)
    found, pixels = _picture(machine, tmp_path / "p")
    assert found == size
    assert len(pixels) == 3 * size[0] * size[1]


@pytest.mark.parametrize("options", [{"width": -5}, {"width": 4097, "height": 16}, {"cols": 1 << 62, "rows": 1}])
def test_no_size(machine: Machine, options: dict[str, int]) -> None:
    with pytest.raises(QobraError, match="at most 4096 x 4096"):
        _make(machine, **options)
    assert not list(machine.board.consoles)  # type: ignore[union-attr]


def test_what_is_written_is_seen(machine: Machine, tmp_path: Path) -> None:
    device = _make(machine)
    device.write(b"\x1b[1;32mA\x1b[0;7mA")
    (width, _), pixels = _picture(machine, tmp_path / "p")
    shape = [line[ord("A")] for line in font.lines()]
    for x, ink, paper in ((0, b"\0\xff\0", b"\0\0\0"), (1, b"\0\0\0", b"\xaa\xaa\xaa")):
        drawn = [
            paper + b"".join(ink if dots >> 4 - bit & 1 else paper for bit in range(5)) + 2 * paper for dots in shape
        ]
        assert _cell(pixels, width, x, 1) == drawn
    assert _cell(pixels, width, 2, 1) == [b"\xaa" * 24] * 16  # the cursor
    assert pixels[:3] == b"\0\0\xaa"  # the title, whose ground is blue
    device.write(b"\r\nx")
    assert _cell(_picture(machine, tmp_path / "p")[1], width, 2, 1) == [bytes(24)] * 16


def test_keys_come_in_as_the_front_end_takes_them(machine: Machine) -> None:
    device = _make(machine)
    typed = machine.board.consoles.first().typed  # type: ignore[union-attr]
    assert typed is not None
    typed(b"ab")
    typed(b"x" * 300)  # more than waits
    port = Port(room=1)
    device.attach(port)
    wait_until(lambda: port.data == b"a")
    device.write(b"\x1b[6n")
    port.room = 100
    device.accept_input()
    wait_until(lambda: port.data == b"ab\x1b[2;1R")
    dispatch.call(machine, "chardev-add", {"id": "d", "backend": {"type": "vc", "data": {}}})
    device.detach()
    machine.chardevs.remove("c")
    wait_until(lambda: not any(each.name == "vc c" for each in threading.enumerate()))
    assert [each["label"] for each in dispatch.call(machine, "query-chardev", {})] == ["d"]


def test_consoles_of_devices_come_first(machine: Machine) -> None:
    _make(machine)
    consoles = machine.board.consoles  # type: ignore[union-attr]
    text = consoles.first()
    assert text.typed is not None
    assert dispatch.call(machine, "qom-get", {"path": "/backend/console[0]", "property": "device"}) == ""
    drawn = consoles.add(machine.board)
    assert list(consoles) == [drawn, text]
    assert consoles.active() is drawn
    consoles.select(1)
    assert consoles.active() is text
    consoles.select(2)
    assert consoles.active() is text
    machine.chardevs.remove("c")
    assert consoles.active() is drawn
    consoles.remove(machine.board)
    assert consoles.active() is None


def test_options() -> None:
    assert parse("vc,id=v,width=10,rows=3") == ("v", {"type": "vc", "data": {"width": 10, "rows": 3}})
    assert parse_short("vc") == {"type": "vc", "data": {}}
    assert parse_short("vc:80Cx600") == {"type": "vc", "data": {"cols": 80, "height": 600}}
    for bad in ("vc:", "vc:foo", "vc:800xC", "vc:x600", "vc:1x2x3"):
        if bad != "vc:":
            with pytest.raises(QobraError):
                parse_short(bad)
    with pytest.raises(QobraError, match="Invalid parameter 'foo'"):
        parse("vc,id=v,foo=1")
    with pytest.raises(QobraError, match="Parameter 'cols' expects a number"):
        parse("vc,id=v,cols=a")


def test_without_a_board_there_is_none() -> None:
    machine = Machine()
    try:
        with pytest.raises(QobraError, match="'vc' is not a valid char driver name"):
            _make(machine)
    finally:
        machine.close()


def test_keyboard() -> None:
    keys = Typing()
    assert (keys.text(ord("A")), keys.text(0xFF0D), keys.text(0xFF52)) == (b"A", b"\r", b"\x1b[A")
    assert (keys.text(0xFFB5), keys.text(0xFFAB), keys.text(0xE9)) == (b"5", b"+", b"\xc3\xa9")
    assert (keys.text(0xFFE1), keys.text(0x1000), keys.text(0)) == (b"", b"", b"")
    assert keys.press(0xFFE3, True) is None
    assert (keys.text(ord("c")), keys.text(ord("[")), keys.text(ord(" "))) == (b"\x03", b"\x1b", b"\0")
    assert keys.press(ord("2"), True) is None
    assert keys.press(0xFFE9, True) is None
    assert (keys.press(ord("2"), True), keys.press(ord("2"), False)) == (1, None)
    keys.press(0xFFE3, False)
    assert keys.press(ord("2"), True) is None
