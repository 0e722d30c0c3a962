"""The guest for people: memory into files, sums, ports, where things are mapped, what it boots from, the mouse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.qmp import hmp


@pytest.fixture
def machine() -> Iterator[Any]:
    machine = simple_machine("x86_64", "pc", memory=2 << 20)
    yield machine
    machine.close()


@pytest.mark.parametrize("command", ["pmemsave 4096 4", "memsave 4096 4"])
def test_memory_into_a_file(machine: Any, tmp_path: Path, command: str) -> None:
    machine.board.memory.write(4096, b"abcd")
    assert hmp.execute(machine, f'{command} "{tmp_path}/m"') == ""
    assert (tmp_path / "m").read_bytes() == b"abcd"


@pytest.mark.parametrize(
    ("flags", "part", "magic"), [("", " 0 4096", b"\x7fELF"), ("-p ", "", b"\x7fELF"), ("-z ", "", b"makedumpfile")]
)
def test_dumps(machine: Any, tmp_path: Path, flags: str, part: str, magic: bytes) -> None:
    assert hmp.execute(machine, f"dump-guest-memory {flags}{tmp_path}/d{part}") == ""
    assert (tmp_path / "d").read_bytes().startswith(magic)


def test_refusals_of_dumps(machine: Any, tmp_path: Path) -> None:
    text = hmp.execute(machine, f"dump-guest-memory -z -l {tmp_path}/d")
    assert text == "Error: only one of '-z|-l|-s|-w' can be set\r\n"
    assert hmp.execute(machine, f"dump-guest-memory {tmp_path}/d 0") == "Error: Parameter 'length' is missing\r\n"


def test_sums(machine: Any) -> None:
    machine.board.memory.write(4096, bytes(range(200)))
    expected = 0
    for byte in range(200):
        expected = ((expected >> 1) + ((expected & 1) << 15) + byte) & 0xFFFF
    assert hmp.execute(machine, "sum 4096 200") == f"{expected:05d}\r\n"
    assert hmp.execute(machine, "sum 0 0x1000001") == "Error: no more than 16777216 bytes are summed at a time\r\n"
    for line in ("sum -5 16", "sum 0 0x100000000"):
        assert hmp.execute(machine, line).startswith("'sum' has failed: integer is for 32-bit values\r\n")


def test_ports(machine: Any) -> None:
    assert hmp.execute(machine, "o /b 0x70 0x38") == ""
    assert hmp.execute(machine, "o /b 0x71 0x25") == ""
    assert hmp.execute(machine, "i /b 0x71") == "portb[0x0071] = 0x25\r\n"
    assert hmp.execute(machine, "i /1bx 0x71") == "portb[0x0071] = 0x25\r\n"
    assert hmp.execute(machine, "i zz").startswith("invalid char 'z' in expression\r\n")


def test_what_is_mapped(machine: Any) -> None:
    lines = hmp.execute(machine, "info mtree").splitlines()
    assert lines[0] == "address-space: memory" and "address-space: I/O" in lines
    assert "  0000000000000000-00000000001fffff (prio 0, ram): pc.ram" in lines
    shown = hmp.execute(machine, "info mtree -f").splitlines()
    assert "  0000000000100000-00000000001fffff (ram): pc.ram @0000000000100000" in shown


def test_what_to_boot_from(machine: Any) -> None:
    assert hmp.execute(machine, "boot_set n") == "boot device list now set to n\r\n"
    assert machine.board.rtc.cmos[0x3D] == 4
    for order, told in (
        ("zz", "Invalid boot device 'z'"),
        ("nn", "Boot device 'n' was given twice"),
        ("e", "Invalid boot device for PC: 'e'"),
        ("abcd", "Too many boot devices for PC"),
    ):
        assert hmp.execute(machine, f"boot_set {order}") == f"{told}\r\n"


def test_the_mouse_moves(machine: Any) -> None:
    events: list[dict[str, Any]] = []
    machine.board.input.deliver = events.extend
    assert hmp.execute(machine, "mouse_move 3 -4 1") == ""
    assert hmp.execute(machine, "mouse_button 5") == ""
    assert [event["data"] for event in events[:2]] == [{"axis": "x", "value": 3}, {"axis": "y", "value": -4}]
    assert [event["data"]["button"] for event in events[2:4]] == ["wheel-up", "wheel-up"]
    assert [event["data"]["down"] for event in events[4:]] == [True, False, True]
    del events[:]
    assert hmp.execute(machine, "mouse_move a b") == ""
    assert [event["data"]["value"] for event in events] == [0, 0]
