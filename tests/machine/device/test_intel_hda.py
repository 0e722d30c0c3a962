"""High Definition Audio from its driver's side: codecs, rings, streams and what becomes of their sound."""

from __future__ import annotations

import random
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.hda.stream import form_of
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.migration import machine_state
from qobra.testing.guest import BoardAccess
from qobra.testing.hda import OUTPUT, SET_GAIN, SET_STREAM, STEREO_48000, HdaGuest

_MILLISECOND = 10**6
_PACE = 192
"""Bytes a millisecond at 48 kHz, 16 bits, two channels."""


class Guest(HdaGuest):
    def __init__(self, path: Path, codecs: tuple[str, ...] = ("hda-duplex",), *, finished: bool = True) -> None:
        self.machine = Machine(capabilities=frozenset(("board", "x86_64")))
        self.path = path
        with self.machine.control:
            board = attach_board(self.machine, find_board("x86_64", "pc"))
            board.accelerator = "qtest"
            board.set_topology({"cpus": 1})
            board.set_memory(32 << 20)
            board.start()
            settings = {"frequency": 48000}
            self.machine.audiodevs.create({"id": "a", "driver": "wav", "path": str(path), "out": settings})
            self.card: Any = add_device(self.machine, {"driver": "intel-hda", "addr": "5", "id": "h"}, keyval=True)
            self.codecs: list[Any] = [
                add_device(self.machine, {"driver": each, "bus": "h.0", "audiodev": "a"}, keyval=True)
                for each in codecs
            ]
            if finished:
                board.finish()
        if finished:
            super().__init__(BoardAccess(self.machine))

    def buffers(self, data: bytes, size: int, *, told: bool = True) -> list[tuple[int, int, bool]]:
        address = self.memory.take(len(data), 128)
        self.guest.write(address, data)
        return [(address + at, min(size, len(data) - at), told) for at in range(0, len(data), size)]

    def heard(self) -> bytes:
        with wave.open(str(self.path)) as file:
            return file.readframes(1 << 20)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path / "wav")
    yield guest
    guest.machine.close()


def test_codecs_are_found_and_answer(guest: Guest) -> None:
    assert guest.read(0x0E, 2) == 1
    assert guest.immediate(0, 0, 0xF0000) == 0x1AF40022
    assert guest.immediate(1, 0, 0xF0000) is None
    assert [guest.immediate(0, node, 0xF0009) for node in range(7)] == [0, 0, 0x1D, 0x400101, 0x10011B, 0x400001, 0]
    assert guest.immediate(0, 2, SET_STREAM | 0x50) == 0
    assert guest.immediate(0, 2, 0xF0600) == 0x50


def test_rings(guest: Guest) -> None:
    guest.start_rings(count=2)
    guest.write(0x20, 4, 0xC0000000)
    guest.command(0x000F0000, 0x000F0002)
    assert guest.answered() == [(0x1AF40022, 0), (0x00100101, 0)]
    assert guest.read(0x24, 4) == 0xC0000000 and guest.card._pin_level
    guest.command(0x000F0004, 0x100F0000, 0x000F0000, 0x000F0002)  # the second of them to nobody
    assert len(guest.answered()) == 2  # not before the guest has seen the others
    assert guest.acknowledge() == 1
    assert len(guest.answered()) == 4
    assert guest.acknowledge() == 1
    assert [value for value, _codec in guest.answered()] == [0x1AF40022, 0x100101, 0x10001, 0x1AF40022, 0x100101]
    assert guest.read(0x5D, 1) == 1  # one, and no more to come
    guest.acknowledge()
    assert not guest.card._pin_level


def test_what_is_played(guest: Guest) -> None:
    data = random.Random(1).randbytes(40 * _PACE)
    guest.list_buffers(OUTPUT, guest.buffers(data, 10 * _PACE), STEREO_48000, 3)
    guest.listen(0, 3)
    positions = guest.memory.take(128, 128)
    guest.write(0x70, 4, positions | 1)
    guest.write(0x20, 4, 0x800000FF)
    guest.run(OUTPUT)
    guest.guest.step(7 * _MILLISECOND)
    assert guest.stream(OUTPUT, 4, 4) == 7 * _PACE and not guest.card._pin_level
    guest.guest.step(4 * _MILLISECOND)
    assert guest.stream(OUTPUT, 3, 1) == 0x24 and guest.card._pin_level
    guest.set_stream(OUTPUT, 3, 1, 4)
    assert not guest.card._pin_level
    guest.guest.step(34 * _MILLISECOND)
    assert guest.stream(OUTPUT, 4, 4) == 5 * _PACE
    assert int.from_bytes(guest.guest.read(positions + 8 * OUTPUT, 4), "little") == 5 * _PACE
    guest.run(OUTPUT, False)
    assert guest.heard() == data + data[: 5 * _PACE]
    guest.guest.step(50 * _MILLISECOND)
    assert guest.stream(OUTPUT, 4, 4) == 5 * _PACE


def test_how_loud(guest: Guest) -> None:
    guest.list_buffers(OUTPUT, guest.buffers(b"\0\x40" * 2 * 48, _PACE), STEREO_48000, 1)
    guest.listen(0, 1)
    guest.immediate(0, 2, SET_GAIN | 0xA000 | 0x4A - 20)  # a tenth on the left
    guest.immediate(0, 2, SET_GAIN | 0x9000 | 0x80)
    guest.run(OUTPUT)
    guest.guest.step(_MILLISECOND)
    guest.run(OUTPUT, False)
    assert guest.heard() == b"\x66\6\0\0" * 48


def test_streams_nobody_listens_to(guest: Guest) -> None:
    guest.list_buffers(OUTPUT, guest.buffers(bytes(_PACE), _PACE), STEREO_48000, 1)
    guest.listen(0, 2)
    guest.run(OUTPUT)
    guest.guest.step(5 * _MILLISECOND)
    assert guest.stream(OUTPUT, 3, 1) & 4 and guest.heard() == b""


def test_recording_is_silence(guest: Guest) -> None:
    buffers = guest.buffers(b"x" * 4 * _PACE, 2 * _PACE)
    guest.list_buffers(0, buffers, STEREO_48000, 1)
    guest.run(0)
    guest.guest.step(3 * _MILLISECOND)
    assert guest.stream(0, 4, 4) == 3 * _PACE
    assert guest.guest.read(buffers[0][0], 4 * _PACE) == bytes(3 * _PACE) + b"x" * _PACE


def test_streams_that_start_together(guest: Guest) -> None:
    guest.list_buffers(OUTPUT, guest.buffers(bytes(4 * _PACE), _PACE), STEREO_48000, 1)
    guest.write(0x38, 4, 1 << OUTPUT)
    guest.run(OUTPUT)
    guest.guest.step(2 * _MILLISECOND)
    assert guest.stream(OUTPUT, 4, 4) == 0
    guest.write(0x38, 4, 0)
    guest.guest.step(2 * _MILLISECOND)
    assert guest.stream(OUTPUT, 4, 4) == 2 * _PACE


def test_two_codecs_play_one_stream(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "wav", ("hda-output", "hda-micro"))
    guest.list_buffers(OUTPUT, guest.buffers(b"\1\0" * 2 * 48, _PACE), STEREO_48000, 1)
    guest.listen(0, 1)
    guest.listen(1, 1)
    guest.run(OUTPUT)
    guest.guest.step(_MILLISECOND)
    guest.run(OUTPUT, False)
    assert guest.heard() == b"\2\0" * 2 * 48
    guest.machine.close()


def test_lists_without_end_or_sense(guest: Guest) -> None:
    guest.list_buffers(OUTPUT, [(0x100000, 0, True)] * 3, 0x7F7F, 1)
    guest.set_stream(OUTPUT, 8, 4, 4)
    guest.run(OUTPUT)
    guest.guest.step(1000 * _MILLISECOND)
    assert guest.stream(OUTPUT, 4, 4) == 0
    guest.list_buffers(OUTPUT, [(0xFFFFFFFFFFFFFFF0, 0xFFFFFFFF, True)], 0x0043, 1)
    guest.run(OUTPUT)
    guest.guest.step(10**10)
    guest.run(OUTPUT, False)


def test_resets(guest: Guest) -> None:
    guest.list_buffers(OUTPUT, guest.buffers(bytes(_PACE), _PACE), STEREO_48000, 1)
    guest.run(OUTPUT)
    guest.guest.step(_MILLISECOND // 2)
    guest.set_stream(OUTPUT, 0, 1, 1)
    assert [guest.stream(OUTPUT, offset, 4) for offset in (0, 4, 8)] == [0x20000001, 0, 0]
    guest.set_stream(OUTPUT, 0, 1, 0)
    guest.write(0x0E, 2, 1)
    guest.write(0x08, 4, 0)
    guest.write(0x40, 4, 0x1000)  # nothing but the reset itself
    assert (guest.read(0x40, 4), guest.read(0x0E, 2)) == (0, 1)


def test_the_state_goes_on_elsewhere(guest: Guest, tmp_path: Path) -> None:
    guest.list_buffers(OUTPUT, guest.buffers(bytes(40 * _PACE), 10 * _PACE), STEREO_48000, 1)
    guest.listen(0, 1)
    guest.run(OUTPUT)
    guest.guest.step(13 * _MILLISECOND)
    other = Guest(tmp_path / "other")
    other.guest.step(13 * _MILLISECOND)
    other.guest.write(0x100000, guest.guest.read(0x100000, 0x10000))
    with guest.machine.control:
        guest.machine.run_state.settle()
        (_kind, head), *sections = machine_state.save_devices(guest.machine, "paused")
    with other.machine.control:
        machine_state.load_devices(other.machine, bytes(head), [bytes(payload) for _kind, payload in sections])
    for each in (guest, other):
        each.guest.step(5 * _MILLISECOND)
    assert other.stream(OUTPUT, 4, 4) == guest.stream(OUTPUT, 4, 4) == 18 * _PACE
    assert other.immediate(0, 2, 0xF0600) == 0x10
    other.machine.close()


def test_forms() -> None:
    assert form_of(0x0011) == (48000, 2, 16)
    assert form_of(0x4011) == (44100, 2, 16)
    assert form_of(0x5911) == (44100 * 4 // 2, 2, 16)
    assert form_of(0x0501) == (8000, 2, 8)


def test_addresses(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "wav", finished=False)

    def add(**options: str) -> None:
        with guest.machine.control:
            add_device(guest.machine, {"driver": "hda-output", "bus": "h.0", **options}, keyval=True)

    for options, complaint in (
        ({"cad": "15"}, "HDA audio codec address is full"),
        ({"cad": "0"}, "HDA codec address 0 is in use"),
        ({"audiodev": "none"}, "Property 'hda-output.audiodev' can't find value 'none'"),
    ):
        with pytest.raises(QobraError) as caught:
            add(**options)
        assert caught.value.desc == complaint
    for _ in range(14):
        add()
    with pytest.raises(QobraError, match="HDA audio codec address is full"):
        add()
    guest.machine.close()


def test_another_form_meanwhile_brings_no_burst(guest: Guest) -> None:
    guest.list_buffers(OUTPUT, guest.buffers(bytes(400 * _PACE), 400 * _PACE), 0x0511, 3)  # 8 kHz
    guest.run(OUTPUT)
    guest.guest.step(60 * _MILLISECOND)
    assert guest.stream(OUTPUT, 4, 4) == 10 * _PACE
    guest.set_stream(OUTPUT, 0x12, 2, STEREO_48000)
    guest.guest.step(5 * _MILLISECOND)
    assert guest.stream(OUTPUT, 4, 4) == 15 * _PACE


def test_a_codec_that_is_given_another_stream_has_no_more_to_say(guest: Guest) -> None:
    guest.list_buffers(OUTPUT, guest.buffers(b"\1" * (100 * _PACE), 100 * _PACE), STEREO_48000, 3)
    for change in (lambda: guest.listen(0, 4), lambda: guest.set_stream(OUTPUT, 0x02, 1, 0x50)):
        guest.listen(0, 3)
        guest.set_stream(OUTPUT, 0x02, 1, 0x30)
        before = len(guest.heard())
        guest.run(OUTPUT)
        guest.guest.step(10 * _MILLISECOND)
        guest.stream(OUTPUT, 4, 4)
        change()
        assert len(guest.heard()) == before + 10 * _PACE
        guest.run(OUTPUT, False)
