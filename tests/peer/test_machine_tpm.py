"""TPMs: registers, tables and what is told are QEMU's; with swtpm they do what TPMs do, and move with machines."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from struct import unpack_from
from typing import Any

import pytest

from qobra.testing.guest import Access
from qobra.testing.system import SystemProgram, peer_available
from qobra.testing.tpm import Swtpm, swtpm_available
from qobra.testing.waiting import wait_until

pytestmark = pytest.mark.skipif(not swtpm_available(), reason="swtpm is not installed")
with_peer = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_BASE = 0xFED40000
_STARTUP = bytes.fromhex("80010000000c000001440000")
_GET_RANDOM = bytes.fromhex("80010000000c0000017b0010")
_PCR_READ = bytes.fromhex("800100000014000001" + "7e" + "00000001" + "000b" + "03" + "010000")
_PCR_EXTEND = bytes.fromhex(
    "800200000041" + "00000182" + "00000000" + "00000009" + "40000009" + "0000" + "00" + "0000" + "00000001" + "000b"
) + bytes(range(32))
_CAPABILITIES = bytes.fromhex("8001000000160000017a000000060000010500000001")  # the manufacturer


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[SystemProgram, Swtpm]]]:
    """A program with a TPM of its own."""
    with ExitStack() as stack:
        count = 0

        def begin(*arguments: str, peer: bool = False, is_20: bool = True) -> tuple[SystemProgram, Swtpm]:
            nonlocal count
            count += 1
            directory = tmp_path / str(count)
            directory.mkdir()
            swtpm = stack.enter_context(Swtpm(directory, is_20=is_20))
            given = [*swtpm.arguments(), *arguments]
            return stack.enter_context(SystemProgram(directory, "x86_64", *given, peer=peer)), swtpm

        yield begin


def _by_fifo(guest: Access, command: bytes) -> bytes:
    """A driver as the interface's specification has it."""
    guest.store(_BASE, 1, 0x02)
    assert guest.load(_BASE, 1) & 0xA0 == 0xA0
    guest.store(_BASE + 0x18, 4, 0x40)
    for value in command:
        guest.store(_BASE + 0x24, 1, value)
    assert guest.load(_BASE + 0x18, 1) & 0x88 == 0x80
    guest.store(_BASE + 0x18, 4, 0x20)
    wait_until(lambda: bool(guest.load(_BASE + 0x18, 1) & 0x10))
    response = bytearray()
    while guest.load(_BASE + 0x18, 1) & 0x10:
        response.append(guest.load(_BASE + 0x24, 1))
    guest.store(_BASE + 0x18, 4, 0x40)
    guest.store(_BASE, 1, 0x20)
    return bytes(response)


def _by_buffer(guest: Access, command: bytes) -> bytes:
    guest.store(_BASE + 0x08, 4, 1)
    assert guest.load(_BASE + 0x0C, 4) == 1
    guest.store(_BASE + 0x40, 4, 1)
    buffer = guest.load(_BASE + 0x5C, 4)
    guest.write(buffer, command)
    guest.store(_BASE + 0x4C, 4, 1)
    wait_until(lambda: not guest.load(_BASE + 0x4C, 4))
    assert guest.load(_BASE + 0x44, 4) == 0
    length = int.from_bytes(guest.read(buffer + 2, 4), "big")
    response = guest.read(buffer, length)
    guest.store(_BASE + 0x40, 4, 2)
    guest.store(_BASE + 0x08, 4, 2)
    return response


_DRIVERS = {"tpm-tis": _by_fifo, "tpm-crb": _by_buffer}
_PLACES = [("pc", "tpm-tis"), ("q35", "tpm-crb"), ("q35", "tpm-tis"), ("pc", "tpm-crb")]


@pytest.mark.parametrize(("board", "model"), _PLACES)
def test_a_tpm_works(start: Callable[..., Any], board: str, model: str) -> None:
    program, _swtpm = start("-machine", board, "-device", f"{model},tpmdev=t")
    execute = _DRIVERS[model]
    assert execute(program.guest, _GET_RANDOM)[6:10] == bytes.fromhex("00000100")  # not started yet
    assert execute(program.guest, _STARTUP)[6:10] == bytes(4)
    first, second = (execute(program.guest, _GET_RANDOM) for _ in range(2))
    assert len(first) == len(second) == 28
    assert first != second
    before = execute(program.guest, _PCR_READ)
    assert before[6:10] == bytes(4)
    assert execute(program.guest, _PCR_EXTEND)[6:10] == bytes(4)
    assert execute(program.guest, _PCR_READ)[-32:] != before[-32:]
    assert program.qmp("query-tpm") == [
        {"id": "t", "model": model, "options": {"type": "emulator", "data": {"chardev": "tpmctl"}}}
    ]
    program.qmp("system_reset")
    program.wait_event("RESET")
    assert execute(program.guest, _GET_RANDOM)[6:10] == bytes.fromhex("00000100")


class Fifo:
    """The registers of five localities."""

    model = "tpm-tis"

    def __init__(self, guest: Access, rnd: random.Random) -> None:
        self.guest, self._rnd = guest, rnd
        self._pending = b""

    def act(self) -> None:
        rnd, guest = self._rnd, self.guest
        page = _BASE + (rnd.choice((0, 0, 1, 2, 3, 4)) << 12)
        kind = rnd.randrange(12)
        if kind == 0:
            guest.store(page, 1, rnd.choice((0x02, 0x20, 0x10, 0x08, 0x0A, 0x22, 0xFF)))
        elif kind == 1:
            guest.store(page, 1, 0x02)
        elif kind == 2:
            guest.store(page + 0x18, 4, rnd.choice((0x40, 0x20, 0x02, 0x60, 0x42, 0xFF, 1 << 24)))
            self._settle()
        elif kind == 3:
            guest.store(page + 0x18, 1, rnd.choice((0x40, 0x20, 0x02)))
            self._settle()
        elif kind == 4:
            guest.store(page + 0x08, 4, rnd.choice((0x80000087, 0x80000080, 0x87, 0, rnd.getrandbits(32))))
        elif kind == 5:
            guest.store(page + 0x10, 4, rnd.choice((0x80, 1, 2, 4, 0xFF, 0)))
        elif kind == 6:
            register = rnd.choice((0x0C, 0x14, 0x28, 0x30, 0x31, 0x32, 0xF00, 0x4C, 0xC0, 0x01, 0x19, 0x1B))
            guest.store(page + register, rnd.choice((1, 2, 4)) if not register & 1 else 1, rnd.getrandbits(8))
        elif kind < 9:
            self._put(page, rnd.choice((_CAPABILITIES, _STARTUP, _PCR_READ)))
        else:
            self._put(page, rnd.choice((_CAPABILITIES, _CAPABILITIES[:7], b"\x80\1\0\0\0\x0a")))
            guest.store(page + 0x18, 4, 0x20)
            self._settle()

    def _put(self, page: int, command: bytes) -> None:
        while command:
            width = self._rnd.choice((1, 1, 2, 4))
            piece, command = command[:width], command[width:]
            width = len(piece) if len(piece) != 3 else 1
            command = piece[width:] + command
            register = self._rnd.choice((0x24, 0x80, 0x84))
            self.guest.store(page + register, width, int.from_bytes(piece[:width], "little"))

    def _settle(self) -> None:
        time.sleep(0.02)  # a command may be under way, and nothing tells

    def shown(self) -> list[int]:
        guest, found = self.guest, []
        for page in range(_BASE, _BASE + 0x5000, 0x1000):
            found += [guest.load(page, 1)]
            found += [guest.load(page + register, 4) for register in (0x08, 0x0C, 0x10, 0x14, 0x18, 0x30, 0xF00)]
            found += [guest.load(page + 0x18, 1), guest.load(page + 0x19, 2), guest.load(page + 0x1A, 1)]
            if self._rnd.random() < 0.3:
                found.append(guest.load(page + self._rnd.choice((0x24, 0x80, 0x88)), self._rnd.choice((1, 2, 4))))
        return found


class Buffer:
    """The registers of the command response buffer."""

    model = "tpm-crb"

    def __init__(self, guest: Access, rnd: random.Random) -> None:
        self.guest, self._rnd = guest, rnd

    def act(self) -> None:
        rnd, guest = self._rnd, self.guest
        register = rnd.choice((0x08, 0x08, 0x40, 0x48, 0x4C, 0x4C, 0x44, 0x00, 0x0C, 0x30, 0x38, 0x50, 0x58, 0x5C))
        if rnd.random() < 0.3:
            guest.write(_BASE + 0x80, rnd.choice((_CAPABILITIES, _STARTUP, _PCR_READ)))
        register += rnd.choice((0, 0, 0, 1, 2))
        width = 1 if register & 1 else 2 if register & 2 else rnd.choice((1, 4))
        guest.store(_BASE + register, width, rnd.choice((1, 2, 4, 8, 3, 0, 0xFF)))
        time.sleep(0.02)  # a command may be under way, and nothing else tells

    def shown(self) -> list[int]:
        return [self.guest.load(_BASE + register, 4) for register in range(0, 0x100, 4)]


@with_peer
@pytest.mark.parametrize("kind", [Fifo, Buffer], ids=lambda kind: kind.model)
def test_registers_written_at_random(start: Callable[..., Any], kind: Any, soak_scale: int) -> None:
    programs = [start("-machine", "pc", "-device", f"{kind.model},tpmdev=t", peer=peer)[0] for peer in (False, True)]
    for seed in range(2 * soak_scale):
        sides = [kind(program.guest, random.Random(seed)) for program in programs]
        for step in range(40):
            for side in sides:
                side.act()
            here, there = (side.shown() for side in sides)
            assert here == there, (seed, step)
        for program in programs:
            program.qmp("system_reset")
            program.wait_event("RESET")


_TABLES = [("pc", "tpm-tis", True), ("pc", "tpm-tis", False), ("q35", "tpm-crb", True)]
_TABLES += [("q35", "tpm-crb,ppi=off", True)]


@with_peer
@pytest.mark.parametrize(("board", "device", "is_20"), _TABLES)
def test_tables(start: Callable[..., Any], board: str, device: str, is_20: bool) -> None:
    """The device of the DSDT, TPM2 or TCPA but for the header, and the files of fw_cfg are the same to the byte."""
    found = []
    for peer in (False, True):
        program, _swtpm = start("-machine", board, "-device", f"{device},tpmdev=t", peer=peer, is_20=is_20)
        files = _fw_cfg_files(program.guest)
        tables = files["etc/acpi/tables"]
        signature = b"TPM2\x4c" if is_20 else b"TCPA"
        at = tables.index(signature)
        table = tables[at + 36 : at + unpack_from("<I", tables, at + 4)[0]]
        found.append((_tpm_device(tables), table, {name: data for name, data in files.items() if "tpm" in name}))
    assert found[0] == found[1]


def _fw_cfg_files(guest: Access) -> dict[str, bytes]:
    def read(key: int, length: int) -> bytes:
        guest.port_out(0x510, 2, key)
        return bytes(guest.port_in(0x511, 1) for _ in range(length))

    count = int.from_bytes(read(0x19, 4), "big")
    listing = read(0x19, 4 + 64 * count)
    entries = (unpack_from(">IHH56s", listing, 4 + 64 * n) for n in range(count))
    named = {name.rstrip(b"\0").decode(): (key, size) for size, key, _reserved, name in entries}
    wanted = ("etc/acpi/tables", "etc/tpm/config", "etc/tpm/log")
    return {name: read(key, min(size, 10240)) for name, (key, size) in named.items() if name in wanted}


def _tpm_device(tables: bytes) -> bytes:
    at = tables.index(b"TPM_\x08_HID")
    start = tables.rindex(b"\x5b\x82", 0, at)
    lead = tables[start + 2]
    length = lead & 0x0F if lead >> 6 else lead
    for n in range(lead >> 6):
        length |= tables[start + 3 + n] << 4 + 8 * n
    return tables[start : start + 2 + length]


@pytest.mark.parametrize("model", ["tpm-tis", "tpm-crb"])
def test_a_migration_takes_the_tpm_along(tmp_path: Path, start: Callable[..., Any], model: str) -> None:
    """What was measured before is found after, though the other emulator had never heard of it."""
    address = f"unix:{tmp_path}/migration"
    device = ["-machine", "q35", "-device", f"{model},tpmdev=t"]
    there, _swtpm = start(*device, "-incoming", address)
    here, _swtpm = start(*device)
    execute = _DRIVERS[model]
    assert execute(here.guest, _STARTUP)[6:10] == bytes(4)
    assert execute(here.guest, _PCR_EXTEND)[6:10] == bytes(4)
    measured = execute(here.guest, _PCR_READ)
    assert measured[-32:] not in (bytes(32), b"")
    here.qmp("migrate", {"uri": address})
    wait_until(lambda: here.qmp("query-migrate").get("status") == "completed")
    wait_until(lambda: there.qmp("query-status")["status"] != "inmigrate")
    assert execute(there.guest, _PCR_READ) == measured
