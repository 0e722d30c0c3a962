"""AC'97 from its driver's side: the mixer, the rings of buffers, and what becomes of their sound."""

from __future__ import annotations

import random
import wave
from collections.abc import Iterator
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.migration import machine_state
from qobra.testing.guest import BoardAccess, PciFunction

_MILLISECOND = 10**6
_PACE = 192
_LIST, _DATA = 0x100000, 0x110000
_OUT = 0x10
_LVI, _SR, _PICB, _CR = _OUT + 5, _OUT + 6, _OUT + 8, _OUT + 0xB


class Guest:
    def __init__(self, path: Path) -> None:
        self.machine = simple_machine(memory=32 << 20)
        self.path = path
        with self.machine.control:
            settings = {"frequency": 48000}
            self.machine.audiodevs.create({"id": "a", "driver": "wav", "path": str(path), "out": settings})
            options = {"driver": "ac97", "addr": "5", "audiodev": "a"}
            self.card: Any = add_device(self.machine, options, keyval=True)
        self.access = BoardAccess(self.machine)
        function = PciFunction(self.access, 5 << 3)
        function.enable()
        self.mixer, self.masters = function.bars[0], function.bars[1]

    def get(self, offset: int, width: int) -> int:
        return self.access.port_in(self.masters + offset, width)

    def put(self, offset: int, width: int, value: int) -> None:
        self.access.port_out(self.masters + offset, width, value)

    def set_mixer(self, offset: int, value: int) -> None:
        self.access.port_out(self.mixer + offset, 2, value)

    def buffers(self, data: bytes, size: int, *, told: bool = True) -> None:
        self.access.write(_DATA, data)
        count = len(data) // size
        for at in range(count):
            self.access.write(_LIST + 8 * at, pack("<II", _DATA + at * size, size // 2 | told << 31))
        self.put(_OUT, 4, _LIST)
        self.put(_LVI, 1, count - 1)
        self.set_mixer(0x02, 0)
        self.set_mixer(0x18, 0x0808)

    def heard(self) -> bytes:
        with wave.open(str(self.path)) as file:
            return file.readframes(1 << 20)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path / "wav")
    yield guest
    guest.machine.close()


def test_what_is_played(guest: Guest) -> None:
    data = random.Random(1).randbytes(30 * _PACE)
    guest.buffers(data, 10 * _PACE)
    guest.put(_CR, 1, 0x1D)
    guest.access.step(4 * _MILLISECOND)
    assert (guest.get(_PICB, 2), guest.get(_SR, 2), guest.card._pin_level) == (6 * _PACE // 2, 0, 0)
    guest.access.step(7 * _MILLISECOND)
    assert (guest.get(_OUT + 4, 1), guest.get(_SR, 2), guest.card._pin_level) == (1, 8, 1)
    assert guest.get(0x30, 4) == 0x140
    guest.put(_SR, 2, 8)
    assert (guest.card._pin_level, guest.get(0x30, 4)) == (0, 0x100)
    guest.access.step(40 * _MILLISECOND)
    assert guest.get(_SR, 2) == 0x0F  # the last buffer is done, and it stands still
    assert guest.heard() == data
    guest.put(_SR, 2, 0x1C)
    guest.put(_LVI, 1, 3)
    guest.access.write(_LIST + 24, pack("<II", _DATA, _PACE // 2))
    guest.put(_LVI, 1, 3)
    guest.access.step(2 * _MILLISECOND)
    assert guest.get(_SR, 2) == 7


def test_a_pause(guest: Guest) -> None:
    data = random.Random(2).randbytes(30 * _PACE)
    guest.buffers(data, 10 * _PACE)
    guest.put(_CR, 1, 1)
    guest.access.step(5 * _MILLISECOND)
    guest.put(_CR, 1, 0)
    guest.access.step(5 * _MILLISECOND)
    assert guest.get(_SR, 2) == 1 and guest.heard() == data[: 5 * _PACE]
    guest.put(_CR, 1, 1)
    guest.access.step(6 * _MILLISECOND)
    guest.put(_CR, 1, 0)
    assert guest.heard() == data[: 11 * _PACE]
    guest.put(_CR, 1, 2)
    assert [guest.get(_OUT + at, 4) for at in (0, 4, 8)] == [0, 0x10000, 0]


def test_other_rates_and_volumes(guest: Guest) -> None:
    guest.buffers(b"\0\x40\0\x40" * 24 * 2, 4 * 24)
    guest.set_mixer(0x2C, 24000)
    guest.set_mixer(0x02, 0x0700)  # 10.5 dB less on the left
    guest.put(_CR, 1, 1)
    guest.access.step(2 * _MILLISECOND)
    sound = guest.heard()
    assert len(sound) // 4 in range(90, 97)
    left, right = (int.from_bytes(sound[at : at + 2], "little") for at in (0, 2))
    assert (left, right) == (int(0x4000 * 10 ** (-10.5 / 20)), 0x4000)


def test_the_mixer(guest: Guest) -> None:
    def read(offset: int) -> int:
        return guest.access.port_in(guest.mixer + offset, 2)

    assert [read(offset) for offset in (0x02, 0x18, 0x26, 0x28, 0x7C, 0x7E)] == [
        0x8000,
        0x8808,
        15,
        0x809,
        0x8384,
        0x7600,
    ]
    assert guest.get(0x34, 1) == 0 and guest.get(0x34, 1) == 1
    assert read(0x2C) == 48000 and guest.get(0x34, 1) == 0
    guest.set_mixer(0x2A, 0)
    guest.set_mixer(0x2C, 8000)
    assert read(0x2C) == 48000
    assert guest.access.port_in(guest.mixer, 1) == 0xFF
    guest.set_mixer(0, 0)
    assert read(0x2A) == 9


def test_the_state_goes_on_elsewhere(guest: Guest, tmp_path: Path) -> None:
    guest.buffers(bytes(30 * _PACE), 10 * _PACE)
    guest.put(_CR, 1, 0x1D)
    guest.access.step(13 * _MILLISECOND)
    other = Guest(tmp_path / "other")
    other.access.step(13 * _MILLISECOND)
    other.access.write(_LIST, guest.access.read(_LIST, 0x10000))
    with guest.machine.control:
        guest.machine.run_state.settle()
        (_kind, head), *sections = machine_state.save_devices(guest.machine, "paused")
    with other.machine.control:
        machine_state.load_devices(other.machine, bytes(head), [bytes(payload) for _kind, payload in sections])
    for each in (guest, other):
        each.access.step(5 * _MILLISECOND)
    assert [guest.get(_OUT + at, 4) for at in (0, 4, 8)] == [other.get(_OUT + at, 4) for at in (0, 4, 8)]
    assert other.get(_PICB, 2) == 2 * _PACE // 2
    other.machine.close()


def test_buffers_without_sense(guest: Guest) -> None:
    for at in range(32):
        guest.access.write(_LIST + 8 * at, pack("<II", 0xFFFFFFFE, 0xFFFF0000))
    guest.put(_OUT, 4, _LIST)
    guest.set_mixer(0x2C, 0xFFFF)
    guest.put(_LVI, 1, 31)
    guest.put(_CR, 1, 0x1D)
    guest.access.step(10**12)
    guest.put(_LVI, 1, 30)
    guest.set_mixer(0x2C, 0)
    guest.access.step(10**10)
    assert guest.get(_SR, 2) & 0x0F == 0x0F


def test_another_rate_meanwhile_brings_no_burst(guest: Guest) -> None:
    guest.buffers(bytes(30 * 10 * _PACE), 10 * _PACE)
    guest.set_mixer(0x2A, 1)
    guest.set_mixer(0x2C, 8000)
    guest.put(_CR, 1, 1)
    guest.access.step(60 * _MILLISECOND)
    assert (guest.get(_OUT + 4, 1), guest.get(_PICB, 2)) == (1, 10 * _PACE // 2)
    guest.set_mixer(0x2C, 48000)
    guest.access.step(5 * _MILLISECOND)
    assert (guest.get(_OUT + 4, 1), guest.get(_PICB, 2)) == (1, 5 * _PACE // 2)
