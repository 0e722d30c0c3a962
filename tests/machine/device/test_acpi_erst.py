"""Error records: written, read, found one after the other and cleared; what is kept, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.migration import machine_state, stream
from qobra.migration.ram import ram_blocks
from qobra.testing.guest import BoardAccess, PciFunction, firmware_file

_REGISTERS, _BUFFER = 0xE0000000, 0xE0010000
_NONE = (1 << 64) - 1
_MAGIC = 0x524F545354535245


class Guest:
    """A machine with the device, on a file of four slots unless it is there already."""

    def __init__(self, path: Path, slots: int = 4, **options: str) -> None:
        self.path = path
        self.machine = simple_machine(memory=1 << 20)
        board: Any = self.machine.board
        self.board = board
        try:
            with self.machine.control:
                self.machine.objects.create(
                    "memory-backend-file", "store", {"mem-path": str(path), "size": slots << 13, "share": True}
                )
                board.ready = False
                options = {"driver": "acpi-erst", "memdev": "store", "addr": "4", "id": "erst"} | options
                self.device: Any = add_device(self.machine, options, keyval=True)
                board.ready = True
        except QobraError:
            self.machine.close()
            raise
        self.access = BoardAccess(self.machine)
        self.place()

    def place(self) -> None:
        function = PciFunction(self.access, 4 << 3)
        for register, value in ((0x10, _REGISTERS), (0x14, _BUFFER), (0x04, 2)):
            function.set_config(register, 4, value)

    def act(self, action: int, argument: int | None = None) -> int:
        if argument is not None:
            self.access.store(_REGISTERS + 8, 8, argument)
        self.access.store(_REGISTERS, 4, action)
        return self.access.load(_REGISTERS + 8, 8)

    def _execute(self, operation: int, offset: int) -> int:
        self.act(operation)
        self.act(4, offset)
        self.act(5, 0x9C)
        assert self.act(6) == 0
        status = self.act(7)
        self.act(3)
        return status

    def write(self, id: int, data: bytes = b"", *, offset: int = 0, length: int | None = None) -> int:
        record = _record(id, data, length)
        self.access.write(_BUFFER + offset, record[: 8192 - offset])
        return self._execute(0, offset)

    def read(self, id: int, *, offset: int = 0) -> int:
        self.access.write(_BUFFER, bytes(8192))
        self.act(9, id)
        return self._execute(1, offset)

    def clear(self, id: int) -> int:
        self.act(9, id)
        return self._execute(2, 0)

    def ids(self) -> list[int]:
        return list(iter(lambda: self.act(8), _NONE))


def _record(id: int, data: bytes = b"", length: int | None = None) -> bytes:
    size = 128 + len(data) if length is None else length
    return pack("<4sHIHII", b"CPER", 1, 0xFFFFFFFF, 1, 1, 0) + pack("<I72xQ24x", size, id) + data


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    made = Guest(tmp_path / "store")
    yield made
    made.machine.close()


def test_records_come_and_go(guest: Guest) -> None:
    assert (guest.read(7), guest.clear(7), guest.act(10), guest.ids()) == (4, 5, 0, [])
    assert (guest.write(7, b"seven"), guest.write(8, b"eight", offset=64)) == (0, 0)
    assert (guest.act(10), guest.ids()) == (2, [7, 8])
    assert guest.read(8, offset=32) == 0
    assert guest.access.read(_BUFFER + 32, 133) == _record(8, b"eight")
    assert guest.read(0) == 0
    assert guest.access.read(_BUFFER, 133) == _record(7, b"seven")
    assert guest.write(7, b"again") == 0
    assert (guest.write(9), guest.write(10), guest.act(10)) == (0, 1, 3)
    assert (guest.clear(8), guest.clear(8), guest.act(10)) == (0, 5, 2)
    assert (guest.write(10), guest.read(7)) == (0, 0)
    assert guest.access.read(_BUFFER, 133) == _record(7, b"again")
    guest.ids()
    assert guest.ids() == [7, 10, 9]


def test_what_is_kept(guest: Guest) -> None:
    guest.write(7, b"seven")
    stored = guest.path.read_bytes()
    assert unpack_from("<QIIHHI", stored) == (_MAGIC, 8192, 8192, 0x100, 0, 1)
    assert unpack_from("<4Q", stored, 24) == (0, 7, 0, 0)
    assert stored[8192:16384] == _record(7, b"seven").ljust(8192, b"\xff")
    guest.machine.close()
    again = Guest(guest.path)
    assert (again.ids(), again.read(7)) == ([7], 0)
    assert again.access.read(_BUFFER, 133) == _record(7, b"seven")
    again.machine.close()


@pytest.mark.parametrize(
    ("id", "offset", "length"),
    [(0, 0, 128), (_NONE, 0, 128), (7, 0, 127), (7, 0, 8193), (7, 8065, 128), (7, 8000, 200), (7, 0xFFFFFFFF, 128)],
)
def test_no_records(guest: Guest, id: int, offset: int, length: int) -> None:
    guest.access.write(_BUFFER, _record(id, length=length))
    if offset < 8064:
        guest.access.write(_BUFFER + offset, _record(id, length=length))
    assert (guest._execute(0, offset), guest.act(10)) == (3, 0)
    assert guest.write(1) == 0
    assert (guest.read(_NONE), guest.read(1, offset=8065), guest.clear(0), guest.read(2)) == (3, 3, 3, 5)


def test_a_store_that_others_have_written_to(guest: Guest) -> None:
    guest.write(7)
    store = guest.device.memdev.ram.view
    for length in (0, 127, 8193, 0xFFFFFFFF):
        store[8192 + 20 : 8192 + 24] = pack("<I", length)
        assert guest.read(7) == 3
    store[20:24] = bytes(4)
    assert (guest.clear(7), guest.act(10)) == (0, 0xFFFFFFFF)


def test_what_is_told(guest: Guest) -> None:
    assert [guest.act(action) for action in (13, 14, 15, 16)] == [_BUFFER, 8192, 0, 100 << 32 | 10]
    tables = firmware_file(guest.access, "etc/acpi/tables") or b""
    at = tables.index(b"ERST")
    assert unpack_from("<III", tables, at + 36) == (48, 0, 27)
    execute = tables[at + 48 + 6 * 32 : at + 48 + 7 * 32]
    assert execute == pack("<BBBBBBBBQQQ", 5, 3, 0, 0, 0, 32, 0, 3, _REGISTERS + 8, 0x9C, 0xFFFFFFFF)


def test_state_moves(guest: Guest, tmp_path: Path) -> None:
    guest.write(7, b"seven")
    guest.write(8)
    assert guest.act(8) == 7
    guest.act(1)
    guest.act(4, 64)
    guest.act(9, 8)
    other = Guest(tmp_path / "other")
    records: dict[int, list[bytes]] = {}
    with guest.machine.control:
        saved = machine_state.save_devices(guest.machine, "running")
        memory = {block.name: bytes(block.ram.view) for block in ram_blocks(guest.board)}
    for kind, record in saved:
        records.setdefault(kind, []).append(bytes(record))
    with other.machine.control:
        for block in ram_blocks(other.board):
            block.ram.view[:] = memory[block.name]
        machine_state.load_devices(other.machine, records[stream.MACHINE][0], records[stream.DEVICE])
    other.act(5, 0x9C)
    assert other.act(7) == 0
    assert other.access.read(_BUFFER + 64, 128) == _record(8)
    assert (other.act(8), other.act(10)) == (8, 2)
    other.machine.close()


def test_a_reset_keeps_the_records(guest: Guest) -> None:
    guest.write(7)
    assert guest.act(8) == 7
    with guest.machine.control:
        guest.board.reset_all()
    guest.place()
    assert guest.access.load(_REGISTERS + 8, 8) == 7
    assert guest.act(8) == 7


@pytest.mark.parametrize(
    ("header", "slots", "options", "reason"),
    [
        (b"", 4, {"record_size": "0"}, "ERST record_size 0 is invalid"),
        (b"", 4, {"record_size": "12288"}, "ERST record_size 12288 is invalid"),
        (b"", 4, {"record_size": "65536"}, r"ACPI ERST requires storage size be multiple of record size \(65536KiB\)"),
        (pack("<QIIHHI", 1, 8192, 8192, 0x100, 0, 0), 4, {}, "ERST backend storage header is invalid"),
        (pack("<QIIHHI", _MAGIC, 8192, 0, 0x100, 0, 0), 4, {}, "ERST backend storage header is invalid"),
        (pack("<QIIHHI", _MAGIC, 8192, 24, 0x100, 0, 0), 4, {}, "ERST backend storage header is invalid"),
        (pack("<QIIHHI", _MAGIC, 3, 8192, 0x100, 0, 0), 4, {}, "ERST record_size 3 is invalid"),
        (b"", 4, {"memdev": ""}, "'memdev' property is not set"),
    ],
)
def test_refusals(tmp_path: Path, header: bytes, slots: int, options: dict[str, str], reason: str) -> None:
    path = tmp_path / "store"
    path.write_bytes(header.ljust(slots << 13, b"\0"))
    with pytest.raises(QobraError, match=f"^{reason}$"):
        Guest(path, slots, **options)
    assert path.read_bytes() == header.ljust(slots << 13, b"\0")


def test_slots_beyond_the_end(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(pack("<QIIHHI", _MAGIC, 8192, 1 << 20, 0x100, 0, 1).ljust(4 << 13, b"\0"))
    made = Guest(path)
    assert (made.write(7), made.read(7), made.read(0), made.clear(7), made.ids()) == (1, 5, 3, 5, [])
    made.machine.close()
