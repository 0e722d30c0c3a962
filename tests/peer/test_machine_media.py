"""Media that come and go, as the guest sees them: the same acts of guest and user, at random, on QEMU and on ours.

What is left out of the acts is in the table of differences of ``docs/machine.md``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qobra.testing.guest import Memory, ModernPci, PciFunction
from qobra.testing.guest_drivers import ScsiDriver
from qobra.testing.system import SystemProgram, peer_available
from qobra.testing.waiting import wait_until

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_STEPS = 40
_SCSI, _IDE = 6 << 3, 0x170
_FDC_STATUS, _FDC_FIFO = 0x3F4, 0x3F5
_BUSY, _DRQ = 0x80, 0x08

_PACKETS: dict[str, tuple[bytes, int]] = {
    "test unit ready": (bytes(6), 0),
    "request sense": (bytes((0x03, 0, 0, 0, 18, 0)), 18),
    "start": (bytes((0x1B, 0, 0, 0, 1, 0)), 0),
    "eject": (bytes((0x1B, 0, 0, 0, 2, 0)), 0),
    "load": (bytes((0x1B, 0, 0, 0, 3, 0)), 0),
    "prevent": (bytes((0x1E, 0, 0, 0, 1, 0)), 0),
    "allow": (bytes((0x1E, 0, 0, 0, 0, 0)), 0),
    "events": (bytes((0x4A, 1, 0, 0, 0x10, 0, 0, 0, 64, 0)), 64),
    "no events": (bytes((0x4A, 1, 0, 0, 0, 0, 0, 0, 8, 0)), 8),
    "events later": (bytes((0x4A, 0, 0, 0, 0x10, 0, 0, 0, 8, 0)), 8),
    "capacity": (bytes((0x25, *bytes(9))), 8),
    "read": (bytes((0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0)), 2048),
    "read behind the end": (bytes((0x28, 0, 0, 0, 0x04, 0x80, 0, 0, 1, 0)), 2048),
    "inquiry": (bytes((0x12, 0, 0, 0, 36, 0)), 36),
    "mechanism": (bytes((0xBD, *bytes(8), 8, 0, 0)), 8),
    "contents": (bytes((0x43, 0, 0, 0, 0, 0, 0, 0, 20, 0)), 20),
    "sessions": (bytes((0x43, 0, 1, 0, 0, 0, 0, 0, 20, 0)), 20),
    "capabilities": (bytes((0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 64, 0)), 64),
    "disc": (bytes((0x51, 0, 0, 0, 0, 0, 0, 0, 34, 0)), 34),
    "seek": (bytes((0x2B, *bytes(9))), 0),
}

Act = tuple[str, Any]
Acts = Callable[[random.Random], Act]


class Program:
    """One of the two programs, with a directory of its own."""

    def __init__(self, directory: Path, arguments: list[str], *, peer: bool) -> None:
        self.directory = directory / ("peer" if peer else "own")
        self.directory.mkdir()
        for name, sectors in (("a", 6144), ("b", 4096), ("c", 2880), ("d", 1440)):
            (self.directory / name).write_bytes(b"".join(n.to_bytes(4, "little") * 128 for n in range(sectors)))
        nodes = []
        for name in "abcd":
            nodes += ["-blockdev", f"file,node-name={name},filename={self.directory / name},read-only=on"]
        self.program = SystemProgram(self.directory, "x86_64", *nodes, *arguments, peer=peer)
        self._driver: ScsiDriver | None = None

    def act(self, act: Act) -> str:
        """Do it; all that can be seen of it, files and generated names aside."""
        kind, what = act
        answer = getattr(self, f"_{kind}")(what)
        shown = [
            (b["qdev"], b.get("tray_open"), b["locked"], "inserted" in b and b["inserted"]["node-name"])
            for b in self.program.qmp("query-block")
        ]
        events = [(event["event"], event.get("data")) for event in self.program.events]
        self.program.events.clear()
        text = str((answer, shown, events)).replace(str(self.directory), "DIRECTORY")
        return re.sub(r"#block\d+", "#block", text)

    def _user(self, request: tuple[str, dict[str, str] | None]) -> Any:
        command, arguments = request
        if arguments and "filename" in arguments:
            arguments = arguments | {"filename": str(self.directory / arguments["filename"])}
        answer = self.program.qmp(command, arguments)
        if command == "system_reset":
            self.program.wait_event("RESET")
            self._driver = None
        return answer

    def _scsi(self, name: str) -> Any:
        if self._driver is None:
            function = PciFunction(self.program.guest, _SCSI)
            function.enable()
            self._driver = ScsiDriver(ModernPci(function), Memory())
        cdb, length = _PACKETS[name]
        response, status, sense, data = self._driver.command(cdb, read=length)
        return response, status, sense[:18].hex() if status else data.hex()

    def _ide(self, name: str) -> Any:
        guest, (cdb, _length) = self.program.guest, _PACKETS[name]
        for offset, value in ((6, 0xA0), (1, 0), (4, 0xFE), (5, 0xFF), (7, 0xA0)):
            guest.port_out(_IDE + offset, 1, value)
        cdb = cdb.ljust(12, b"\0")
        for at in range(0, 12, 2):
            guest.port_out(_IDE, 2, cdb[at] | cdb[at + 1] << 8)

        def status() -> int:
            wait_until(lambda: not guest.port_in(_IDE + 0x206, 1) & _BUSY)
            return guest.port_in(_IDE + 7, 1)

        data = b""
        while status() & _DRQ:
            length = guest.port_in(_IDE + 4, 1) | guest.port_in(_IDE + 5, 1) << 8
            data += b"".join(guest.port_in(_IDE, 2).to_bytes(2, "little") for _ in range((length + 1) // 2))
        registers = [guest.port_in(_IDE + offset, 1) for offset in (1, 2, 7)]
        return registers[0], registers[1] & 7, registers[2], data.hex()

    def _port(self, access: tuple[int, int]) -> None:
        self.program.guest.port_out(*access[:1], 1, access[1])

    def _diskette(self, command: tuple[int, ...]) -> Any:
        guest = self.program.guest
        for value in command:
            guest.port_out(_FDC_FIFO, 1, value)

        def settle() -> None:
            # The host moves the data, or the DMA controller would, which nobody set up.
            wait_until(lambda: bool(guest.port_in(_FDC_STATUS, 1) & 0x80) or guest.port_in(_FDC_STATUS, 1) == 0x10)

        settle()
        found = bytearray()
        while guest.port_in(_FDC_STATUS, 1) & 0xD0 == 0xD0 and len(found) < 2000:
            found.append(guest.port_in(_FDC_FIFO, 1))
            if len(found) % 512 == 0:
                settle()
        return found.hex(), [guest.port_in(0x3F0 + offset, 1) for offset in (1, 2, 3, 4, 7)]


def _by_user(rnd: random.Random, drive: str, nodes: str) -> Act:
    node = rnd.choice(nodes)
    return "user", rnd.choice(
        [
            ("eject", {"id": drive}),
            ("eject", {"id": drive, "force": True}),
            ("blockdev-open-tray", {"id": drive}),
            ("blockdev-open-tray", {"id": drive, "force": True}),
            ("blockdev-close-tray", {"id": drive}),
            ("blockdev-remove-medium", {"id": drive}),
            ("blockdev-insert-medium", {"id": drive, "node-name": node}),
            ("blockdev-change-medium", {"id": drive, "filename": node, "format": "raw", "read-only-mode": "read-only"}),
            ("blockdev-change-medium", {"id": drive, "filename": "nowhere"}),
            ("system_reset", None),
        ]
    )


def _with_cd(kind: str) -> Acts:
    # A medium that comes while the guest has the tray open is not found by QEMU: the guest does not load.
    names = [name for name in _PACKETS if kind == "scsi" or name != "load"]

    def act(rnd: random.Random) -> Act:
        return _by_user(rnd, "drive", "ab") if rnd.random() < 0.4 else (kind, rnd.choice(names))

    return act


def _with_diskettes(rnd: random.Random) -> Act:
    chance = rnd.random()
    if chance < 0.25:
        return _by_user(rnd, "drive", "cd")
    if chance < 0.35:
        return "port", (0x3F0 + rnd.choice((2, 2, 4, 7)), rnd.choice((0x1C, 0x0C, 0x14, 0, 1, 2, 3, 0x80)))
    unit = rnd.choice((0, 0, 2, 4))
    if chance < 0.55:
        track, sector, last = rnd.choice((0, 0, 2, 79, 200)), rnd.choice((1, 2, 9, 18, 36)), rnd.choice((1, 2, 9))
        code = rnd.choice((0x46, 0xE6, 0x66, 0x4C, 0x49))
        return "diskette", (code, unit, track, unit >> 2, sector, 2, last, 0x1B, 0xFF)
    return "diskette", rnd.choice(
        [
            (0x0F, unit, rnd.choice((0, 1, 3, 79, 200))),
            (0x07, unit),
            (0x08,),
            (0x04, unit),
            (0x8F, unit, rnd.choice((0, 1, 5))),
            (0xCF, unit, rnd.choice((0, 1, 5))),
            (0x03, rnd.randrange(256), 3),
            (0x0E,),
            (0x2E,),
            (0x13, 0, rnd.randrange(256), rnd.randrange(256)),
            (0x12, rnd.choice((0, 0x80, 0x87, 3))),
            (0x94,),
            (0x14,),
            (0x1F,),
        ]
    )


_DRIVES: dict[str, tuple[list[str], Acts]] = {
    "scsi-cd": (
        ["-device", f"virtio-scsi-pci,id=s,addr={_SCSI >> 3}", "-device", "scsi-cd,id=drive,drive=a"],
        _with_cd("scsi"),
    ),
    "ide-cd": (["-device", "ide-cd,id=drive,drive=a,bus=ide.1"], _with_cd("ide")),
    "floppy": (["-device", "floppy,id=drive,drive=c"], _with_diskettes),
    "empty floppy": (["-device", "floppy,id=drive,unit=0,drive-type=144"], _with_diskettes),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("drive", _DRIVES)
def test_media_come_and_go(tmp_path: Path, drive: str, seed: int) -> None:
    arguments, acts = _DRIVES[drive]
    rnd = random.Random(f"{drive} {seed}")
    programs = [Program(tmp_path, ["-machine", "pc", "-m", "64", *arguments], peer=peer) for peer in (False, True)]
    done: list[Act] = []
    with programs[0].program, programs[1].program:
        if "floppy" in drive:
            for program in programs:
                program.act(("diskette", (0x03, 0xAF, 0x03)))  # the host moves the data
        for _ in range(_STEPS):
            done.append(acts(rnd))
            own, peer = (program.act(done[-1]) for program in programs)
            assert own == peer, done[-8:]


@pytest.mark.skipif(not peer_available("riscv64"), reason="qemu-system-riscv64 is not installed")
@pytest.mark.parametrize("legacy", ["true", "false"])
def test_registers_of_virtio_mmio(tmp_path: Path, legacy: str) -> None:
    arguments = ["-machine", "virt", "-m", "64", "-bios", "none", "-global", f"virtio-mmio.force-legacy={legacy}"]
    arguments += ["-blockdev", "null-co,node-name=n0,size=1048576,read-zeroes=on"]
    arguments += ["-device", "virtio-blk-device,drive=n0", "-device", "virtio-rng-device"]
    seen: list[dict[tuple[int, ...], int]] = []
    for peer in (False, True):
        found: dict[tuple[int, ...], int] = {}
        with SystemProgram(tmp_path, "riscv64", *arguments, peer=peer) as program:
            guest = program.guest
            for base in (0x10008000, 0x10007000, 0x10001000):  # a disk, random numbers, an empty slot
                for value in (1, 0x1000, 0xFFFFFFFF):
                    for offset in range(0, 0x180, 4):
                        if offset != 0x50:  # nobody is kicked
                            guest.store(base + offset, 4, value)
                            for shown in (0x10, 0x34, 0x40, 0x44, 0x60, 0x70, 0x120):
                                found[base, value, offset, shown] = guest.load(base + shown, 4)
                    guest.store(base + 0x70, 4, 0)
        seen.append(found)
    assert seen[0] == seen[1]
