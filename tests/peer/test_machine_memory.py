"""Memory modules, plugged into QEMU's machine and ours by the same script."""

from __future__ import annotations

from pathlib import Path
from struct import pack
from typing import Any

import pytest

from qobra.testing.guest import Memory, ModernPci, PciFunction, Queue, driver_ok, start_driver
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


_VIRTIO_PLUGS: list[dict[str, Any]] = [
    {"id": "v"},
    {"id": "v", "memdev": "m0", "node": 3},
    {"id": "v", "memdev": "m0", "requested-size": 12345},
    {"id": "v", "memdev": "m0", "block-size": 3 << 20},
    {"id": "v", "memdev": "m0", "block-size": 1024},
    {"id": "v", "memdev": "small", "block-size": 4 << 20},
    {"id": "v", "memdev": "m0", "block-size": 4 << 20, "memaddr": 0x100200000},
    {"id": "v", "memdev": "m0", "memaddr": 4096},
    {"id": "v", "memdev": "m0", "memaddr": (1 << 64) - (2 << 20)},
    {"id": "v", "memdev": "m0", "requested-size": 16 << 20, "addr": "5"},
    {"id": "w", "memdev": "m0"},
]
_REQUESTS = (
    *((0, 0, 1), (3, 0, 1), (3, 0, 2), (0, 0, 1), (0, 1, 7), (0, 8, 1), (1, 0, 1), (3, 0, 64), (3, 0, 65)),
    *((0, 0, 0), (3, 0, 0), (1, 0, 9), (3, -1, 1), (0, -1, 1), (1, 1, 7), (0, 1, 2), (2, 0, 0)),
)


def _memory_script(program: SystemProgram, directory: Path) -> list[Any]:
    def qmp(command: str, **arguments: Any) -> Any:
        return program.qmp(command, {key.replace("_", "-"): value for key, value in arguments.items()})

    for id, size in (("m0", _SIZE), ("m1", _SIZE), ("small", 6 << 20)):
        qmp("object-add", qom_type="memory-backend-ram", id=id, size=size)
    found = [program.qmp("device_add", {"driver": "virtio-mem-pci"} | options) for options in _VIRTIO_PLUGS]
    where = {"path": "/machine/peripheral/v", "property": "requested-size"}
    found += [qmp("qom-set", **where, value=value) for value in (12345, 1 << 30, "x", 32 << 20)]
    found += [qmp("qom-set", **(where | {"property": name}), value=4 << 20) for name in ("size", "block-size")]
    found.append(qmp("object-del", id="m0"))
    for options in ({"label-size": 1}, {"label-size": 256 << 20}, {"uuid": "x"}, {"label-size": 128 << 10}):
        found.append(program.qmp("device_add", {"driver": "nvdimm", "id": "n", "memdev": "m1"} | options))
    found += [qmp("qom-get", path="/machine/peripheral/n", property=name) for name in ("size", "uuid", "slot")]
    found.append(qmp("device_add", driver="virtio-pmem-pci", id="p", memdev="small", memaddr=12345))
    found.append(qmp("device_add", driver="virtio-pmem-pci", id="p", memdev="small", addr="6"))
    found += [qmp("device_del", id=id) for id in ("v", "n", "p")]
    queries = ("query-memory-devices", "query-memory-size-summary", "query-acpi-ospm-status")
    found += [program.qmp(query) for query in queries]
    function = PciFunction(program.guest, 5 << 3)
    function.enable()
    transport = ModernPci(function)
    start_driver(transport, 1 << 32)
    found.append([transport.features(), *(transport.config(at, 8) for at in range(0, 72, 8))])
    memory = Memory()
    queue, base = Queue(transport, memory, 0), transport.config(16, 8)
    driver_ok(transport)
    for kind, block, count in _REQUESTS:
        there, back = memory.take(64), memory.take(64)
        program.guest.write(there, pack("<H6xQH6x", kind, base + (block << 21), count))
        queue.send([(there, 24, False), (back, 24, True)])
        queue.wait_used()
        found.append((kind, block, count, program.guest.read(back, 10)))
    found += [program.qmp(query) for query in queries]
    found.append(program.wait_event("MEMORY_DEVICE_SIZE_CHANGE")["data"])
    return found


def test_memory_devices_of_other_kinds(tmp_path: Path) -> None:
    answers = []
    for peer in (False, True):
        options = ("-machine", "pc,nvdimm=on", "-m", "64M,maxmem=4G,slots=3")
        with SystemProgram(tmp_path, "x86_64", *options, peer=peer) as program:
            answers.append(_memory_script(program, tmp_path))
    for own, theirs in zip(*answers, strict=True):
        assert own == theirs
