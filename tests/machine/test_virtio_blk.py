"""virtio-blk from the guest's side, over every transport; and guests that break the rules."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device, remove_device
from qobra.testing.guest import (
    BoardAccess,
    LegacyPci,
    Memory,
    Mmio,
    ModernPci,
    PciFunction,
    Transport,
    driver_ok,
    start_driver,
)
from qobra.testing.guest import Queue as GuestQueue
from qobra.testing.guest_drivers import BlockDriver
from qobra.testing.waiting import wait_until

_IN, _OUT, _FLUSH, _ID, _DISCARD, _ZEROES = 0, 1, 4, 8, 11, 13


class Guest:
    """A machine with one virtio-blk disk of 1 MiB."""

    def __init__(self, path: Path, kind: str, **properties: str) -> None:
        self.path = path
        path.write_bytes(bytes(1 << 20))
        riscv = kind.startswith("mmio")
        self.machine = simple_machine("riscv64" if riscv else "x86_64", "virt" if riscv else "pc", memory=32 << 20)
        self.events: list[Any] = []
        self.machine.events.subscribe(self.events.append)
        self.access = BoardAccess(self.machine)
        driver = "virtio-blk-device" if riscv else "virtio-blk"
        options = {"driver": driver, "drive": "n0", "id": "disk", "serial": "abc123"} | properties
        board: Any = self.machine.board
        with self.machine.control:
            self.machine.block.add_node({"driver": "file", "filename": str(path), "node-name": "n0"})
            board.ready = not riscv  # the slots of the board take no hot-plug
            if riscv:
                slot: Any = self.machine.objects.resolve("/machine/unattached/device[12]")
                slot.values["force-legacy"] = kind == "mmio-legacy"
            else:
                options["addr"] = "5"
            self.device: Any = add_device(self.machine, options, keyval=True)
        self.memory = Memory(0x80100000 if riscv else 1 << 20)
        if riscv:
            self.transport: Transport = Mmio(self.access, 0x10008000)
        else:
            function = PciFunction(self.access, 5 << 3)
            function.enable()
            self.function = function
            self.transport = ModernPci(function) if kind == "modern" else LegacyPci(function)


@pytest.fixture
def guest(tmp_path: Path, request: Any) -> Any:
    guest = Guest(tmp_path / "disk", getattr(request, "param", "modern"))
    yield guest
    guest.machine.close()


_ALL = pytest.mark.parametrize("guest", ["modern", "legacy", "mmio", "mmio-legacy"], indirect=True)


@pytest.mark.parametrize(
    ("kind", "properties", "told"),
    [
        ("modern", {"scsi": "on"}, "Please set scsi=off for virtio-blk devices in order to use virtio 1.0"),
        ("mmio", {"scsi": "on"}, "Please set scsi=off for virtio-blk devices in order to use virtio 1.0"),
        ("modern", {"cyls": "5"}, "heads must be between 1 and 255"),
        ("modern", {"cyls": "65536", "heads": "1", "secs": "1"}, "cyls must be between 1 and 65535"),
        (
            "modern",
            {"max-discard-sectors": "0"},
            "invalid max-discard-sectors property .0., must be between 1 and 4194303",
        ),
        (
            "modern",
            {"max-write-zeroes-sectors": "4194304"},
            "invalid max-write-zeroes-sectors property .4194304., must be between 1 and 4194303",
        ),
        ("modern", {"logical_block_size": str(1 << 63)}, "doesn't take value -9223372036854775808 .minimum: 512"),
    ],
)
def test_properties_that_cannot_be(tmp_path: Path, kind: str, properties: dict[str, str], told: str) -> None:
    with pytest.raises(QobraError, match=told):
        Guest(tmp_path / "disk", kind, **properties)


@pytest.mark.parametrize(
    ("kind", "properties"),
    [
        ("modern", {"scsi": "on", "disable-modern": "on"}),
        ("mmio-legacy", {"scsi": "on"}),
        ("modern", {"discard": "off", "max-discard-sectors": "0"}),
        ("modern", {"logical_block_size": " 1k", "physical_block_size": "0x400"}),
    ],
)
def test_properties_that_can_be(tmp_path: Path, kind: str, properties: dict[str, str]) -> None:
    Guest(tmp_path / "disk", kind, **properties).machine.close()


@_ALL
def test_read_write_flush_identify(guest: Guest) -> None:
    disk = BlockDriver(guest.transport, guest.memory)
    assert guest.transport.config(0, 4) == 2048
    assert disk.request(_OUT, 2, b"x" * 1024) == (0, b"")
    assert disk.request(_IN, 1, read=2048) == (0, bytes(512) + b"x" * 1024 + bytes(512))
    assert disk.request(_FLUSH, 0) == (0, b"")
    assert disk.request(_ID, 0, read=20) == (0, b"abc123".ljust(20, b"\0"))
    assert guest.path.read_bytes()[1024:2048] == b"x" * 1024
    assert guest.transport.isr() & 1


def test_discard_and_zeroes(guest: Guest) -> None:
    disk = BlockDriver(guest.transport, guest.memory)
    segment = (8).to_bytes(8, "little") + (8).to_bytes(4, "little") + bytes(4)
    disk.request(_OUT, 0, b"y" * 16384)
    assert disk.request(_ZEROES, 0, segment)[0] == 0
    assert disk.request(_IN, 8, read=4096)[1] == bytes(4096)
    assert disk.request(_DISCARD, 0, segment)[0] == 0
    assert disk.request(_DISCARD, 0, segment[:15])[0] == 2
    beyond = (2047).to_bytes(8, "little") + (8).to_bytes(4, "little") + bytes(4)
    assert disk.request(_ZEROES, 0, beyond)[0] == 1


@pytest.mark.parametrize(
    ("kind", "sector", "read", "status"),
    [(_IN, 2047, 1024, 1), (_IN, 1 << 60, 512, 1), (_IN, 0, 100, 1), (99, 0, 0, 2)],
)
def test_requests_that_cannot_be_served(guest: Guest, kind: int, sector: int, read: int, status: int) -> None:
    disk = BlockDriver(guest.transport, guest.memory)
    assert disk.request(kind, sector, read=read)[0] == status
    assert disk.request(_IN, 0, read=512)[0] == 0


def test_the_write_cache_follows_the_driver_that_runs_and_a_reset_takes_that_back(guest: Guest) -> None:
    flush, modern = 1 << 9, 1 << 32
    backend = guest.machine.block.find_qdev("disk")
    assert backend is not None and backend.writeback
    BlockDriver(guest.transport, guest.memory, features=modern)
    assert not backend.writeback
    guest.transport.status(0)
    assert backend.writeback
    BlockDriver(guest.transport, guest.memory, features=modern | flush)
    assert backend.writeback


@pytest.mark.parametrize("guest", ["mmio"], indirect=True)
def test_a_driver_that_reads_the_configuration_can_tell_that_it_changed(guest: Guest) -> None:
    transport: Any = guest.transport
    generation = 0xFC

    def resize(size: int) -> None:
        with guest.machine.control:
            guest.machine.block.resize(guest.machine.block.find_node("n0"), size)

    resize(1 << 19)  # nobody has looked yet
    assert transport.register(generation) == 0
    BlockDriver(transport, guest.memory)
    assert transport.config(0, 4) == 1024
    for changes in (1, 2):
        resize(changes << 20)
        assert transport.register(generation) == changes
        assert transport.config(0, 4) == 2048 * changes
        assert transport.isr() & 2


@pytest.mark.parametrize("guest", ["mmio"], indirect=True)
def test_what_describes_the_old_interface_is_offered_there_alone(guest: Guest) -> None:
    notify_on_empty, any_layout, modern = 1 << 24, 1 << 27, 1 << 32
    guest.device.notify_on_empty = True
    today, old = guest.device.offered_features(modern=True), guest.device.offered_features(modern=False)
    assert today & (notify_on_empty | any_layout | modern) == modern
    assert old & (notify_on_empty | any_layout | modern) == notify_on_empty | any_layout


@pytest.mark.parametrize("guest", ["mmio"], indirect=True)
def test_a_reset_leaves_what_the_driver_looks_at(guest: Guest) -> None:
    transport: Any = guest.transport
    transport.register(0x14, 1)
    high = transport.register(0x10)
    transport.status(0)
    assert transport.register(0x10) == high and high & 1  # VERSION_1
    transport.register(0x30, 9)
    transport.register(0x44, 1)
    assert transport.register(0x44) == 1  # as the driver said, though there is no such queue
    transport.status(0)
    transport.register(0x30, 9)
    assert transport.register(0x44) == 0


@_ALL
def test_there_are_no_shared_regions(guest: Guest) -> None:
    transport: Any = guest.transport
    if not hasattr(transport, "register"):
        pytest.skip("told by a capability on PCI")
    assert [transport.register(offset) for offset in (0xB0, 0xB4, 0xAC)] == [0xFFFFFFFF, 0xFFFFFFFF, 0]


def test_interrupts_by_message(guest: Guest) -> None:
    transport: Any = guest.transport
    disk = BlockDriver(transport, guest.memory)
    target = guest.memory.take(8)
    capability = dict(guest.function.capabilities())[0x11]
    table = guest.function.bars[1]
    for vector in (0, 1):
        guest.access.store(table + 16 * vector, 4, target)
        guest.access.store(table + 16 * vector + 8, 4, 0x4100 + vector)
        guest.access.store(table + 16 * vector + 12, 4, 0)
    guest.function.set_config(capability + 2, 2, 0x8000)
    assert transport.set_vector(0, 1) == 1
    assert transport.set_vector(0, 99) == 0xFFFF
    transport.set_vector(0, 1)
    disk.request(_IN, 0, read=512)
    wait_until(lambda: guest.access.load(target, 4) == 0x4101)
    # Masked: it waits in the pending bits.
    guest.access.store(table + 16 + 12, 4, 1)
    guest.access.store(target, 4, 0)
    disk.request(_IN, 0, read=512)
    wait_until(lambda: guest.access.load(table + 0x800, 4) == 2)
    assert guest.access.load(target, 4) == 0
    guest.access.store(table + 16 + 12, 4, 0)
    assert guest.access.load(target, 4) == 0x4101


_BROKEN = {
    "no header": [(0x100000, 512, True)],
    "short header": [(0x100000, 8, False), (0x101000, 1, True)],
    "zero length": [(0x100000, 0, False), (0x101000, 1, True)],
    "wrong order": [(0x101000, 1, True), (0x100000, 16, False)],
    "outside memory": [(0xFFFF_FFFF_0000, 16, False), (0x101000, 1, True)],
    "over the end": [((32 << 20) - 8, 16, False), (0x101000, 1, True)],
    "into ROM": [(0x100000, 16, False), (0xFFFF0000, 512, True)],
    "into registers": [(0x100000, 16, False), (0xFEC00000, 16, True)],
}


@pytest.mark.parametrize("parts", list(_BROKEN.values()), ids=list(_BROKEN))
def test_a_broken_chain_breaks_the_device_until_its_reset(guest: Guest, parts: list[tuple[int, int, bool]]) -> None:
    start_driver(guest.transport, 1 << 32)
    queue = GuestQueue(guest.transport, guest.memory, 0)
    driver_ok(guest.transport)
    queue.send(parts)
    wait_until(lambda: bool(guest.transport.status() & 0x40))
    disk = BlockDriver(guest.transport, guest.memory)
    assert disk.request(_IN, 0, read=512)[0] == 0


def test_loops_and_bad_indices(guest: Guest) -> None:
    def broken(prepare: Any) -> None:
        start_driver(guest.transport, 1 << 32 | 1 << 28)
        queue = GuestQueue(guest.transport, guest.memory, 0)
        driver_ok(guest.transport)
        prepare(queue)
        wait_until(lambda: bool(guest.transport.status() & 0x40))

    def loop(queue: GuestQueue) -> None:
        queue.describe(0, 0x100000, 16, 1, 1)
        queue.describe(1, 0x100000, 16, 1, 0)
        queue.offer(0)

    def bad_next(queue: GuestQueue) -> None:
        queue.describe(0, 0x100000, 16, 1, 60000)
        queue.offer(0)

    def bad_index(queue: GuestQueue) -> None:
        guest.access.store(queue.available + 2, 2, 5000)
        guest.transport.kick(0)

    def nested(queue: GuestQueue) -> None:
        table = guest.memory.take(64)
        guest.access.write(table, table.to_bytes(8, "little") + (16).to_bytes(4, "little") + b"\x04\0\0\0")
        queue.describe(0, table, 16, 4)
        queue.offer(0)

    def odd_table(queue: GuestQueue) -> None:
        queue.describe(0, 0x100000, 24, 4)
        queue.offer(0)

    def inner_loop(queue: GuestQueue) -> None:
        table = guest.memory.take(64)
        guest.access.write(table, (0x100000).to_bytes(8, "little") + (16).to_bytes(4, "little") + b"\x01\0\0\0")
        queue.describe(0, table, 16, 4)
        queue.offer(0)

    for prepare in (loop, bad_next, bad_index, nested, odd_table, inner_loop, lambda queue: queue.offer(9999)):
        broken(prepare)


def test_indirect_descriptors(guest: Guest) -> None:
    start_driver(guest.transport, 1 << 32 | 1 << 28 | 1 << 29)
    queue = GuestQueue(guest.transport, guest.memory, 0)
    driver_ok(guest.transport)
    header, data, status = guest.memory.take(16), guest.memory.take(512), guest.memory.take(1)
    guest.access.write(header, (_ID).to_bytes(4, "little") + bytes(12))
    table = guest.memory.take(48)
    entries = b""
    for i, (address, length, flags) in enumerate(((header, 16, 1), (data, 20, 3), (status, 1, 2))):
        entries += address.to_bytes(8, "little") + length.to_bytes(4, "little")
        entries += flags.to_bytes(2, "little") + (i + 1).to_bytes(2, "little")
    guest.access.write(table, entries)
    queue.describe(0, table, 48, 4)
    queue.offer(0)
    assert queue.wait_used() == (0, 8)
    assert guest.access.read(data, 6) == b"abc123"


def test_packed_queue(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "disk", "modern", packed="on")
    start_driver(guest.transport, 1 << 32 | 1 << 34 | 1 << 28)
    size = 4
    ring, driver, device = guest.memory.take(16 * size, 64), guest.memory.take(4), guest.memory.take(4)
    guest.access.write(ring, bytes(16 * size))
    guest.transport.set_queue(0, size, ring, driver, device)
    driver_ok(guest.transport)
    header, status, data = guest.memory.take(16), guest.memory.take(1), guest.memory.take(512)
    position, wrap = 0, 1
    for turn in range(6):  # twice around and more
        guest.access.write(header, (_IN).to_bytes(4, "little") + bytes(12))
        guest.access.write(status, b"\xff")
        first = position
        chain = [(header, 16, 1), (data, 512, 3), (status, 1, 2)]
        writes = []
        for address, length, flags in chain:
            flags |= (1 << 7) if wrap else (1 << 15)
            entry = address.to_bytes(8, "little") + length.to_bytes(4, "little") + turn.to_bytes(2, "little")
            writes.append((ring + 16 * position, entry + flags.to_bytes(2, "little")))
            position += 1
            if position == size:
                position, wrap = 0, wrap ^ 1
        for where, entry in reversed(writes):
            guest.access.write(where, entry)
        guest.transport.kick(0)
        old_wrap = wrap if position > first else wrap ^ 1

        def used(first: int = first, expected: int = old_wrap) -> bool:
            flags = guest.access.load(ring + 16 * first + 14, 2)
            return bool(flags & 1 << 15) == bool(expected) and bool(flags & 1 << 7) == bool(expected)

        wait_until(used)
        assert guest.access.load(ring + 16 * first + 12, 2) == turn
        assert guest.access.load(ring + 16 * first + 8, 4) == 513
        assert guest.access.load(status, 1) == 0
    guest.machine.close()


def test_a_failed_write_stops_the_machine_and_is_retried(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "disk", "modern", werror="stop", rerror="stop")
    board: Any = guest.machine.board
    with guest.machine.control:
        guest.machine.run_state.start()
    node = guest.machine.block.find_node("n0")
    disk = BlockDriver(guest.transport, guest.memory)
    original = node._write
    fail = True

    def failing(offset: int, data: Any) -> None:
        if fail:
            raise OSError(28, "No space left on device")
        original(offset, data)

    node._write = failing  # type: ignore[method-assign]
    header = guest.memory.take(16)
    status, data = guest.memory.take(1), guest.memory.take(512)
    guest.access.write(header, (_OUT).to_bytes(4, "little") + bytes(12))
    guest.access.write(data, b"q" * 512)
    guest.access.write(status, b"\xff")
    disk.queue.send([(header, 16, False), (data, 512, False), (status, 1, True)])
    wait_until(lambda: guest.machine.run_state.state == "io-error")
    assert guest.access.load(status, 1) == 0xFF
    error = next(event for event in guest.events if event["event"] == "BLOCK_IO_ERROR")
    assert error["data"]["action"] == "stop" and error["data"]["nospace"]
    fail = False
    with guest.machine.control:
        guest.machine.run_state.cont()
    disk.queue.wait_used()
    assert guest.access.load(status, 1) == 0
    assert guest.path.read_bytes()[:512] == b"q" * 512
    assert (_stats(guest)["wr_operations"], _stats(guest)["failed_wr_operations"]) == (1, 0)
    assert board.cpus
    guest.machine.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "drive property not set"),
        ({"drive": "nope"}, "Property 'virtio-blk-device.drive' can't find value 'nope'"),
        ({"drive": "n1", "bogus": "1"}, "Property 'virtio-blk-pci.bogus' not found"),
        ({"drive": "n1", "num-queues": "x"}, "Parameter 'num-queues' expects integer"),
        ({"drive": "n1", "num-queues": "0"}, "num-queues property must be larger than 0"),
        ({"drive": "n1", "num-queues": "70000"}, "Parameter 'num-queues' expects uint16_t"),
        ({"drive": "n1", "queue-size": "3"}, "invalid queue-size property (3), must be a power of 2 (max 1024)"),
        ({"drive": "n1", "bus": "zz"}, "Bus 'zz' not found"),
        ({"drive": "n1", "bus": "isa.0"}, "Device 'virtio-blk-pci' can't go on ISA bus"),
        ({"drive": "n1", "addr": "zz"}, "Property 'virtio-blk-pci.addr' doesn't take value 'zz'"),
        (
            {"drive": "n1", "addr": "1"},
            "PCI: slot 1 function 0 not available for virtio-blk-pci, in use by PIIX3,id=(null)",
        ),
        ({"drive": "n1", "id": "disk"}, "Duplicate device ID 'disk'"),
        ({"drive": "n1", "id": "b!"}, "Parameter 'id' expects an identifier"),
    ],
)
def test_refusals_leave_nothing(guest: Guest, options: dict[str, str], text: str) -> None:
    with guest.machine.control:
        guest.machine.block.add_node({"driver": "null-co", "node-name": "n1"})
        with pytest.raises(QobraError) as caught:
            add_device(guest.machine, {"driver": "virtio-blk", **options}, keyval=True)
        assert caught.value.desc == text
        board: Any = guest.machine.board
        assert list(board.peripheral.children) == ["disk"]
        assert len(guest.machine.block.devices) == 1
        guest.machine.block.delete_node("n1")


def test_a_reset_may_come_while_the_guest_is_told(guest: Guest) -> None:
    disk = BlockDriver(guest.transport, guest.memory)
    proxy = guest.device
    told = threading.Event()
    original = proxy.virtio_bus.notify_queue

    def notify(queue: Any) -> None:
        # As if another thread had asked for the reset just now: the worker itself runs it.
        guest.machine.run_state.request_reset("guest-reset")
        original(queue)
        told.set()

    proxy.virtio_bus.notify_queue = notify
    header, data, status = guest.memory.take(16), guest.memory.take(512), guest.memory.take(1)
    guest.access.write(header, (_IN).to_bytes(4, "little") + bytes(12))
    disk.queue.send([(header, 16, False), (data, 512, True), (status, 1, True)])
    assert told.wait(20)
    proxy.virtio_bus.notify_queue = original
    wait_until(lambda: guest.transport.status() == 0)
    guest.function.enable()
    assert BlockDriver(guest.transport, guest.memory).request(_IN, 0, read=512)[0] == 0


def test_two_disks_cannot_write_to_one_node(guest: Guest) -> None:
    with guest.machine.control, pytest.raises(QobraError, match="Permission conflict on node 'n0'"):
        add_device(guest.machine, {"driver": "virtio-blk", "drive": "n0", "id": "b"}, keyval=True)
    assert len(guest.machine.block.devices) == 1


def test_unplug_waits_for_the_guest_or_a_reset(guest: Guest) -> None:
    deleted = [
        {"path": "/machine/peripheral/disk/virtio-backend"},
        {"device": "disk", "path": "/machine/peripheral/disk"},
    ]

    def gone() -> list[Any]:
        return [event["data"] for event in guest.events if event["event"] == "DEVICE_DELETED"]

    with guest.machine.control:
        remove_device(guest.machine, "disk")
        with pytest.raises(QobraError, match="Device disk is already in the process of unplug"):
            remove_device(guest.machine, "disk")
        assert guest.machine.board is not None
        guest.machine.board.clock.step(1_000_000)
        remove_device(guest.machine, "disk")  # a guest that does not listen yet may be asked again
    assert gone() == []
    assert guest.access.port_in(0xAE04, 4) == 1 << 5
    guest.access.port_out(0xAE08, 4, 1 << 5)
    assert gone() == deleted
    guest.events.clear()
    with guest.machine.control:
        add_device(guest.machine, {"driver": "virtio-blk", "drive": "n0", "id": "disk"}, keyval=True)
        remove_device(guest.machine, "disk")
        guest.machine.run_state.request_reset()
    assert gone() == deleted
    with pytest.raises(QobraError, match="Device 'disk' not found"):
        remove_device(guest.machine, "disk")
    guest.machine.block.delete_node("n0")


def _stats(guest: Guest) -> dict[str, Any]:
    [backend] = guest.machine.block.devices
    return backend.accounting.stats()


def test_what_the_guest_asks_for_is_counted(guest: Guest) -> None:
    disk = BlockDriver(guest.transport, guest.memory)
    segment = (8).to_bytes(8, "little") + (8).to_bytes(4, "little") + bytes(4)
    header, status, pages = guest.memory.take(16), guest.memory.take(1), guest.memory.take(12288, 4096)
    guest.access.write(header, (_IN).to_bytes(4, "little") + bytes(12))
    # A read into three pages is one request.
    disk.queue.send([(header, 16, False)] + [(pages + n * 4096, 4096, True) for n in range(3)] + [(status, 1, True)])
    disk.queue.wait_used()
    disk.request(_OUT, 0, b"x" * 1024)
    disk.request(_ZEROES, 0, segment)
    disk.request(_DISCARD, 0, segment)
    disk.request(_FLUSH, 0)
    stats = _stats(guest)
    assert (stats["rd_operations"], stats["rd_bytes"]) == (1, 12288)
    assert (stats["wr_operations"], stats["wr_bytes"]) == (2, 1024 + 4096)
    assert (stats["unmap_operations"], stats["unmap_bytes"], stats["flush_operations"]) == (1, 4096, 1)


def test_what_lies_outside_of_the_disk_counts_as_invalid(guest: Guest) -> None:
    disk = BlockDriver(guest.transport, guest.memory)
    beyond = (2047).to_bytes(8, "little") + (8).to_bytes(4, "little") + bytes(4)
    assert disk.request(_IN, 2047, read=1024)[0] == disk.request(_OUT, 0, b"x" * 100)[0] == 1
    assert disk.request(_ZEROES, 0, beyond)[0] == disk.request(_DISCARD, 0, beyond)[0] == 1
    stats = _stats(guest)
    invalid = [stats[f"invalid_{kind}_operations"] for kind in ("rd", "wr", "unmap")]
    assert invalid == [1, 2, 1]
    assert not stats["rd_operations"] and not stats["failed_rd_operations"] and "idle_time_ns" in stats


@pytest.mark.parametrize(("policy", "answer", "counts"), [("report", 1, (0, 1)), ("ignore", 0, (1, 0))])
def test_a_failure_counts_as_one_if_the_guest_is_told(
    tmp_path: Path, policy: str, answer: int, counts: tuple[int, int]
) -> None:
    guest = Guest(tmp_path / "disk", "modern", werror=policy)
    disk = BlockDriver(guest.transport, guest.memory)

    def failing(_offset: int, _data: Any) -> None:
        raise OSError(5, "Input/output error")

    node: Any = guest.machine.block.find_node("n0")
    node._write = failing
    assert disk.request(_OUT, 0, b"x" * 512)[0] == answer
    stats = _stats(guest)
    assert (stats["wr_operations"], stats["failed_wr_operations"]) == counts
    guest.machine.close()
