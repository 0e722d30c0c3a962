"""Memory modules, plugged into QEMU's machine and ours by the same script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_SIZE = 128 << 20
_PLUGS: list[dict[str, Any]] = [
    {"id": "d0"},
    {"id": "d0", "memdev": "nope"},
    {"id": "d0", "memdev": "big"},
    {"id": "d0", "memdev": "m0", "slot": 9},
    {"id": "d0", "memdev": "m0", "node": 9},
    {"id": "d0", "memdev": "m0", "addr": 12345},
    {"id": "d0", "memdev": "m0", "addr": 1 << 32},
    {"id": "d0", "memdev": "m1"},
    {"id": "d1", "memdev": "m0"},
    {"id": "d1", "memdev": "m1", "slot": 0},
    {"id": "d1", "memdev": "m1", "addr": 1 << 32},
    {"id": "d1", "memdev": "m1"},
    {"id": "d2", "memdev": "m2"},
]


@pytest.mark.parametrize("board", ["pc", "q35"])
def test_the_life_of_a_module(tmp_path: Path, board: str) -> None:
    answers = []
    for peer in (False, True):
        with SystemProgram(tmp_path, "x86_64", "-machine", board, "-m", "64M,maxmem=2G,slots=2", peer=peer) as program:
            found: list[Any] = []
            for id, size in (("m0", _SIZE), ("m1", _SIZE), ("m2", _SIZE), ("big", 8 << 30)):
                program.qmp("object-add", {"qom-type": "memory-backend-ram", "id": id, "size": size})
            found.append(program.qmp("query-acpi-ospm-status"))
            found += [program.qmp("device_add", {"driver": "pc-dimm"} | options) for options in _PLUGS]
            queries = ("query-memory-devices", "query-memory-size-summary", "query-acpi-ospm-status")
            found += [program.qmp(query) for query in queries]
            found.append(program.qmp("device_del", {"id": "d1"}))
            found.append(program.qmp("object-del", {"id": "m1"}))
            guest = program.guest
            for slot in range(3):
                guest.port_out(0xA00, 4, slot)
                found.append([guest.port_in(0xA00 + offset, 4) for offset in range(0, 24, 4)])
            guest.store(1 << 32, 4, 0x12345678)
            found.append(guest.load(1 << 32, 4))
            guest.port_out(0xA00, 4, 1)
            guest.port_out(0xA04, 4, 0x103)
            guest.port_out(0xA08, 4, 0x80)
            found.append(program.wait_event("ACPI_DEVICE_OST")["data"])
            for flags in (2, 4, 8):
                guest.port_out(0xA14, 1, flags)
                found.append(guest.port_in(0xA14, 4))
            found.append(program.wait_event("DEVICE_DELETED")["data"])
            found += [program.qmp(query) for query in queries]
            found.append(program.qmp("object-del", {"id": "m1"}))
            answers.append(found)
    for own, theirs in zip(*answers, strict=True):
        assert own == theirs


def test_without_slots(tmp_path: Path) -> None:
    answers = []
    for peer in (False, True):
        with SystemProgram(tmp_path, "x86_64", "-machine", "pc", "-m", "64", peer=peer) as program:
            program.qmp("object-add", {"qom-type": "memory-backend-ram", "id": "m0", "size": _SIZE})
            answers.append(program.qmp("device_add", {"driver": "pc-dimm", "id": "d0", "memdev": "m0"}))
    assert answers[0] == answers[1]
