"""SD cards behind a standard host controller, from the driver's side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.waiting import wait_until

_TABLE, _BUFFER = 0x100000, 0x200000
_READ_MANY, _WRITE_MANY, _READ, _WRITE = 18, 25, 17, 24
_DMA, _COUNT, _STOP, _TO_HOST, _MANY = 1, 2, 4, 0x10, 0x20


class Guest:
    """A q35 with a card of 4 MiB, whose blocks are numbered."""

    def __init__(self, image: Path, *, read_only: bool = False) -> None:
        self.image = image
        image.write_bytes(b"".join(n.to_bytes(2, "little") * 256 for n in range(8192)))
        self.machine = simple_machine("x86_64", "q35", memory=32 << 20)
        self.access = BoardAccess(self.machine)
        board: Any = self.machine.board
        with self.machine.control:
            node = {"driver": "file", "filename": str(image), "node-name": "image", "read-only": read_only}
            self.machine.block.add_node(node)
            board.ready = False
            add_device(self.machine, {"driver": "sdhci-pci", "addr": "5"}, keyval=True)
            add_device(self.machine, {"driver": "sd-card", "drive": "image", "id": "card"}, keyval=True)
            board.ready = True
        function = PciFunction(self.access, 5 << 3)
        function.enable()
        self.base = function.bars[0]
        self.store(0x29, 1, 0x0F)
        self.store(0x2C, 2, 0x05)
        self.store(0x34, 4, 0xFFFFFFFF)

    def load(self, offset: int, width: int) -> int:
        return self.access.load(self.base + offset, width)

    def store(self, offset: int, width: int, value: int) -> None:
        self.access.store(self.base + offset, width, value)

    def status(self) -> int:
        return self.load(0x30, 4)

    def command(self, number: int, argument: int = 0, *, mode: int = 0, data: bool = False, kind: int = 2) -> int:
        """The answer, or -1 where the card is silent."""
        self.store(0x30, 4, 0xFFFFFFFF)
        self.store(0x08, 4, argument)
        self.store(0x0C, 4, mode | (number << 8 | (0x20 if data else 0) | kind) << 16)
        if self.load(0x32, 2) & 1:
            return -1
        assert self.load(0x30, 2) & 1
        return self.load(0x10, 4)

    def start(self) -> int:
        """To the state in which data are moved; the card's address."""
        self.command(0, kind=0)
        assert self.command(8, 0x1AA) == 0x1AA
        self.command(55)
        assert self.command(41, 0x40FF8000) >> 31
        self.command(2, kind=1)
        address = self.command(3) & 0xFFFF0000
        self.csd = self.long(9, address)
        self.command(7, address, kind=3)
        return address

    def long(self, number: int, argument: int) -> int:
        self.command(number, argument, kind=1)
        return sum(self.load(0x10 + 4 * n, 4) << 32 * n for n in range(4)) << 8

    def wait(self) -> None:
        wait_until(lambda: bool(self.status() & 0x8002))

    def close(self) -> None:
        self.machine.close()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path / "image")
    yield guest
    guest.close()


def _block(number: int) -> bytes:
    return number.to_bytes(2, "little") * 256


def test_the_way_to_the_data(guest: Guest) -> None:
    assert guest.load(0x24, 4) & 0xF0000 == 0xF0000
    address = guest.start()
    assert guest.command(13, address) >> 9 & 15 == 4
    # 4 MiB as the CSD of standard cards says it.
    size, multiplier, length = guest.csd >> 62 & 0xFFF, guest.csd >> 47 & 7, guest.csd >> 80 & 15
    assert (size + 1) << multiplier + 2 + length == 4 << 20
    assert guest.command(13, 0x12340000) == -1  # another card's
    assert guest.command(13, address) & 1 << 22
    assert guest.command(13, address) & 1 << 22 == 0
    assert guest.command(60) == -1
    assert guest.load(0xFE, 2) == 0x2401


def test_a_block_through_the_buffer(guest: Guest) -> None:
    guest.start()
    guest.store(0x04, 4, 512)
    guest.command(_READ, 7 * 512, mode=_TO_HOST, data=True)
    wait_until(lambda: bool(guest.status() & 0x20))
    assert guest.load(0x24, 4) & 0x800
    assert b"".join(guest.load(0x20, 4).to_bytes(4, "little") for _ in range(128)) == _block(7)
    assert guest.status() & 2
    guest.command(_WRITE, 9 * 512, data=True)
    wait_until(lambda: bool(guest.status() & 0x10))
    for _ in range(128):
        guest.store(0x20, 4, 0x11223344)
    guest.wait()
    assert guest.image.read_bytes()[9 * 512 : 10 * 512] == b"\x44\x33\x22\x11" * 128


def test_simple_dma_stops_at_boundaries(guest: Guest) -> None:
    guest.start()
    guest.store(0x00, 4, _BUFFER)
    guest.store(0x04, 4, 512 | 16 << 16)  # boundaries every 4 KiB
    guest.command(_READ_MANY, 0, mode=_DMA | _COUNT | _STOP | _TO_HOST | _MANY, data=True)
    wait_until(lambda: bool(guest.status() & 8))
    assert guest.load(0, 4) == _BUFFER + 4096
    guest.store(0x30, 4, 8)
    guest.store(0x00, 4, _BUFFER + 0x10000)
    wait_until(lambda: bool(guest.status() & 0x0A))
    guest.wait()
    assert guest.access.read(_BUFFER, 4096) == b"".join(map(_block, range(8)))
    assert guest.access.read(_BUFFER + 0x10000, 4096) == b"".join(map(_block, range(8, 16)))
    assert guest.load(0x06, 2) == 0


def test_tables_of_memory(guest: Guest) -> None:
    address = guest.start()
    pieces = ((_BUFFER, 1000), (_BUFFER + 0x1000, 1048))
    table = b"".join(b"\x21\0" + size.to_bytes(2, "little") + at.to_bytes(4, "little") for at, size in pieces)
    guest.access.write(_TABLE, table[:8] + b"\x31\0\0\0" + (_TABLE + 0x100).to_bytes(4, "little"))
    guest.access.write(_TABLE + 0x100, b"\x23" + table[9:])
    guest.store(0x28, 1, 0x10)
    guest.store(0x58, 4, _TABLE)
    guest.store(0x04, 4, 512 | 4 << 16)
    data = bytes(n % 253 for n in range(2048))
    guest.access.write(_BUFFER, data[:1000])
    guest.access.write(_BUFFER + 0x1000, data[1000:])
    guest.command(_WRITE_MANY, 100 * 512, mode=_DMA | _COUNT | _STOP | _MANY, data=True)
    guest.wait()
    assert guest.image.read_bytes()[100 * 512 :][:2048] == data
    assert guest.command(13, address) >> 9 & 15 == 4
    guest.access.write(_TABLE, bytes(8))
    guest.store(0x06, 2, 4)
    guest.command(_READ_MANY, 0, mode=_DMA | _COUNT | _STOP | _TO_HOST | _MANY, data=True)
    assert guest.load(0x32, 2) & 0x200
    assert guest.load(0x24, 4) & 6 == 0


def test_what_is_refused(guest: Guest, tmp_path: Path) -> None:
    address = guest.start()
    assert guest.command(_READ, 4 << 20, mode=_TO_HOST, data=True) & 1 << 30
    assert guest.command(_READ, 3, mode=_TO_HOST, data=True) & 1 << 30
    assert guest.command(13, address) >> 9 & 15 == 4
    with pytest.raises(QobraError, match="Cannot use read-only drive as SD card"):
        Guest(tmp_path / "other", read_only=True)


def test_erasing(guest: Guest) -> None:
    guest.start()
    guest.command(32, 2 * 512)
    guest.command(33, 3 * 512)
    assert guest.command(38, kind=3) & 1 << 28 == 0
    wait_until(lambda: guest.image.read_bytes()[1024:2048] == bytes(1024))
    assert guest.command(38, kind=3) & 1 << 28
    assert guest.image.read_bytes()[2048:2560] == _block(4)


def test_a_card_of_an_odd_size(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(bytes(1536))
    machine = simple_machine("x86_64", "q35", memory=1 << 20)
    board: Any = machine.board
    with machine.control:
        machine.block.add_node({"driver": "file", "filename": str(tmp_path / "odd"), "node-name": "odd"})
        board.ready = False
        add_device(machine, {"driver": "sdhci-pci"}, keyval=True)
        with pytest.raises(QobraError, match="Invalid SD card size: 1536 bytes"):
            add_device(machine, {"driver": "sd-card", "drive": "odd"}, keyval=True)
    machine.close()


_WRITES = st.tuples(st.integers(0, 0x5F), st.sampled_from((1, 2, 4)), st.integers(0, 0xFFFFFFFF))
_COMMANDS = st.tuples(
    st.sampled_from((0, 6, 7, 9, 12, 13, 16, 17, 18, 24, 25, 32, 33, 38, 41, 51, 55)), st.integers(0, 63), st.booleans()
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(_WRITES, _COMMANDS), max_size=25), st.binary(max_size=64))
def test_the_driver_may_do_anything(tmp_path: Path, acts: list[Any], table: bytes) -> None:
    guest = Guest(tmp_path / "any")
    address = guest.start()
    guest.access.write(_TABLE, table)
    guest.store(0x00, 4, _BUFFER)
    guest.store(0x04, 4, 512 | 3 << 16)
    guest.store(0x58, 4, _TABLE)
    for first, second, third in acts:
        if isinstance(third, bool):
            guest.store(0x08, 4, address)
            guest.store(0x0C, 4, second | (first << 8 | (0x20 if third else 0) | 2) << 16)
        else:
            guest.store(first, second, third & (1 << 8 * second) - 1)
        guest.load(first, 4)
        guest.load(0x20, 4)
    guest.close()


def test_the_card_says_that_it_is_like_qemus(guest: Guest) -> None:
    address = guest.start()
    guest.command(7, kind=0)
    assert guest.long(10, address) >> 8 == 0xAA58_5951_454D_5521_01DE_ADBE_EF00_62
    assert guest.csd >> 8 == 0x0026_0032_5F59_E003_FFFF_DFFF_9260_00


def test_the_functions_that_could_be_switched_to(guest: Guest) -> None:
    guest.start()
    guest.store(0x04, 4, 64)
    guest.command(6, 0x00FFFFF1, mode=_TO_HOST, data=True)
    wait_until(lambda: bool(guest.status() & 0x20))
    data = b"".join(guest.load(0x20, 4).to_bytes(4, "little") for _ in range(16))
    assert data.rstrip(b"\0").hex() == "0001800180018001800180438003fffff1"


def test_a_command_without_an_answer_is_over_too(guest: Guest) -> None:
    guest.start()
    assert guest.command(60) == -1
    assert guest.status() & 0x18003 == 0x18001
    assert guest.command(60, kind=3) == -1
    assert guest.status() & 0x18003 == 0x18003


@pytest.mark.parametrize(
    ("version", "capabilities", "complaint"),
    [
        (2, 0x3489, "SD timeout clock frequency"),
        (2, 0x4034, "SD base clock frequency"),
        (2, 0x0934, "SD base clock frequency"),
        (2, 0x334B4, "block size can be"),
        (3, 1 << 30, "slot-type not supported"),
        (3, 0x30000, "block size can be"),
        (2, 0, None),
        (2, 0xC0003FB4, None),
        (3, 0xFFFFFFFF_3FFCFFFF, None),
    ],
)
def test_what_a_controller_can_say_of_itself(version: int, capabilities: int, complaint: str | None) -> None:
    machine = simple_machine("x86_64", "pc", memory=32 << 20)
    options = {"driver": "sdhci-pci", "sd-spec-version": version, "capareg": capabilities}
    try:
        with machine.control:
            if complaint is None:
                add_device(machine, options, keyval=False)
            else:
                with pytest.raises(QobraError, match=f"^{complaint}"):
                    add_device(machine, options, keyval=False)
    finally:
        machine.close()
