"""The serial EEPROM of network cards: words come out bit by bit, and nothing else does anything."""

from __future__ import annotations

import pytest

from qobra.machine.microwire import WORDS, Microwire

_WORDS = [0x1234 + 257 * n & 0xFFFF for n in range(WORDS)]


def _send(wires: Microwire, bits: str) -> None:
    for bit in bits:
        wires.clock(int(bit))


@pytest.mark.parametrize("leading_zero", [False, True])
def test_a_word(leading_zero: bool) -> None:
    wires = Microwire(_WORDS, leading_zero=leading_zero)
    _send(wires, "00" + "110" + f"{37:06b}")  # zeroes before the start bit do not count
    assert wires.reading
    found = []
    if leading_zero:
        assert not wires.out
        wires.clock(0)
    for _ in range(16):
        found.append(str(int(wires.out)))
        wires.clock(0)
    assert int("".join(found), 2) == _WORDS[37]
    wires.deselect()
    assert not wires.reading and not wires.out


@pytest.mark.parametrize("command", ["101", "111", "100"])
def test_commands_that_are_no_reads(command: str) -> None:
    wires = Microwire(_WORDS, leading_zero=False)
    _send(wires, command + "000001")
    assert not wires.reading
    _send(wires, "110000001")  # it listens again
    assert wires.reading
