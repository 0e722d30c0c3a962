"""The tables of SMBIOS: what a machine's own parameters and the user's words make of them."""

from __future__ import annotations

from collections.abc import Iterator
from struct import unpack_from
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine
from qobra.machine.smbios import settings, tables


def _machine(*options: str, board: str = "pc", memory: int = 128 << 20, **properties: str) -> Any:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    made: Any = attach_board(machine, find_board("x86_64", board))
    for name, value in properties.items():
        made.set(name.replace("_", "-"), value)
    made.set_topology({"cpus": 4, "sockets": 2})
    made.set_memory(memory)
    for option in options:
        made.smbios.add(option)
    made.start()
    made.finish()
    return made


def _structures(board: Any) -> list[tuple[int, bytes, list[bytes]]]:
    """Type, formatted part and strings of each structure, as an operating system walks them."""
    data, found, at = board.fw_cfg.file(tables.TABLES), [], 0
    while at < len(data):
        end = at + data[at + 1]
        last = data.index(b"\0\0", end)
        found.append((data[at], data[at:end], data[end:last].split(b"\0") if last > end else []))
        at = last + 2
    return found


@pytest.fixture(name="board")
def _board(request: pytest.FixtureRequest) -> Iterator[Any]:
    board = _machine(*getattr(request, "param", ()))
    yield board
    board.tree.machine.close()


def test_every_pc_has_the_same_kinds(board: Any) -> None:
    kinds = [kind for kind, _part, _strings in _structures(board)]
    assert kinds == [1, 3, 4, 4, 16, 17, 19, 32, 127]


def test_the_entry_point_measures_them(board: Any) -> None:
    anchor, data = board.fw_cfg.file(tables.ANCHOR), board.fw_cfg.file(tables.TABLES)
    assert anchor[:5] == b"_SM_\0"
    assert unpack_from("<5sBHIH", anchor, 16) == (b"_DMI_", 0, len(data), 0, 9)


def test_a_64_bit_entry_point_knows_wide_counts() -> None:
    board = _machine(smbios_entry_point_type="64")
    anchor = board.fw_cfg.file(tables.ANCHOR)
    assert anchor[:5] == b"_SM3_"
    assert unpack_from("<I", anchor, 12)[0] == len(board.fw_cfg.file(tables.TABLES))
    processors = [part for kind, part, _strings in _structures(board) if kind == settings.PROCESSOR]
    assert [unpack_from("<3H", part, 0x2A) for part in processors] == [(2, 2, 2)] * 2
    board.tree.machine.close()


@pytest.mark.parametrize(
    "board",
    [("type=1,serial=a,,b,family=F", "type=1,serial=c", "type=11,value=x", "type=0,release=300.2")],
    indirect=True,
)
def test_fields_are_what_was_said_last(board: Any) -> None:
    found = {kind: (part, strings) for kind, part, strings in _structures(board)}
    assert found[1][1][3:] == [b"c", b"F"]
    assert found[11] == (b"\x0b\x05\x00\x0e\x01", [b"x"])
    assert found[0][0][0x14:0x16] == bytes((300 & 0xFF, 2))


def test_memory_is_in_modules_and_around_the_hole() -> None:
    board = _machine(board="q35", memory=20 << 30)
    found = _structures(board)
    assert [unpack_from("<H", part, 12)[0] for kind, part, _ in found if kind == 17] == [16 << 10, 4 << 10]
    ranges = [unpack_from("<II", part, 4) for kind, part, _ in found if kind == 19]
    assert ranges == [(0, (2 << 20) - 1), (4 << 20, (22 << 20) - 1)]
    board.tree.machine.close()


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("x=1", "Must specify type= or file="),
        ("type=200", "out of range!"),
        ("type=16", "Don't know how to build fields for SMBIOS type 16"),
        ("type=3,product=x", "Invalid parameter 'product'"),
        ("type=4,current-speed=99999", "SMBIOS CPU speed is too large (> 65535)"),
        ("type=41,kind=usb", "invalid parameter value: usb"),
        ("file=/", "Cannot read SMBIOS file /"),
    ],
)
def test_refusals(option: str, text: str) -> None:
    with pytest.raises(QobraError) as caught:
        settings.Settings().add(option)
    assert str(caught.value) == text


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(QobraError, match=r"^SMBIOS 2\.1 table length \d+ exceeds 65535$"):
        _machine(f"type=11,value={'a' * 66000}")
