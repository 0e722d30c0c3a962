"""virtio-mem, virtio-pmem, nvdimm and pc-dimm from the guest's side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from struct import pack, unpack_from
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.errors import QobraError
from qobra.machine.launch import attach_board, find_board, simple_machine
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch, hmp
from qobra.testing.guest import BoardAccess, Memory, ModernPci, PciFunction, Queue, driver_ok, start_driver

_MIB = 1 << 20
_BLOCK = 2 * _MIB
_PLUG, _UNPLUG, _UNPLUG_ALL, _STATE = range(4)
_ACK, _NACK, _BUSY, _ERROR = range(4)


class Guest:
    """A PC with room for memory devices."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.access = BoardAccess(machine)
        self.memory = Memory()
        self.events: list[dict[str, Any]] = []
        machine.events.subscribe(self.events.append)

    def call(self, command: str, **arguments: Any) -> Any:
        with self.machine.control:
            return dispatch.call(self.machine, command, {k.replace("_", "-"): v for k, v in arguments.items()})

    def plug(self, driver: str, id: str, memdev: str, **options: Any) -> Any:
        with self.machine.control:
            return add_device(self.machine, {"driver": driver, "id": id, "memdev": memdev} | options, keyval=False)

    def backend(self, id: str, size: int, **options: Any) -> None:
        kind = "memory-backend-file" if "mem-path" in options else "memory-backend-ram"
        with self.machine.control:
            self.machine.objects.create(kind, id, {"size": size} | options)

    def requests(self, slot: int) -> Queue:
        function = PciFunction(self.access, slot << 3)
        function.enable()
        self.transport = ModernPci(function)
        start_driver(self.transport, 1 << 32)
        queue = Queue(self.transport, self.memory, 0)
        driver_ok(self.transport)
        return queue

    def ask(self, queue: Queue, request: bytes, room: int) -> bytes:
        there, back = self.memory.take(64), self.memory.take(64)
        self.access.write(there, request)
        queue.send([(there, len(request), False), (back, room, True)])
        written = queue.wait_used()[1]
        return self.access.read(back, written)


@pytest.fixture
def guest() -> Iterator[Guest]:
    machine = simple_machine("x86_64", "pc", memory=32 * _MIB, max_memory=1 << 30, slots=2)
    yield Guest(machine)
    machine.close()


class MemDriver:
    """The driver of a virtio-mem device."""

    def __init__(self, guest: Guest, **options: Any) -> None:
        self.guest = guest
        guest.backend("m0", 32 * _MIB)
        guest.plug("virtio-mem-pci", "vm0", "m0", addr=5 << 3, **options)
        self.queue = guest.requests(5)
        self.base = guest.transport.config(16, 8)

    def ask(self, kind: int, first: int = 0, count: int = 0) -> tuple[int, int]:
        request = pack("<H6xQH6x", kind, self.base + first * _BLOCK, count)
        return unpack_from("<H6xH", self.guest.ask(self.queue, request, 24))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Plugged and requested blocks."""
        return tuple(self.guest.transport.config(at, 8) // _BLOCK for at in (40, 48))


def test_blocks_come_and_go_as_requested(guest: Guest) -> None:
    driver = MemDriver(guest, **{"requested-size": 8 * _MIB})
    assert driver.ask(_STATE, 0, 4) == (_ACK, 1)
    assert driver.ask(_PLUG, 1, 4) == (_ACK, 0)
    assert driver.ask(_PLUG, 5, 1)[0] == _NACK  # more than was requested
    assert driver.ask(_PLUG, 4, 1)[0] == _ERROR  # it is there already
    assert driver.ask(_STATE, 0, 4) == (_ACK, 2)
    assert driver.ask(_STATE, 1, 4) == (_ACK, 0)
    guest.access.store(driver.base + _BLOCK, 4, 0x1234)
    assert driver.ask(_UNPLUG, 0, 2)[0] == _ERROR
    assert driver.ask(_UNPLUG, 1, 1)[0] == _ACK
    assert guest.access.load(driver.base + _BLOCK, 4) == 0
    assert driver.sizes == (3, 4)
    guest.call("qom-set", path="/machine/peripheral/vm0", property="requested-size", value=32 * _MIB)
    assert guest.transport.isr() & 2
    assert driver.sizes == (3, 16)
    assert driver.ask(_UNPLUG_ALL)[0] == _ACK
    sizes = [event["data"]["size"] for event in guest.events if event["event"] == "MEMORY_DEVICE_SIZE_CHANGE"]
    assert sizes == [8 * _MIB, 6 * _MIB, 0]
    assert guest.call("query-memory-devices")[0]["data"] == {
        "id": "vm0", "memaddr": driver.base, "requested-size": 32 * _MIB, "size": 0, "max-size": 32 * _MIB,
        "block-size": _BLOCK, "node": 0, "memdev": "/objects/m0",
    }  # fmt: skip


def test_a_reset_of_the_device_keeps_the_memory_and_one_of_the_system_does_not(guest: Guest) -> None:
    driver = MemDriver(guest, **{"requested-size": 8 * _MIB})
    assert driver.ask(_PLUG, 0, 4)[0] == _ACK
    guest.access.store(driver.base, 4, 7)
    guest.transport.status(0)
    assert driver.sizes == (4, 4)
    with guest.machine.control:
        assert guest.machine.board is not None
        guest.machine.board.reset_all()
    assert guest.call("query-memory-devices")[0]["data"]["size"] == 0
    assert guest.access.load(driver.base, 4) == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_the_size_is_what_is_plugged(requests: list[tuple[int, int, int]]) -> None:
    machine = simple_machine("x86_64", "pc", memory=32 * _MIB, max_memory=1 << 30, slots=2)
    try:
        driver = MemDriver(Guest(machine), **{"requested-size": 16 * _MIB})
        model: set[int] = set()
        for kind, first, count in requests:
            blocks = set(range(first, first + count))
            answer = driver.ask(kind, first, count)[0]
            if kind == _UNPLUG_ALL:
                model.clear()
            elif not blocks or max(blocks) >= 16:
                assert answer == _ERROR
            elif kind == _PLUG and not blocks & model:
                assert answer == (_ACK if len(model | blocks) <= 8 else _NACK)
                model |= blocks if answer == _ACK else set()
            elif kind == _UNPLUG and blocks <= model:
                assert answer == _ACK
                model -= blocks
            else:
                assert answer == _ERROR
            assert driver.sizes[0] == len(model)
    finally:
        machine.close()


def test_persistent_memory_is_flushed_to_its_file(guest: Guest, tmp_path: Path) -> None:
    guest.backend("f0", 4 * _MIB, **{"mem-path": str(tmp_path / "f0"), "share": True})
    guest.plug("virtio-pmem-pci", "p0", "f0", addr=5 << 3)
    guest.backend("m0", 4 * _MIB)
    guest.plug("virtio-pmem-pci", "p1", "m0", addr=6 << 3)
    queue = guest.requests(5)
    assert guest.ask(queue, bytes(4), 4) == bytes(4)
    base = guest.transport.config(0, 8)
    guest.access.write(base + 4096, b"lasting")
    assert (tmp_path / "f0").read_bytes()[4096:4103] == b"lasting"
    assert guest.ask(guest.requests(6), bytes(4), 4) == b"\1\0\0\0"  # there is no file to flush
    with pytest.raises(QobraError, match="cannot be unplugged"):
        guest.call("device_del", id="p0")
    assert guest.call("query-memory-size-summary")["plugged-memory"] == 8 * _MIB


@pytest.fixture
def nvdimms() -> Iterator[Guest]:
    machine = Machine(capabilities=frozenset(("board", "x86_64")))
    with machine.control:
        board = attach_board(machine, find_board("x86_64", "pc"))
        board.set("nvdimm", True)
        board.set_topology({"cpus": 1})
        board.max_ram_size, board.memory_slots = 1 << 30, 2
        board.set_memory(32 * _MIB)
        board.start()
        board.finish()
    yield Guest(machine)
    machine.close()


def _method(guest: Guest, handle: int, function: int, argument: bytes = b"") -> bytes:
    page = 0x100000
    guest.access.write(page, pack("<III", handle, 1, function) + argument)
    guest.access.port_out(0xA18, 4, page)
    length = guest.access.load(page, 4)
    return guest.access.read(page + 4, length - 4)


def test_labels_and_the_table_of_nvdimms(nvdimms: Guest) -> None:
    guest = nvdimms
    guest.backend("m0", 8 * _MIB)
    guest.plug("nvdimm", "n0", "m0", **{"label-size": 128 << 10})
    assert guest.call("query-memory-devices")[0]["data"]["size"] == 6 * _MIB
    assert _method(guest, 1, 0) == b"\x71\0\0\0"
    assert _method(guest, 1, 4) == pack("<III", 0, 128 << 10, 4076)
    assert _method(guest, 1, 6, pack("<II", 100, 5) + b"label") == bytes(4)
    assert _method(guest, 1, 5, pack("<II", 100, 5)) == bytes(4) + b"label"
    assert _method(guest, 1, 5, pack("<II", (128 << 10) - 4, 5)) == pack("<I", 3)
    assert _method(guest, 1, 5, pack("<II", 0xFFFFFFFF, 0xFFFFFFFF)) == pack("<I", 3)
    assert _method(guest, 2, 4) == pack("<I", 2)
    fit = _method(guest, 0x10000, 1, bytes(4))[4:]
    kinds = []
    while fit:
        kind, length = unpack_from("<HH", fit)
        kinds.append((kind, length))
        fit = fit[length:]
    assert kinds == [(0, 56), (1, 48), (4, 80)]
    with pytest.raises(QobraError, match="hot unplug is not supported"):
        guest.call("device_del", id="n0")


def test_nvdimms_must_be_enabled(guest: Guest) -> None:
    guest.backend("m0", 8 * _MIB)
    with pytest.raises(QobraError, match="nvdimm is not enabled: missing 'nvdimm' in '-M'"):
        guest.plug("nvdimm", "n0", "m0")


def test_a_module_that_is_being_dumped_stays(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    guest.backend("m0", 4 * _MIB)
    guest.plug("pc-dimm", "d0", "m0")
    guest.call("device_del", id="d0")

    class Busy:
        def query(self) -> dict[str, Any]:
            return {"status": "active"}

    monkeypatch.setattr(guest.machine.board, "dumper", Busy())
    guest.access.port_out(0xA00, 4, 0)
    guest.access.port_out(0xA14, 1, 8)
    assert guest.events[-1]["event"] == "MEM_UNPLUG_ERROR"
    assert guest.events[-1]["data"] == {"device": "d0", "msg": "the memory is being dumped"}
    monkeypatch.setattr(guest.machine.board, "dumper", None)
    guest.access.port_out(0xA14, 1, 8)
    assert guest.events[-1]["event"] == "DEVICE_DELETED"


@pytest.mark.parametrize(
    ("architecture", "board", "text"),
    [
        ("x86_64", "pc", "base memory: 33554432\r\nplugged memory: 0\r\n"),
        ("riscv64", "virt", "base memory: 33554432\r\n"),
    ],
)
def test_the_summary_for_people(architecture: str, board: str, text: str) -> None:
    machine = simple_machine(architecture, board, memory=32 * _MIB)
    assert hmp.execute(machine, "info memory_size_summary") == text
    machine.close()


def test_sizes_and_places_follow_the_pages_of_the_backend(guest: Guest, tmp_path: Path) -> None:
    guest.backend("small", 4096)
    guest.backend("large", 3 * _MIB)
    for driver in ("pc-dimm", "virtio-pmem-pci"):
        for backend in ("small", "large"):
            with pytest.raises(QobraError, match="^backend memory size must be multiple of 0x200000$"):
                guest.plug(driver, "d", backend)
    with pytest.raises(QobraError, match="^address must be aligned to 0x200000 bytes$"):
        guest.plug("pc-dimm", "d", "small", addr=0x100001000)
    with pytest.raises(QobraError, match="^backend memory size must be multiple of 0x200000$"):
        guest.plug("virtio-mem-pci", "d", "large", **{"block-size": _MIB})
    # Files and descriptors have the pages of their kind.
    guest.backend("wide", _BLOCK + 4096, **{"mem-path": str(tmp_path / "w"), "align": 65536})
    with pytest.raises(QobraError, match="^backend memory size must be multiple of 0x10000$"):
        guest.plug("pc-dimm", "d", "wide")
    with guest.machine.control:
        guest.machine.objects.create("memory-backend-memfd", "shared", {"size": 3 * 4096})
    guest.backend("file", _BLOCK + 4096, **{"mem-path": str(tmp_path / "m")})
    first, second = guest.plug("pc-dimm", "a", "shared"), guest.plug("pc-dimm", "b", "file")
    assert second.addr == first.addr + 3 * 4096
