"""ERST: how error records are kept (ACPI 6.4, section 18.5.1), of each action the instructions that carry it out.

An action is a write of its number to the register of actions, after a write of its argument to the other one, or
before its result is read from there.
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

from qobra.machine.board import find_devices
from qobra.machine.device import acpi_erst as erst

if TYPE_CHECKING:
    from qobra.machine.acpi_tables.loader import Tables
    from qobra.machine.pc import PcBoard

_READ, _READ_AND_COMPARE, _WRITE, _WRITE_NUMBER = range(4)
_DWORD, _QWORD = 3, 4
"""Widths of accesses, as generic addresses have them."""
_HEADER_LENGTH = 48


def add_table(tables: Tables, board: PcBoard) -> list[int]:
    """The table, if the board has the device; where it lies."""
    device = next(find_devices(board, erst.AcpiErst.type_name), None)
    if device is None:
        return []
    assert isinstance(device, erst.AcpiErst)
    instructions = _instructions(device.bar_address(device.bars[0]) or 0)
    return [tables.add(b"ERST", 1, pack("<III", _HEADER_LENGTH, 0, len(instructions)) + b"".join(instructions))]


def _instructions(base: int) -> list[bytes]:
    found = []

    def instruction(action: int, kind: int, register: int, number: int = 0, *, width: int = _DWORD) -> None:
        bits = 8 << width - 1
        address = pack("<BBBBQ", 0, bits, 0, width, base + register)
        found.append(pack("<BBBB", action, kind, 0, 0) + address + pack("<QQ", number, (1 << bits) - 1))

    def act(action: int) -> None:
        instruction(action, _WRITE_NUMBER, erst.ACTION, action)

    for action in (erst.BEGIN_WRITE, erst.BEGIN_READ, erst.BEGIN_CLEAR, erst.END):
        act(action)
    instruction(erst.SET_OFFSET, _WRITE, erst.VALUE)
    act(erst.SET_OFFSET)
    instruction(erst.EXECUTE, _WRITE_NUMBER, erst.VALUE, erst.EXECUTE_MAGIC)
    act(erst.EXECUTE)
    act(erst.CHECK_BUSY)
    instruction(erst.CHECK_BUSY, _READ_AND_COMPARE, erst.VALUE, 1)
    act(erst.GET_STATUS)
    instruction(erst.GET_STATUS, _READ, erst.VALUE)
    act(erst.GET_RECORD)
    instruction(erst.GET_RECORD, _READ, erst.VALUE, width=_QWORD)
    instruction(erst.SET_RECORD, _WRITE, erst.VALUE, width=_QWORD)
    act(erst.SET_RECORD)
    act(erst.GET_COUNT)
    instruction(erst.GET_COUNT, _READ, erst.VALUE)
    act(erst.BEGIN_DUMMY_WRITE)
    for action, width in (
        (erst.GET_RANGE, _QWORD),
        (erst.GET_RANGE_LENGTH, _QWORD),
        (erst.GET_RANGE_ATTRIBUTES, _DWORD),
        (erst.GET_TIMINGS, _QWORD),
    ):
        act(action)
        instruction(action, _READ, erst.VALUE, width=width)
    return found
