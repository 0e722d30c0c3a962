"""``acpi-erst``: what guests do with error records, at random, leaves the same in registers, buffer, file and table."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

import pytest

from qobra.testing.guest import Access, PciFunction, firmware_file
from qobra.testing.system import SystemProgram, peer_available, program_command

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_STEPS = 150
_REGISTERS, _BUFFER = 0xE0000000, 0xE0010000
_MAGIC = 0x524F545354535245


def _record(rnd: random.Random) -> bytes:
    length = rnd.choice((128, 200, 300, 400, 0, 104, 127, 4096, 8192, 9000, 0xFFFFFFFF))
    id = rnd.choice((1, 2, 3, 4, 5, 1 << 40, 0, (1 << 64) - 1))
    data = rnd.randbytes(20) + pack("<I", length) + rnd.randbytes(72) + pack("<Q", id)
    return data + rnd.randbytes(min(length, 420) - len(data) if length > len(data) else 0)


def _step(rnd: random.Random, guest: Access) -> None:
    offset = rnd.choice((0, 0, 0, 64, 4000, 4096 - 128, 4096 - 127, 8064, 8065, 1 << 31, (1 << 32) + 8))
    kind = rnd.randrange(8)
    if kind == 0:
        at, width = rnd.choice(((0, 4), (0, 8), (4, 4), (8, 1), (8, 2), (8, 4), (8, 8), (12, 4), (0, 1), (0, 2)))
        guest.store(_REGISTERS + at, width, rnd.choice((rnd.getrandbits(8 * width), rnd.randrange(20), 0x9C)))
        return
    if kind == 1:
        guest.store(_REGISTERS, 4, rnd.randrange(20))
        return

    def act(action: int, argument: int | None = None) -> None:
        if argument is not None:
            guest.store(_REGISTERS + 8, 8, argument)
        guest.store(_REGISTERS, 4, action)

    act(rnd.choice((0, 0, 1, 2, 0x0B, 3)))
    if kind < 5:
        guest.write(_BUFFER + (offset if offset < 4000 else 0), _record(rnd))
    if rnd.randrange(4):
        act(4, offset)
    act(9, rnd.choice((1, 2, 3, 4, 5, 1 << 40, 0, (1 << 64) - 1, 77)))
    act(5, rnd.choice((0x9C, 0x9C, 0x9C, 0x9C, 1, 0x19C)))


def _shown(guest: Access) -> list[Any]:
    found: list[Any] = [guest.load(_REGISTERS + at, width) for at, width in ((0, 4), (4, 4), (8, 8), (12, 4), (9, 1))]
    for action in (7, 6, 8, 10):
        guest.store(_REGISTERS, 4, action)
        found.append(guest.load(_REGISTERS + 8, 8))
    return [*found, guest.read(_BUFFER, 512), guest.read(_BUFFER + 3900, 300)]


def _options(path: Path, size: str, *options: str) -> list[str]:
    backend = f"memory-backend-file,id=store,mem-path={path},size={size},share=on"
    return ["-object", backend, "-device", ",".join(("acpi-erst,memdev=store,addr=4", *options))]


@pytest.mark.parametrize(("seed", "record_size"), [(1, 8192), (2, 8192), (3, 4096), (4, 16384)])
def test_records(tmp_path: Path, seed: int, record_size: int) -> None:
    answers = []
    for peer in (False, True):
        rnd = random.Random(seed)
        path = tmp_path / f"store-{peer}"
        options = _options(path, str(5 * record_size), f"record_size={record_size}")
        with SystemProgram(tmp_path, "x86_64", "-machine", "pc", "-m", "64", *options, peer=peer) as program:
            guest = program.guest
            function = PciFunction(guest, 4 << 3)
            found: list[Any] = [[function.config(at) for at in range(0, 256, 4)]]

            def place() -> None:
                function.set_config(0x10, 4, _REGISTERS)  # noqa: B023
                function.set_config(0x14, 4, _BUFFER)  # noqa: B023
                function.set_config(0x04, 2, 0x02)  # noqa: B023

            place()
            for step in range(_STEPS):
                _step(rnd, guest)
                found.append([step, *_shown(guest), path.read_bytes()])
            program.qmp("system_reset")
            program.wait_event("RESET")
            place()
            found.append(_shown(guest))
            for action in (5, 1, 5):
                guest.store(_REGISTERS + 8, 8, 0x9C)
                guest.store(_REGISTERS, 4, action)
                found.append(_shown(guest))
            tables = firmware_file(guest, "etc/acpi/tables") or b""
            at = tables.index(b"ERST")
            found.append(tables[at + 36 : at + unpack_from("<I", tables, at + 4)[0]])
        answers.append(found)
    for own, theirs in zip(*answers, strict=True):
        assert own == theirs


_HEADERS = [
    (1, 0x2000, 0x2000, 0x100, 0),
    (_MAGIC, 0x2000, 0x2000, 0x101, 0),
    (_MAGIC, 0x2000, 0x2000, 0x100, 5),
    (_MAGIC, 0x2000, 0x18, 0x100, 0),
    (_MAGIC, 0, 0x2000, 0x100, 0),
    (_MAGIC, 0x20000, 0x20000, 0x100, 0),
]


def _refusal(peer: bool, *options: str) -> str:
    command = [*program_command("x86_64", peer=peer), "-machine", "pc", "-display", "none", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr.partition(": ")[2]


def test_refusals(tmp_path: Path) -> None:
    cases = [["-device", "acpi-erst"]]
    cases += [_options(tmp_path / f"r{size}", "64K", f"record_size={size}") for size in (1000, 2048, 12288, 131072)]
    cases.append(_options(tmp_path / "odd", "20K"))
    for number, header in enumerate(_HEADERS):
        path = tmp_path / f"h{number}"
        path.write_bytes(pack("<QIIHHI", *header, 0).ljust(65536, b"\0"))
        cases.append(_options(path, "64K"))
    for options in cases:
        own = _refusal(False, *options)
        assert own == _refusal(True, *options)
        assert own
