"""IDE disks and CD drives of the pc board, from the guest's side: ports, bus-master DMA, packets, trays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.block import media
from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.waiting import wait_until

_BASE, _CD_BASE = 0x1F0, 0x170
_TABLE, _BUFFER, _LAST = 0x100000, 0x200000, 0x80000000
_BUSY, _DRQ, _ERR = 0x80, 0x08, 0x01


class Guest:
    """A pc with a disk of 1 MiB as the first master and a CD drive as the second."""

    def __init__(self, directory: Path, **properties: str) -> None:
        self.image = directory / "disk"
        self.image.write_bytes(b"".join(bytes([n % 251]) * 512 for n in range(2048)))
        (directory / "cd").write_bytes(b"".join(bytes([n]) * 2048 for n in range(64)))
        self.machine = simple_machine(memory=32 << 20)
        self.events: list[Any] = []
        self.machine.events.subscribe(self.events.append)
        self.access = BoardAccess(self.machine)
        board: Any = self.machine.board
        with self.machine.control:
            for name in ("disk", "cd"):
                node = {"driver": "file", "filename": str(directory / name), "node-name": name, "discard": "unmap"}
                self.machine.block.add_node(node | ({"read-only": True} if name == "cd" else {}))
            board.ready = False  # the channels take no hot-plug
            disk = {"driver": "ide-hd", "bus": "ide.0", "drive": "disk", "id": "hd"} | properties
            self.disk: Any = add_device(self.machine, disk, keyval=True)
            drive = {"driver": "ide-cd", "bus": "ide.1", "drive": "cd", "id": "cd"}
            self.cd: Any = add_device(self.machine, drive, keyval=True)
            board.ready = True
        self.function = PciFunction(self.access, 1 << 3 | 1)
        self.function.enable()
        self.engine = self.function.bars[4]

    def registers(self, base: int, *values: int) -> None:
        for offset, value in enumerate(values, 1):
            self.access.port_out(base + offset, 1, value)

    def wait(self, base: int = _BASE) -> int:
        wait_until(lambda: not self.access.port_in(base + 0x206, 1) & _BUSY)
        return self.access.port_in(base + 7, 1)

    def command(self, code: int, sector: int = 0, count: int = 1) -> int:
        self.registers(
            _BASE, 0, count & 0xFF, sector & 0xFF, sector >> 8 & 0xFF, sector >> 16 & 0xFF, 0xE0 | sector >> 24, code
        )
        return self.wait()

    def data(self, length: int, base: int = _BASE) -> bytes:
        return b"".join(self.access.port_in(base, 2).to_bytes(2, "little") for _ in range(length // 2))

    def dma(
        self,
        code: int,
        sector: int,
        count: int,
        table: list[tuple[int, int]],
        *,
        write: bool = False,
        feature: int = 0,
    ) -> int:
        """One transfer; the engine's status."""
        for i, (address, size) in enumerate(table):
            self.access.write(_TABLE + 8 * i, address.to_bytes(4, "little") + size.to_bytes(4, "little"))
        self.access.port_out(self.engine, 1, 0)
        self.access.port_out(self.engine + 2, 1, 6)
        self.access.port_out(self.engine + 4, 4, _TABLE)
        place = sector & 0xFF, sector >> 8 & 0xFF, sector >> 16 & 0xFF, 0xE0 | sector >> 24
        self.registers(_BASE, feature, count & 0xFF, *place, code)
        self.access.port_out(self.engine, 1, 1 if write else 9)
        self.wait()
        return self.access.port_in(self.engine + 2, 1)

    def packet(self, cdb: bytes, limit: int = 0xFFFE) -> tuple[int, bytes]:
        """One packet by PIO: the status at the end, and the data."""
        self.registers(_CD_BASE, 0, 0, 0, limit & 0xFF, limit >> 8, 0xA0, 0xA0)
        cdb = cdb.ljust(12, b"\0")
        for i in range(0, 12, 2):
            self.access.port_out(_CD_BASE, 2, int.from_bytes(cdb[i : i + 2], "little"))
        data = b""
        while (status := self.wait(_CD_BASE)) & _DRQ:
            length = self.access.port_in(_CD_BASE + 4, 1) | self.access.port_in(_CD_BASE + 5, 1) << 8
            data += self.data(length + 1 & ~1, _CD_BASE)[:length]
        return status, data

    def sense(self) -> tuple[int, int]:
        data = self.packet(b"\x03\0\0\0\x12")[1]
        return data[2], data[12]


@pytest.fixture
def guest(tmp_path: Path) -> Any:
    guest = Guest(tmp_path)
    yield guest
    guest.machine.close()


def test_identify(guest: Guest) -> None:
    assert guest.command(0xEC) & _DRQ
    words = guest.data(512)
    assert words[54:94] == b"EQUMH RADDSI K".ljust(40)
    assert int.from_bytes(words[120:124], "little") == 2048
    assert not guest.access.port_in(_BASE + 7, 1) & _DRQ


def test_pio(guest: Guest) -> None:
    guest.command(0x20, 3, 2)
    assert guest.data(512) == bytes([3]) * 512
    guest.wait()
    assert guest.data(512) == bytes([4]) * 512
    guest.command(0x30, 7)
    for _ in range(256):
        guest.access.port_out(_BASE, 2, 0x4241)
    assert not guest.wait() & _ERR
    assert guest.image.read_bytes()[7 * 512 : 8 * 512] == b"AB" * 256


def test_dma_scatters_and_gathers(guest: Guest) -> None:
    status = guest.dma(0xC8, 1, 2, [(_BUFFER, 0x200), (_BUFFER + 0x1000, 0x200 | _LAST)])
    assert status & 7 == 4
    assert guest.access.read(_BUFFER, 512) == bytes([1]) * 512
    assert guest.access.read(_BUFFER + 0x1000, 512) == bytes([2]) * 512
    guest.access.write(_BUFFER, b"w" * 1024)
    assert guest.dma(0xCA, 9, 2, [(_BUFFER, 0x400 | _LAST)], write=True) & 7 == 4
    assert guest.image.read_bytes()[9 * 512 : 11 * 512] == b"w" * 1024


def test_trim(guest: Guest) -> None:
    def trim(*ranges: tuple[int, int], feature: int = 1) -> int:
        data = b"".join((sector | length << 48).to_bytes(8, "little") for sector, length in ranges)
        guest.access.write(_BUFFER, data.ljust(512, b"\0"))
        assert guest.dma(0x06, 0, 1, [(_BUFFER, 0x200 | _LAST)], write=True, feature=feature) & 7 == 4
        return guest.access.port_in(_BASE + 7, 1)

    before = guest.image.read_bytes()
    assert trim((64, 8), (2048 - 8, 9)) & _ERR  # the second is not all on the disk
    assert guest.image.read_bytes() == before
    assert not trim((16, 8), (7, 0), (104, 16)) & _ERR
    expected = bytearray(before)
    expected[16 * 512 : 24 * 512], expected[104 * 512 : 120 * 512] = bytes(8 * 512), bytes(16 * 512)
    assert guest.image.read_bytes() == expected
    guest.registers(_BASE, 0, 1, 0, 0, 0, 0xE0, 0x06)
    assert guest.wait() & _ERR


def test_places_by_cylinder_head_and_sector(tmp_path: Path) -> None:
    guest = Guest(tmp_path, cyls="1000", heads="2", secs="1")
    guest.registers(_BASE, 0, 3, 1, 300 & 0xFF, 300 >> 8, 0xA1, 0x20)
    guest.wait()
    for sector in (601, 602, 603):
        assert guest.data(512) == bytes([sector % 251]) * 512
        guest.wait()
    place = [guest.access.port_in(_BASE + register, 1) for register in (3, 4, 5, 6)]
    assert place == [1, 302 & 0xFF, 302 >> 8, 0xA0]
    guest.machine.close()


@pytest.mark.parametrize(
    ("table", "count", "status"),
    [([(_BUFFER, 0x10 | _LAST)], 1, 0), ([(_BUFFER, 0x200 | _LAST)], 2, 0), ([(_BUFFER, 0x1000 | _LAST)], 1, 5)],
    ids=["shorter than a sector", "shorter than the request", "longer"],
)
def test_tables_that_do_not_fit(guest: Guest, table: list[tuple[int, int]], count: int, status: int) -> None:
    assert guest.dma(0xC8, 0, count, table) & 7 == status


def test_sectors_beyond_the_end(guest: Guest) -> None:
    assert guest.command(0x20, 2048) & _ERR
    assert guest.access.port_in(_BASE + 1, 1) == 4
    assert guest.dma(0xC8, 2047, 2, [(_BUFFER, 0x400 | _LAST)]) & 4
    assert guest.access.port_in(_BASE + 7, 1) & _ERR


def test_without_permission_no_memory_is_touched(guest: Guest) -> None:
    guest.access.write(_BUFFER, b"q" * 512)
    guest.function.set_config(4, 2, 3)
    guest.dma(0xC8, 1, 1, [(_BUFFER, 0x200 | _LAST)])
    assert guest.access.read(_BUFFER, 512) == b"q" * 512


def test_packets(guest: Guest) -> None:
    assert guest.packet(b"\x25")[1] == (63).to_bytes(4, "big") + (2048).to_bytes(4, "big")
    assert guest.packet(b"\x28\0\0\0\0\5\0\0\2", 1000)[1] == bytes([5]) * 2048 + bytes([6]) * 2048
    status, data = guest.packet(b"\x28\0\0\0\0\x40\0\0\1")
    assert status & _ERR and not data and guest.sense() == (5, 0x21)
    assert guest.packet(b"\xff")[0] & _ERR and guest.sense() == (5, 0x20)


def test_the_tray_moves_for_guest_and_user(guest: Guest) -> None:
    layer, control = guest.machine.block, guest.machine.control
    backend = layer.find_qdev("cd")
    guest.packet(b"\x1e\0\0\0\1")
    with control:
        assert guest.cd.medium_locked
        with pytest.raises(QobraError, match="is locked and force was not specified"):
            media.eject(backend, "cd", force=False)
    assert guest.packet(b"\x4a\1\0\0\x10\0\0\0\x08")[1][4] == 1  # the guest is asked
    assert guest.packet(b"\x1b\0\0\0\2")[0] & _ERR
    guest.packet(b"\x1e\0\0\0\0")
    guest.packet(b"\x1b\0\0\0\2")
    moved = [event["data"] for event in guest.events if event["event"] == "DEVICE_TRAY_MOVED"]
    assert moved == [{"device": "", "id": "cd", "tray-open": True}]
    with control:
        media.remove_medium(backend, "cd")
        node = layer.find_node("cd")
        media.insert_medium(backend, node)
        assert guest.cd.tray_open  # a medium in an open tray is not loaded yet
        media.close_tray(backend, "cd")
    # The guest sees the old medium go, and then the new one.
    senses = []
    for _ in range(2):
        guest.packet(b"\0")
        senses.append(guest.sense())
    assert senses == [(2, 0x3A), (6, 0x28)]
    assert not guest.packet(b"\0")[0] & _ERR


def test_a_failure_is_kept_until_the_next(guest: Guest) -> None:
    guest.packet(b"\xff")
    assert not guest.packet(b"\0")[0] & _ERR
    assert guest.sense() == guest.sense() == (5, 0x20)


def test_nothing_is_carried_out_before_a_change_of_the_medium_was_asked_for(guest: Guest) -> None:
    with guest.machine.control:
        guest.cd.tray_moved()
    assert guest.packet(b"\0")[0] & _ERR  # the old medium is gone
    assert guest.packet(b"\0")[0] & _ERR  # another one came
    assert guest.packet(b"\0")[0] == _ERR
    assert guest.access.port_in(_CD_BASE + 1, 1) == 0x60
    assert guest.access.port_in(_CD_BASE + 2, 1) == 0
    assert guest.sense() == (6, 0x28)
    assert guest.sense() == (0, 0x28)
    assert not guest.packet(b"\0")[0] & _ERR


def test_a_reset_closes_and_unlocks_the_tray(guest: Guest) -> None:
    guest.packet(b"\x1e\0\0\0\1")
    guest.cd.tray_open = True
    with guest.machine.control:
        guest.cd.reset()
    assert not guest.cd.tray_open and not guest.cd.medium_locked


def test_profiles_are_all_there_is_of_the_configuration(guest: Guest) -> None:
    data = guest.packet(b"\x46\0\0\0\0\0\0\0\x40")[1]
    assert data == bytes((0, 0, 0, 16, 0, 0, 0, 8, 0, 0, 3, 8, 0, 0x10, 0, 0, 0, 8, 1, 0))


def test_a_failed_read_stops_the_machine_and_is_retried(tmp_path: Path) -> None:
    guest = Guest(tmp_path, rerror="stop")
    with guest.machine.control:
        guest.machine.run_state.start()
    backend = guest.disk.backend
    original, failing = backend.read, True

    def read(offset: int, length: int) -> bytes:
        if failing:
            raise OSError(5, "Input/output error")
        return original(offset, length)  # type: ignore[no-any-return]

    backend.read = read
    guest.registers(_BASE, 0, 1, 2, 0, 0, 0xE0, 0x20)
    wait_until(lambda: guest.machine.run_state.state == "io-error")
    assert guest.access.port_in(_BASE + 0x206, 1) & _BUSY
    failing = False
    with guest.machine.control:
        guest.machine.run_state.cont()
    guest.wait()
    assert guest.data(512) == bytes([2]) * 512
    guest.machine.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"unit": "2"}, "Can't create IDE unit 2, bus supports only 2 units"),
        ({"unit": "0"}, "IDE unit 0 is in use"),
        ({"serial": "x" * 21}, "The serial number can't be longer than 20 characters"),
    ],
)
def test_refusals(guest: Guest, options: dict[str, str], text: str) -> None:
    board: Any = guest.machine.board
    with guest.machine.control:
        board.ready = False
        guest.machine.block.add_node({"driver": "null-co", "node-name": "n1", "size": 1 << 20})
        with pytest.raises(QobraError) as caught:
            add_device(guest.machine, {"driver": "ide-hd", "bus": "ide.0", "drive": "n1"} | options, keyval=True)
    assert caught.value.desc == text


_WRITE = st.tuples(
    st.sampled_from([*range(0x1F0, 0x1F8), 0x3F6, *range(0x170, 0x178), 0x376, *range(0xC000, 0xC010)]),
    st.sampled_from([1, 2, 4]),
    st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from([0x20, 0xC8, 0xCA, 0xA0, 0x25, 0x06, 0xEC, 0xB0, _TABLE])),
)


@given(st.lists(_WRITE, max_size=60), st.binary(max_size=128))
def test_hostile_writes(tmp_path_factory: Any, writes: list[tuple[int, int, int]], table: bytes) -> None:
    guest = Guest(tmp_path_factory.mktemp("ide"))
    try:
        guest.access.write(_TABLE, table)
        for port, width, value in writes:
            guest.access.port_out(port, width, value & (1 << 8 * width) - 1)
            guest.access.port_in(port, width)
        for base in (_BASE, _CD_BASE):
            guest.access.port_out(base + 0x206, 1, 4)
            guest.access.port_out(base + 0x206, 1, 0)
        assert guest.command(0xEC) & _DRQ
    finally:
        guest.machine.close()


def test_diagnosis_selects_the_first_device(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.access.port_out(_BASE + 6, 1, 0x10)
    guest.access.port_out(_BASE + 7, 1, 0x90)
    assert guest.access.port_in(_BASE + 6, 1) & 0x10 == 0
    assert guest.access.port_in(_BASE + 1, 1) == 1
    guest.machine.close()


def test_a_stopped_engine_has_ended_what_was_begun(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.access.write(_TABLE, _BUFFER.to_bytes(4, "little") + (512 | _LAST).to_bytes(4, "little"))
    guest.access.port_out(guest.engine + 4, 4, _TABLE)
    for _ in range(20):
        guest.access.port_out(guest.engine + 2, 1, 6)
        guest.registers(_BASE, 0, 1, 3, 0, 0, 0xE0, 0xC8)
        with guest.machine.control:  # no worker gets a word in between
            guest.access.port_out(guest.engine, 1, 9)
            guest.access.port_out(guest.engine, 1, 0)
            assert guest.access.port_in(guest.engine + 2, 1) == 4
            assert guest.access.port_in(_BASE + 7, 1) & (_BUSY | _DRQ | _ERR) == 0
    assert guest.access.read(_BUFFER, 512) == bytes([3]) * 512
    guest.machine.close()
