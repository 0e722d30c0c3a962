"""A SCSI disk, from the guest's side: what it answers that only drives for CDs would be asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.machine.scsi import sense
from qobra.testing.guest import BoardAccess, Memory, ModernPci, PciFunction
from qobra.testing.guest_drivers import ScsiDriver

_BLOCKS = 5 << 30
"""Of 512 bytes: more than a table of contents has room for."""


def _contents(form: int, *, first: int = 0, in_time: bool = False, room: int = 64) -> bytes:
    return bytes((0x43, 2 if in_time else 0, form, 0, 0, 0, first, 0, room, 0))


@pytest.fixture(params=[2048, _BLOCKS])
def disk(request: pytest.FixtureRequest) -> Iterator[tuple[ScsiDriver, int]]:
    blocks: int = request.param
    machine = simple_machine("x86_64", "pc", memory=16 << 20)
    board = machine.board
    assert board is not None
    with machine.control:
        machine.block.add_node({"driver": "null-co", "node-name": "n", "size": blocks * 512, "read-zeroes": True})
        board.ready = False
        add_device(machine, {"driver": "virtio-scsi-pci", "addr": "5"}, keyval=True)
        add_device(machine, {"driver": "scsi-hd", "drive": "n"}, keyval=True)
        board.ready = True
    function = PciFunction(BoardAccess(machine), 5 << 3)
    function.enable()
    driver = ScsiDriver(ModernPci(function), Memory())
    driver.command(bytes(6))  # the attention after power-on
    yield driver, blocks
    machine.close()


def test_it_has_a_table_of_contents_with_one_track(disk: tuple[ScsiDriver, int]) -> None:
    driver, blocks = disk
    end = (blocks & 0xFFFFFFFF).to_bytes(4, "big")
    track, lead_out = bytes((0, 0x14, 1, 0, 0, 0, 0, 0)), bytes((0, 0x16, 0xAA, 0)) + end

    def read(cdb: bytes) -> tuple[int, bytes]:
        _response, status, _sense, data = driver.command(cdb, read=cdb[8])
        return status, data.rstrip(b"\0")

    assert read(_contents(0)) == (0, (b"\0\x12\1\1" + track + lead_out).rstrip(b"\0"))
    assert read(_contents(0, first=0xAA)) == (0, (b"\0\x0a\1\1" + lead_out).rstrip(b"\0"))
    assert read(_contents(0, room=3)) == (0, b"\0\x12\1")
    assert read(_contents(1)) == (0, b"\0\x0a\1\1")
    assert read(_contents(2))[1][:4] == b"\0\x2e\1\1"
    if blocks == 2048:  # the first block is two seconds in, 75 to a second
        assert read(_contents(0, first=0xAA, in_time=True)) == (0, b"\0\x0a\1\1\0\x16\xaa\0\0\0\x1d\x17")


@pytest.mark.parametrize("cdb", [_contents(3), _contents(0, first=2)])
def test_what_is_no_table_of_contents(disk: tuple[ScsiDriver, int], cdb: bytes) -> None:
    _response, status, told, _data = disk[0].command(cdb, read=64)
    assert (status, (told[2], told[12], told[13])) == (2, sense.INVALID_FIELD)
