"""A SCSI disk by its commands: what it says of itself, moves, keeps and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.machine.scsi import sense, transfer

BLOCKS = 4096
SIZE = BLOCKS * 512


class Disk:
    """A unit without a host adapter's rings between it and the test."""

    def __init__(self, device: Any, path: Path) -> None:
        self.device = device
        self.path = path

    def run(self, *cdb: int, data: bytes = b"", room: int = 4096) -> bytes:
        """What a command that is carried out returns."""
        result = self.device.execute(bytes(cdb), data, room)
        assert result.status == 0, result.sense.hex()
        assert isinstance(result.data, bytes)
        return result.data

    def refused(self, *cdb: int, data: bytes = b"") -> tuple[int, int, int]:
        """Sense key, code and qualifier of a command that is not."""
        result = self.device.execute(bytes(cdb), data, 4096)
        assert result.status == 2 and not result.data and result.sense[0] == 0x70 and len(result.sense) == 18
        return result.sense[2], result.sense[12], result.sense[13]


def _cdb10(code: int, block: int, count: int, flags: int = 0) -> tuple[int, ...]:
    return (code, flags, *block.to_bytes(4, "big"), 0, *count.to_bytes(2, "big"), 0)


def _cdb16(code: int, block: int, count: int, flags: int = 0) -> tuple[int, ...]:
    return (code, flags, *block.to_bytes(8, "big"), *count.to_bytes(4, "big"), 0, 0)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    machines: list[Any] = []

    def disk(*, read_only: bool = False, **options: Any) -> Disk:
        path = tmp_path / "disk"
        path.write_bytes(bytes(range(256)) * (SIZE // 256))
        machine = simple_machine("x86_64", "pc", memory=16 << 20)
        machines.append(machine)
        board: Any = machine.board
        with machine.control:
            file = {"driver": "file", "filename": str(path), "discard": "unmap", "read-only": read_only}
            node = {"driver": "raw", "node-name": "n", "discard": "unmap", "read-only": read_only, "file": file}
            machine.block.add_node(node)
            board.ready = False
            add_device(machine, {"driver": "virtio-scsi-pci", "addr": "5"}, keyval=True)
            add_device(machine, {"driver": "scsi-hd", "id": "hd", "drive": "n", **options}, keyval=True)
            board.ready = True
        made = Disk(machine.objects.resolve("/machine/peripheral/hd"), path)
        made.device.attention = None
        return made

    yield disk
    for machine in machines:
        machine.close()


def test_identity(make: Any) -> None:
    disk = make(serial="S-1", wwn="0x5000c50015ea71ac", ver="9.9", vendor="ACME", rotation_rate="7200")
    answer = disk.run(0x12, 0, 0, 0, 36, 0)
    assert (answer[0], answer[1], answer[2], answer[3], answer[4]) == (0, 0, 5, 0x12, 31)
    assert answer[8:36] == b"ACME    QEMU HARDDISK   9.9 "
    assert disk.run(0x12, 0, 0, 0, 5, 0) == answer[:5]
    assert disk.run(0x12, 1, 0, 0, 64, 0)[:10] == bytes((0, 0, 0, 6, 0, 0x80, 0x83, 0xB0, 0xB1, 0xB2))
    assert disk.run(0x12, 1, 0x80, 0, 64, 0)[:7] == b"\0\x80\0\3S-1"
    name = bytes((2, 0, 0, 3)) + b"S-1" + bytes((1, 3, 0, 8)) + bytes.fromhex("5000c50015ea71ac")
    assert disk.run(0x12, 1, 0x83, 0, 64, 0)[: 4 + len(name)] == bytes((0, 0x83, 0, len(name))) + name
    assert disk.run(0x12, 1, 0xB1, 0, 64, 0)[:6] == b"\0\xb1\0\x3c" + (7200).to_bytes(2, "big")
    assert disk.refused(0x12, 1, 0x84, 0, 64, 0) == sense.INVALID_FIELD
    assert disk.refused(0x12, 0, 0x80, 0, 64, 0) == sense.INVALID_FIELD


def test_limits_and_provisioning(make: Any) -> None:
    disk = make(max_unmap_size=str(1 << 20), max_io_size=str(2 << 20), min_io_size="4096", opt_io_size="8192")
    limits = disk.run(0x12, 1, 0xB0, 0, 64, 0)
    assert limits[:5] == bytes((0, 0xB0, 0, 60, 1))
    words = [int.from_bytes(limits[at : at + 4], "big") for at in (8, 12, 20, 24, 28)]
    assert words == [4096, 16, 2048, 255, 8]
    assert int.from_bytes(limits[6:8], "big") == 8
    assert disk.run(0x12, 1, 0xB2, 0, 64, 0)[:8] == bytes((0, 0xB2, 0, 4, 0, 0xE0, 2, 0))


def test_identity_as_long_and_as_empty_as_it_is_given(make: Any) -> None:
    disk = make(serial="x" * 40, vendor="", product="", max_unmap_size=str((1 << 64) - 1))
    assert disk.run(0x12, 1, 0x80, 0, 64, 0)[:40] == bytes((0, 0x80, 0, 36)) + b"x" * 36
    assert disk.run(0x12, 0, 0, 0, 64, 0)[8:32] == b" " * 24
    assert disk.run(0x12, 1, 0xB0, 0, 64, 0)[20:24] == b"\xff" * 4


def test_without_discard_nothing_can_be_unmapped(make: Any) -> None:
    plain = make(discard_granularity="0")
    assert plain.run(0x9E, 0x10, *bytes(8), 0, 0, 0, 32, 0, 0)[14] == 0
    assert plain.run(0x12, 1, 0xB2, 0, 64, 0)[:8] == bytes((0, 0xB2, 0, 4, 0, 0, 1, 0))
    assert plain.run(0x12, 1, 0x00, 0, 64, 0)[3] == 5 and plain.refused(0x12, 1, 0x80, 0, 64, 0) == sense.INVALID_FIELD


def test_capacity(make: Any) -> None:
    disk = make(physical_block_size="4096")
    assert disk.run(*_cdb10(0x25, 0, 0)) == (BLOCKS - 1).to_bytes(4, "big") + (512).to_bytes(4, "big")
    assert disk.refused(*_cdb10(0x25, 1, 0)) == sense.INVALID_FIELD
    answer = disk.run(0x9E, 0x10, *bytes(8), 0, 0, 0, 32, 0, 0)
    assert answer[:12] == (BLOCKS - 1).to_bytes(8, "big") + (512).to_bytes(4, "big")
    assert answer[12:16] == bytes((0, 3, 0x80, 0)) and len(answer) == 32
    assert disk.refused(0x9E, 0x11, *bytes(14)) == sense.INVALID_FIELD


@pytest.mark.parametrize("form", [6, 10, 12, 16])
def test_reads_and_writes(make: Any, form: int) -> None:
    disk = make()

    def cdb(is_write: bool, block: int, count: int) -> tuple[int, ...]:
        if form == 6:
            return (0x0A if is_write else 0x08, *block.to_bytes(3, "big"), count, 0)
        if form == 10:
            return _cdb10(0x2A if is_write else 0x28, block, count)
        if form == 12:
            return (0xAA if is_write else 0xA8, 0, *block.to_bytes(4, "big"), *count.to_bytes(4, "big"), 0, 0)
        return _cdb16(0x8A if is_write else 0x88, block, count)

    before = disk.path.read_bytes()
    assert disk.run(*cdb(False, 3, 2), room=1024) == before[1536:2560]
    disk.run(*cdb(True, BLOCKS - 1, 1), data=b"w" * 512)
    assert disk.path.read_bytes() == before[:-512] + b"w" * 512
    assert disk.refused(*cdb(True, BLOCKS - 1, 2), data=b"x" * 1024) == sense.LBA_OUT_OF_RANGE
    assert disk.refused(*cdb(False, BLOCKS, 1)) == sense.LBA_OUT_OF_RANGE
    assert disk.refused(*cdb(True, 0, 2), data=b"x" * 1023) == sense.INVALID_FIELD
    if form == 6:  # nothing means 256 there
        assert disk.run(*cdb(False, 0, 0), room=1 << 20) == before[: 256 * 512]
    else:
        assert disk.run(*cdb(False, BLOCKS, 0)) == b"" and disk.run(*cdb(True, 0, 0)) == b""
        protected = (cdb(True, 0, 1)[0], 0x20, *cdb(True, 0, 1)[2:])
        assert disk.refused(*protected, data=b"x" * 512) == sense.INVALID_FIELD
    assert disk.path.read_bytes() == before[:-512] + b"w" * 512
    accounting = disk.device.backend.accounting
    assert accounting.invalid[:2] == [1, 1]


def test_a_write_may_ask_for_stable_storage(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = make(dpofua="on")
    asked: list[bool] = []
    write = disk.device.backend.write
    monkeypatch.setattr(
        disk.device.backend, "write", lambda at, data, *, fua=False: (asked.append(fua), write(at, data, fua=fua))
    )
    for flags in (0, 8):
        disk.run(*_cdb10(0x2A, 0, 1, flags), data=bytes(512))
    disk.run(0x0A, 0, 0, 8, 1, 0, data=bytes(512))
    assert asked == [False, True, False]
    assert disk.run(0x1A, 0, 0x08, 0, 64, 0)[2] == 0x10  # and mode sense says so


def test_what_is_read_only(make: Any) -> None:
    disk = make(read_only=True)
    assert disk.refused(*_cdb10(0x2A, 0, 1), data=bytes(512)) == sense.WRITE_PROTECTED
    assert disk.refused(*_cdb10(0x41, 0, 1), data=bytes(512)) == sense.WRITE_PROTECTED
    assert disk.refused(0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0, data=bytes(24)) == sense.WRITE_PROTECTED
    assert disk.run(0x1A, 0, 0x08, 0, 64, 0)[2] == 0x80


def test_mode_pages(make: Any) -> None:
    disk = make()
    descriptor = bytes((0, *BLOCKS.to_bytes(3, "big"), 0, 0, 2, 0))
    caching = bytes((8, 18, 4)) + bytes(17)
    assert disk.run(0x1A, 0, 0x08, 0, 32, 0) == bytes((31, 0, 0, 8)) + descriptor + caching
    assert disk.run(0x1A, 8, 0x08, 0, 24, 0) == bytes((23, 0, 0, 0)) + caching
    assert disk.run(0x5A, 0, 0x08, *bytes(4), 0, 36, 0) == bytes((0, 34, 0, 0, 0, 0, 0, 8)) + descriptor + caching
    assert disk.run(0x1A, 8, 0x48, 0, 24, 0) == bytes((23, 0, 0, 0, 8, 18, 4)) + bytes(17)  # what can be changed
    assert disk.run(0x1A, 8, 0x41, 0, 16, 0)[6:] == bytes(10)
    everything = disk.run(0x1A, 8, 0x3F, 0, 255, 0)
    codes, at = [], 4
    while at < everything[0] + 1:
        codes.append(everything[at])
        at += 2 + everything[at + 1]
    assert codes == [1, 4, 5, 8]
    assert disk.refused(0x1A, 0, 0xC8, 0, 32, 0) == sense.SAVING_NOT_SUPPORTED
    assert disk.refused(0x1A, 0, 0x2A, 0, 32, 0) == sense.INVALID_FIELD


def test_the_write_cache_can_be_switched(make: Any) -> None:
    disk = make()
    off, on = bytes((8, 18, 0)) + bytes(17), bytes((8, 18, 4)) + bytes(17)
    descriptor = bytes(8)
    disk.run(0x15, 0x10, 0, 0, 24, 0, data=bytes(4) + off)
    assert not disk.device.backend.writeback and disk.run(0x1A, 8, 0x08, 0, 24, 0)[6] == 0
    disk.run(0x15, 0x10, 0, 0, 32, 0, data=bytes((0, 0, 0, 8)) + descriptor + on)
    assert disk.device.backend.writeback
    disk.run(0x55, 0x10, *bytes(5), 0, 36, 0, data=bytes(7) + b"\x08" + descriptor + off)
    assert not disk.device.backend.writeback
    assert disk.run(0x15, 0, 0, 0, 0, 0) == b""  # no list is no error


@pytest.mark.parametrize(
    ("flags", "data", "told"),
    [
        (0x00, bytes(4) + bytes((8, 18, 0)) + bytes(17), sense.INVALID_FIELD),
        (0x11, bytes(4) + bytes((8, 18, 0)) + bytes(17), sense.INVALID_FIELD),
        (0x10, bytes(3), sense.INVALID_PARAMETER_LENGTH),
        (0x10, bytes(4) + b"\x08", sense.INVALID_PARAMETER_LENGTH),
        (0x10, bytes(4) + bytes((8, 18, 0)) + bytes(16), sense.INVALID_PARAMETER_LENGTH),
        (0x10, bytes(4) + bytes((0x48, 18, 0)) + bytes(17), sense.INVALID_PARAMETER_LENGTH),
        (0x10, bytes(4) + bytes((8, 17, 0)) + bytes(16), sense.INVALID_PARAMETER),
        (0x10, bytes(4) + bytes((9, 18, 0)) + bytes(17), sense.INVALID_PARAMETER),
        (0x10, bytes(4) + bytes((8, 18, 1)) + bytes(17), sense.INVALID_PARAMETER),
        (0x10, bytes(4) + bytes((8, 18, 0)) + bytes(16) + b"\x01", sense.INVALID_PARAMETER),
    ],
)
def test_mode_pages_that_cannot_be(make: Any, flags: int, data: bytes, told: tuple[int, int, int]) -> None:
    disk = make()
    assert disk.refused(0x15, flags, 0, 0, len(data), 0, data=data) == told
    assert disk.device.backend.writeback


def test_unmap(make: Any) -> None:
    disk = make()

    def ranges(*each: tuple[int, int]) -> bytes:
        body = b"".join(block.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4) for block, count in each)
        return (len(body) + 6).to_bytes(2, "big") + len(body).to_bytes(2, "big") + bytes(4) + body

    def unmap(data: bytes, flags: int = 0) -> dict[str, Any]:
        return {"data": data, "cdb": (0x42, flags, 0, 0, 0, 0, 0, *len(data).to_bytes(2, "big"), 0)}

    def run(asked: dict[str, Any]) -> bytes:
        return bytes(disk.run(*asked["cdb"], data=asked["data"]))

    def refused(asked: dict[str, Any]) -> tuple[int, int, int]:
        return tuple(disk.refused(*asked["cdb"], data=asked["data"]))  # type: ignore[return-value]

    before = disk.path.read_bytes()
    assert refused(unmap(ranges((0, 8), (BLOCKS - 8, 9)))) == sense.LBA_OUT_OF_RANGE
    assert refused(unmap(ranges((0, 8)), 1)) == sense.INVALID_FIELD
    assert refused(unmap(ranges((0, 8))[:-1])) == sense.INVALID_PARAMETER_LENGTH
    assert refused(unmap(bytes(7))) == sense.INVALID_PARAMETER_LENGTH
    assert run(unmap(b"")) == b"" and run(unmap(ranges())) == b"" and run(unmap(ranges((5, 0)))) == b""
    assert disk.path.read_bytes() == before
    run(unmap(ranges((8, 8), (BLOCKS - 8, 8))))
    expected = before[:4096] + bytes(4096) + before[8192:-4096] + bytes(4096)
    assert disk.path.read_bytes() == expected


def test_write_same(make: Any) -> None:
    disk = make()
    before = disk.path.read_bytes()
    disk.run(*_cdb10(0x41, 2, 3), data=b"s" * 512)
    disk.run(*_cdb16(0x93, 8, 2048), data=b"t" * 512)
    disk.run(*_cdb10(0x41, 3000, 8, 8), data=bytes(512))
    disk.run(*_cdb16(0x93, 4000, 4, 1))  # no data: zeroes
    expected = bytearray(before)
    expected[1024:2560] = b"s" * 1536
    expected[4096 : 4096 + 2048 * 512] = b"t" * (2048 * 512)
    expected[3000 * 512 : 3008 * 512] = bytes(4096)
    expected[4000 * 512 : 4004 * 512] = bytes(2048)
    assert disk.path.read_bytes() == bytes(expected)
    assert disk.refused(*_cdb10(0x41, 0, 0), data=bytes(512)) == sense.INVALID_FIELD
    assert disk.refused(*_cdb10(0x41, 0, 1, 4), data=bytes(512)) == sense.INVALID_FIELD
    assert disk.refused(*_cdb10(0x41, 0, 1), data=b"s" * 511) == sense.INVALID_FIELD
    assert disk.refused(*_cdb10(0x41, BLOCKS, 1), data=bytes(512)) == sense.LBA_OUT_OF_RANGE


def test_the_rest(make: Any) -> None:
    disk = make()
    for cdb in (
        (0x00,),
        _cdb10(0x2B, BLOCKS - 1, 0),
        _cdb10(0x2F, 0, 1),
        _cdb10(0x35, 0, 0),
        (0x16, 0, 0, 0, 0, 0),
        (0x56, 0, *bytes(8)),
        (0x04, 0, 0, 0, 0, 0),
        (0x1B, 0, 0, 0, 1, 0),
        (0x1E, 0, 0, 0, 1, 0),
    ):
        assert disk.run(*cdb, *bytes(max(0, 6 - len(cdb)))) == b""
    assert disk.refused(*_cdb10(0x2B, BLOCKS, 0)) == sense.LBA_OUT_OF_RANGE
    assert disk.run(0x03, 0, 0, 0, 18, 0)[2:14:10] == bytes((5, 0x21))  # what was last is told when it is asked for
    assert disk.run(0x03, 0, 0, 0, 18, 0)[2] == 0
    assert disk.refused(*_cdb10(0x2F, 0, 1, 2)) == sense.INVALID_FIELD
    assert disk.refused(0x16, 1, 0, 0, 0, 0) == disk.refused(0x56, 2, *bytes(8)) == sense.INVALID_FIELD
    assert disk.refused(0xEE, *bytes(5)) == sense.INVALID_OPCODE


@pytest.mark.parametrize(
    ("cdb", "block", "found"),
    [
        (bytes(6), 512, (transfer.NONE, 0)),
        (bytes(_cdb10(0x28, 0, 3)), 512, (transfer.TO_HOST, 1536)),
        (bytes(_cdb10(0x2A, 0, 3)), 4096, (transfer.TO_DEVICE, 12288)),
        (bytes(_cdb10(0x2F, 0, 3)), 512, (transfer.NONE, 0)),
        (bytes(_cdb10(0x2F, 0, 3, 2)), 512, (transfer.TO_DEVICE, 1536)),
        (bytes(_cdb10(0x41, 0, 3)), 512, (transfer.TO_DEVICE, 512)),
        (bytes(_cdb16(0x93, 0, 3, 1)), 512, (transfer.NONE, 0)),
        (bytes((0x04, 0, 0, 0, 0, 0)), 512, (transfer.NONE, 0)),
        (bytes((0x04, 0x10, 0, 0, 0, 0)), 512, (transfer.TO_DEVICE, 4)),
        (bytes((0x04, 0x10, 0, 0, 0, 0)), 2048, (transfer.TO_DEVICE, 12)),
        (bytes((0x12, 0, 0, 1, 2, 0)), 512, (transfer.TO_HOST, 258)),
        (bytes((0x15, 0x10, 0, 0, 24, 0)), 512, (transfer.TO_DEVICE, 24)),
        (bytes((0x3C, 0, 0, 0, 0, 0, 1, 0, 0, 0)), 512, (transfer.TO_HOST, 65536)),
        (bytes((0xA4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0)), 2048, (transfer.TO_HOST, 256)),
        (bytes((0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0)), 512, (transfer.TO_HOST, 256)),
        (bytes((0x37, 0, 0, 0, 0, 0, 0, 1, 2, 0)), 512, (transfer.TO_HOST, 258)),
        (bytes((0x5A, 0, 0, 0, 0, 0, 0, 1, 2, 0)), 512, (transfer.TO_HOST, 258)),
        (bytes(_cdb16(0x9E, 0, 32)), 512, (transfer.TO_HOST, 32)),
        (bytes((0xE0, *bytes(15))), 512, (transfer.NONE, 0)),
    ],
)
def test_how_much_a_command_moves(cdb: bytes, block: int, found: tuple[str, int]) -> None:
    assert transfer.expected(cdb, block) == found
