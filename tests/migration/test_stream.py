"""Hostile streams: whatever is cut off or changed, loading ends with one error, or with a machine that works."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.migration import machine_state
from qobra.migration.configuration import put_configuration
from qobra.migration.ram import RamSender, put_blocks, ram_blocks
from qobra.migration.state_reader import StateReader
from qobra.migration.stream import BLOCKS, CONFIGURATION, DEVICE, END, MAGIC, StreamReader, StreamWriter

_HEADER = 12
_RECORD = 9


class Buffer:
    """A stream in memory."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self._position = 0

    def write(self, data: Any) -> None:
        self.data += data

    def read(self, length: int) -> bytes:
        part = bytes(self.data[self._position : self._position + length])
        self._position += len(part)
        return part


def new_machine() -> Machine:
    machine = simple_machine("x86_64", "pc", memory=1 << 20)
    with machine.control:
        machine.board.ready = False
        for options in (
            {"driver": "virtio-net-pci", "mac": "52:54:00:12:34:56"},
            {"driver": "virtio-serial-pci"},
            {"driver": "virtio-balloon-pci"},
            {"driver": "i6300esb"},
        ):
            add_device(machine, options, keyval=True)
        machine.board.ready = True
    return machine


@pytest.fixture(scope="module")
def stream() -> bytes:
    machine = new_machine()
    machine.board.memory.write(0x5000, b"memory")
    out = Buffer()
    writer = StreamWriter(out)
    blocks = bytearray()
    put_blocks(blocks, ram_blocks(machine.board))
    with machine.control:
        writer.begin()
        writer.record(CONFIGURATION, put_configuration(machine, with_uuid=False))
        writer.record(BLOCKS, blocks)
        RamSender(ram_blocks(machine.board), lambda _block: False).send_pass(writer, lambda: None)
        machine_state.write_devices(writer, machine_state.save_devices(machine, "paused"))
        writer.record(END)
    machine.close()
    return bytes(out.data)


@pytest.fixture(scope="module")
def target() -> Iterator[Machine]:
    machine = new_machine()
    yield machine
    machine.close()


def load(machine: Machine, data: bytes) -> str:
    reader, state = StreamReader(Buffer(data)), StateReader(machine)
    with machine.control:
        machine.board.reset_all()
        reader.begin()
        while True:
            kind, payload = reader.record()
            if kind == END:
                return state.load_devices()
            state.take(kind, payload)


def records(data: bytes) -> list[tuple[int, int, int]]:
    """Start, length of the payload and type of each record."""
    found, at = [], _HEADER
    while at < len(data):
        length = int.from_bytes(data[at + 1 : at + 5], "little")
        found.append((at, length, data[at]))
        at += _RECORD + length
    return found


def test_the_stream_itself_loads(stream: bytes, target: Machine) -> None:
    assert load(target, stream) == "paused"
    assert target.board.memory.read(0x5000, 6) == b"memory"


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_cut_off_anywhere(stream: bytes, target: Machine, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(stream) - 1))
    with pytest.raises(QobraError):
        load(target, stream[:end])


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_bit_flipped_anywhere(stream: bytes, target: Machine, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(stream) - 1))
    flipped = bytearray(stream)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(QobraError):
        load(target, bytes(flipped))


@pytest.mark.parametrize("seed", range(150))
def test_changed_state_with_a_right_checksum(stream: bytes, target: Machine, seed: int) -> None:
    """Who writes a stream can write any value: it is refused, or the machine lives with it."""
    chance = random.Random(seed)
    at, length, _kind = chance.choice([each for each in records(stream) if each[2] == DEVICE])
    changed = bytearray(stream)
    body = at + _RECORD
    for _ in range(chance.choice((1, 1, 4, 40))):
        changed[body + chance.randrange(length)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.getrandbits(8)))
    changed[at + 5 : at + 9] = crc32(changed[body : body + length]).to_bytes(4, "little")
    try:
        load(target, bytes(changed))
    except QobraError:
        return
    with target.control:
        for port in (*range(0x20, 0x22), *range(0x40, 0x44), 0x60, 0x64, *range(0x70, 0x72), *range(0x3F1, 0x3F8)):
            target.board.ports.load(port, 1)
        target.board.clock.step(50_000_000)


def rechecked(stream: bytes, at: int, length: int, body: bytes) -> bytes:
    """The stream with another payload of the record at ``at``, and the checksum of that."""
    record = bytes((stream[at],)) + len(body).to_bytes(4, "little") + crc32(body).to_bytes(4, "little") + body
    return stream[:at] + record + stream[at + _RECORD + length :]


def test_a_configuration_space_that_is_refused_is_as_it_was(stream: bytes, target: Machine) -> None:
    """The list of capabilities would have no end, or lead out of it."""
    at, length, _kind = next(
        each for each in records(stream) if each[2] == DEVICE and b"virtio-net-pci" in stream[each[0] : each[0] + 60]
    )
    body = stream[at + _RECORD :][:length]
    place = body.index((0x1AF4).to_bytes(2, "little"))
    for capabilities in (b"\x34" * 192, b"\xff" * 192):
        changed = body[: place + 0x40] + capabilities + body[place + 0x100 :]
        for _ in range(2):
            with pytest.raises(QobraError, match="Bad config data"):
                load(target, rechecked(stream, at, length, changed))
    load(target, stream)


def test_names_are_one_line(stream: bytes, target: Machine) -> None:
    for kind, length_at in ((DEVICE, 0), (CONFIGURATION, 0), (BLOCKS, 2)):
        at, length, _kind = next(each for each in records(stream) if each[2] == kind)
        body = stream[at + _RECORD :][:length]
        name = body[length_at + 1 :][: body[length_at]]
        changed = body.replace(name, b"\n\x1b[2J".ljust(len(name), b"\n")[: len(name)], 1)
        with pytest.raises(QobraError) as caught:
            load(target, rechecked(stream, at, length, changed))
        assert caught.value.desc.isprintable()


def test_a_newer_version_of_a_device_is_refused(stream: bytes, target: Machine) -> None:
    changed = bytearray(stream)
    at, length, _kind = next(
        each for each in records(stream) if each[2] == DEVICE and b"mc146818rtc" in stream[each[0] : each[0] + 60]
    )
    body = at + _RECORD
    version = changed.index(b"\x0bmc146818rtc", body + changed[body] + 1) + 12
    changed[version] = 9
    changed[at + 5 : at + 9] = crc32(changed[body : body + length]).to_bytes(4, "little")
    with pytest.raises(QobraError, match="version 9 is not known, only up to 1"):
        load(target, bytes(changed))


def test_another_version_of_the_stream_and_no_stream_at_all(target: Machine) -> None:
    with pytest.raises(QobraError, match="Unsupported migration stream version 2"):
        load(target, MAGIC + b"\x02\0\0\0")
    with pytest.raises(QobraError, match="Not a migration stream"):
        load(target, b"hello, here is something else")


def test_a_record_too_long_is_not_waited_for(target: Machine) -> None:
    with pytest.raises(QobraError, match="Unknown savevm section type 1"):
        load(target, MAGIC + b"\x01\0\0\0" + b"\x01\xff\xff\xff\xff" + bytes(100))
