"""NVMe from the guest's side: queues, reads and writes, page lists, events; and guests that break the rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.nvme import controller
from qobra.machine.plug import add_device, remove_device
from qobra.migration import machine_state
from qobra.testing.guest import BoardAccess, PciFunction
from qobra.testing.waiting import wait_until

_ADMIN, _IO, _BUFFER, _LIST = 0x100000, 0x110000, 0x200000, 0x180000
_CC, _CSTS, _AQA = 0x14, 0x1C, 0x24
_ENTRIES = 16


def _le(value: int, width: int) -> bytes:
    return value.to_bytes(width, "little")


class Ring:
    """A pair of queues: commands at ``base``, answers a page after it."""

    def __init__(self, base: int) -> None:
        self.commands, self.answers = base, base + 0x1000
        self.tail = self.head = 0
        self.phase = 1


class Guest:
    """A pc with a disk of 1 MiB, the controller switched on, and one pair of queues for the disk."""

    def __init__(self, directory: Path, **properties: str) -> None:
        self.image = directory / "disk"
        self.image.write_bytes(b"".join(bytes([n % 251]) * 512 for n in range(2048)))
        self.machine = simple_machine(memory=32 << 20)
        self.access = BoardAccess(self.machine)
        with self.machine.control:
            node = {"driver": "file", "filename": str(self.image), "node-name": "disk", "discard": "unmap"}
            self.machine.block.add_node(node)
            options = {"driver": "nvme", "drive": "disk", "id": "nvme", "serial": "abc", "addr": "5"} | properties
            self.device: Any = add_device(self.machine, options, keyval=True)
        self.function = PciFunction(self.access, 5 << 3)
        self.function.enable()
        self.base = self.function.bars[0]
        self.rings = [Ring(_ADMIN), Ring(_IO)]
        self.enable()

    def enable(self) -> None:
        for ring in self.rings:
            self.access.write(ring.commands, bytes(0x2000))
            ring.tail, ring.head, ring.phase = 0, 0, 1
        self.access.store(self.base + _AQA, 4, (_ENTRIES - 1) << 16 | _ENTRIES - 1)
        self.access.store(self.base + 0x28, 8, _ADMIN)
        self.access.store(self.base + 0x30, 8, _ADMIN + 0x1000)
        self.access.store(self.base + _CC, 4, 0x00460001)
        assert self.access.load(self.base + _CSTS, 4) == 1
        assert self.command(0x05, prp1=_IO + 0x1000, words=((_ENTRIES - 1) << 16 | 1, 3)) == (0, 0)
        assert self.command(0x01, prp1=_IO, words=((_ENTRIES - 1) << 16 | 1, 1 << 16 | 1)) == (0, 0)

    def put(
        self, opcode: int, namespace: int, prp1: int, prp2: int, words: tuple[int, ...], queue: int, flags: int = 0
    ) -> None:
        ring = self.rings[queue]
        data = bytes((opcode, flags)) + _le(ring.tail, 2) + _le(namespace, 4) + bytes(16) + _le(prp1, 8) + _le(prp2, 8)
        data += b"".join(_le(word, 4) for word in words + (0,) * (6 - len(words)))
        self.access.write(ring.commands + 64 * ring.tail, data)
        ring.tail = (ring.tail + 1) % _ENTRIES
        self.access.store(self.base + 0x1000 + 8 * queue, 4, ring.tail)

    def answer(self, queue: int) -> tuple[int, int]:
        ring = self.rings[queue]
        at = ring.answers + 16 * ring.head
        wait_until(lambda: self.access.load(at + 14, 2) & 1 == ring.phase)
        result, code = self.access.load(at, 4), self.access.load(at + 14, 2) >> 1
        ring.head = (ring.head + 1) % _ENTRIES
        ring.phase ^= ring.head == 0
        self.access.store(self.base + 0x1004 + 8 * queue, 4, ring.head)
        return code, result

    def command(
        self,
        opcode: int,
        namespace: int = 0,
        *,
        prp1: int = _BUFFER,
        prp2: int = 0,
        words: tuple[int, ...] = (),
        queue: int = 0,
        flags: int = 0,
    ) -> tuple[int, int]:
        """One command: its status and its result."""
        self.put(opcode, namespace, prp1, prp2, words, queue, flags)
        return self.answer(queue)

    def io(self, opcode: int, block: int, count: int, **options: Any) -> int:
        return self.command(opcode, 1, words=(block, 0, count - 1), queue=1, **options)[0]


@pytest.fixture
def guest(tmp_path: Path) -> Any:
    guest = Guest(tmp_path)
    yield guest
    guest.machine.close()


def test_identify(guest: Guest) -> None:
    assert guest.command(0x06, words=(1,)) == (0, 0)
    assert guest.access.read(_BUFFER + 4, 20) == b"abc".ljust(20)
    guest.command(0x06, 1, words=(0,))
    assert guest.access.load(_BUFFER, 8) == 2048 and guest.access.load(_BUFFER + 130, 1) == 9
    guest.command(0x06, words=(2,))
    assert guest.access.load(_BUFFER, 8) == 1


def test_reading_and_writing(guest: Guest) -> None:
    guest.access.write(_BUFFER, b"w" * 1024)
    assert guest.io(0x01, 7, 2) == 0
    assert guest.image.read_bytes()[7 * 512 : 9 * 512] == b"w" * 1024
    assert guest.io(0x02, 6, 2, prp1=_BUFFER + 0x3200) == 0
    assert guest.access.read(_BUFFER + 0x3200, 1024) == bytes([6]) * 512 + b"w" * 512
    assert guest.io(0x08, 7, 1) == 0
    assert guest.image.read_bytes()[7 * 512 : 8 * 512] == bytes(512)
    assert guest.command(0x00, 1, queue=1)[0] == 0


def test_lists_of_pages(guest: Guest) -> None:
    # The list begins near the end of its page and goes on in another.
    pages = [_BUFFER + 0x10000 * n for n in range(1, 6)]
    guest.access.write(_LIST + 0xFF0, _le(pages[0], 8) + _le(_LIST + 0x2000, 8))
    guest.access.write(_LIST + 0x2000, b"".join(_le(page, 8) for page in pages[1:]))
    assert guest.io(0x02, 0, 48, prp2=_LIST + 0xFF0) == 0
    assert guest.access.read(_BUFFER, 1) == b"\0"
    assert [guest.access.load(page, 1) for page in pages] == [8, 16, 24, 32, 40]


@pytest.mark.parametrize(
    ("opcode", "block", "count", "options", "status"),
    [
        (0x02, 2048, 1, {}, 0x4080),
        (0x02, 0xFFFFFFFF, 8, {}, 0x4080),
        (0x02, 0, 16, {"prp2": _BUFFER + 0x1200}, 0x4013),
        (0x02, 0, 0x10000, {}, 0x4002),
        (0x02, 0, 1, {"flags": 0x40}, 0x4002),
        (0x7F, 0, 1, {}, 0x4001),
    ],
)
def test_refused_commands(
    guest: Guest, opcode: int, block: int, count: int, options: dict[str, int], status: int
) -> None:
    assert guest.io(opcode, block, count, **options) == status
    assert guest.io(0x02, 0, 1) == 0


def test_comparing(guest: Guest) -> None:
    guest.access.write(_BUFFER, bytes([5]) * 512)
    assert guest.io(0x05, 5, 1) == 0
    assert guest.io(0x05, 6, 1) == 0x285


def test_deallocating(guest: Guest) -> None:
    guest.access.write(_BUFFER, _le(0, 4) + _le(8, 4) + _le(16, 8))
    assert guest.command(0x09, 1, words=(0, 4), queue=1)[0] == 0
    assert guest.image.read_bytes()[16 * 512 : 24 * 512] == bytes(8 * 512)
    for length, code in ((8, 0), (9, 0x80)):  # up to the end of the disk, and past it
        guest.access.write(_BUFFER, _le(0, 4) + _le(length, 4) + _le(2040, 8))
        assert guest.command(0x09, 1, words=(0, 4), queue=1)[0] & 0x7FF == code
    assert guest.image.read_bytes()[2040 * 512 :] == bytes(8 * 512)


def test_only_so_many_commands_are_under_way(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    begin = controller.Controller.begin

    def counted(self: Any, *args: Any, **options: Any) -> None:
        begun.append(args)
        begin(self, *args, **options)

    monkeypatch.setattr(controller.Controller, "begin", counted)
    monkeypatch.setattr(controller, "_MAX_UNDER_WAY", 2)
    with guest.machine.control:  # what ends waits for this
        for _ in range(5):
            guest.put(0x02, 1, _BUFFER, 0, (0, 0, 0), 1)
        assert len(begun) == 2
    for _ in range(5):
        assert guest.answer(1)[0] == 0
    assert len(begun) == 5


def test_queues_are_checked(guest: Guest) -> None:
    assert guest.command(0x05, words=(0x000F0001, 1))[0] == 0x4101
    assert guest.command(0x05, words=(0xFFFF0002, 1))[0] == 0x4102
    assert guest.command(0x05, words=(0x000F0002, 0x5000003))[0] == 0x4108
    assert guest.command(0x01, words=(0x000F0002, 9 << 16 | 1))[0] == 0x4100
    assert guest.command(0x04, words=(1,))[0] == 0x10C
    assert guest.command(0x00, words=(1,))[0] == 0
    assert guest.command(0x04, words=(1,))[0] == 0


def test_answers_wait_for_room(guest: Guest) -> None:
    # The guest does not read its answers: the controller stops taking commands, and goes on when it does.
    ring = guest.rings[1]
    for _ in range(_ENTRIES - 1):
        guest.put(0x02, 1, _BUFFER, 0, (0, 0, 0), 1)
    wait_until(lambda: guest.access.load(ring.answers + 16 * (_ENTRIES - 2) + 14, 2) & 1 == 1)
    guest.put(0x02, 1, _BUFFER, 0, (0, 0, 0), 1)
    for _ in range(_ENTRIES):
        assert guest.answer(1)[0] == 0


def test_interrupt_pin(guest: Guest) -> None:
    guest.put(0x02, 1, _BUFFER, 0, (0, 0, 0), 1)
    wait_until(lambda: bool(guest.function.config(6, 2) & 8))
    guest.access.store(guest.base + 0x0C, 4, 1)
    assert not guest.function.config(6, 2) & 8
    guest.access.store(guest.base + 0x10, 4, 1)
    assert guest.function.config(6, 2) & 8
    guest.answer(1)
    assert not guest.function.config(6, 2) & 8


def test_a_resized_disk_is_reported(guest: Guest) -> None:
    assert guest.command(0x09, words=(0x0B, 1 << 8))[0] == 0
    guest.put(0x0C, 0, 0, 0, (), 0)
    with guest.machine.control:
        guest.machine.block.resize(guest.machine.block.find_node("disk"), 2 << 20)
    assert guest.answer(0) == (0, 0x00040002)
    guest.command(0x06, 1, words=(0,))
    assert guest.access.load(_BUFFER, 8) == 4096
    guest.command(0x02, 0xFFFFFFFF, words=(4 | 1 << 16,))
    assert guest.access.load(_BUFFER, 4) == 1


def test_reset_and_shutdown(guest: Guest) -> None:
    with guest.machine.control:  # the disk is flushed first, of whose end nobody can be told yet
        guest.access.store(guest.base + _CC, 4, 0x00464001)
        assert guest.access.load(guest.base + _CSTS, 4) == 1
    wait_until(lambda: guest.access.load(guest.base + _CSTS, 4) == 9)
    guest.access.store(guest.base + _CC, 4, 0)
    assert guest.access.load(guest.base + _CSTS, 4) == 0
    guest.enable()
    assert guest.io(0x02, 0, 1) == 0
    guest.access.store(guest.base + _CC, 4, 0)
    guest.access.store(guest.base + _CC, 4, 0x00000001)
    assert guest.access.load(guest.base + _CSTS, 4) == 2


def test_a_reset_keeps_the_place_of_the_admin_queues_alone(guest: Guest) -> None:
    places = [guest.access.load(guest.base + offset, 4) for offset in (_AQA, 0x28, 0x30)]
    guest.access.store(guest.base + 0x0C, 4, 5)
    guest.access.store(guest.base + _CC, 4, 0)
    assert [guest.access.load(guest.base + offset, 4) for offset in (0x0C, _CC, _CSTS)] == [0, 0, 0]
    with guest.machine.control:
        guest.machine.board.reset_all()
    guest.function.enable()
    assert [guest.access.load(guest.base + offset, 4) for offset in (_AQA, 0x28, 0x30)] == places
    assert all(places)


def test_queues_may_lie_at_address_zero_and_starting_tells_of_no_shutdown(guest: Guest) -> None:
    guest.access.store(guest.base + _CC, 4, 0)
    guest.access.store(guest.base + 0x30, 4, 0)
    guest.access.store(guest.base + _CC, 4, 0x00464001)
    assert guest.access.load(guest.base + _CSTS, 4) == 1


def test_failed_reads(guest: Guest) -> None:
    def failing(_offset: int, _length: int) -> bytes:
        raise OSError(5, "Input/output error")

    guest.device.backend.read = failing
    assert guest.io(0x02, 0, 1) == 0x281


def test_unplug(guest: Guest) -> None:
    with guest.machine.control:
        remove_device(guest.machine, "nvme")
        guest.machine.run_state.request_reset()
    with guest.machine.control:
        assert not guest.machine.block.devices
        guest.machine.block.delete_node("disk")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"serial": None}, "serial property not set"),
        ({"max_ioqpairs": "0"}, "max_ioqpairs must be between 1 and 2047"),
        ({"msix_qsize": "0"}, "msix_qsize must be between 1 and 256"),
    ],
)
def test_refusals(guest: Guest, options: dict[str, str | None], text: str) -> None:
    given = {name: value for name, value in ({"driver": "nvme", "serial": ""} | options).items() if value is not None}
    with guest.machine.control, pytest.raises(QobraError) as caught:
        add_device(guest.machine, given, keyval=True)
    assert caught.value.desc == text


_COMMAND = st.tuples(
    st.sampled_from([0, 1, 2, 4, 5, 6, 8, 9, 0x0A, 0x0C, 0x19, 0x80]),
    st.sampled_from([0, 1, 2, 0xFFFFFFFF]),
    st.sampled_from([_BUFFER, _ADMIN, _IO, 0xE0000000, 0xFFFFFFFFFFFFF000, 0x1FFFE00, 3]),
    st.sampled_from([0, _LIST, _LIST + 4, _IO + 0x1000, 0xFFFFFFFFFFFFF000]),
    st.lists(st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0, 16)), max_size=6),
    st.integers(0, 1),
)


_WRITE = st.tuples(st.integers(0, 0x3FF), st.integers(0, 0xFFFFFFFF))


@given(st.lists(_COMMAND, max_size=12), st.lists(_WRITE, max_size=8))
def test_hostile_commands(tmp_path_factory: Any, commands: list[Any], writes: list[tuple[int, int]]) -> None:
    guest = Guest(tmp_path_factory.mktemp("nvme"))
    try:
        guest.access.write(_LIST, _le(_LIST, 8) * 512)  # a list that leads to itself
        for opcode, namespace, prp1, prp2, words, queue in commands:
            guest.put(opcode, namespace, prp1, prp2, tuple(words), queue)
        for word, value in writes:
            guest.access.store(guest.base + 4 * word, 4, value)
            guest.access.store(guest.base + 0x1000 + 4 * (word & 7), 4, value)
        guest.access.store(guest.base + _CC, 4, 0)
        guest.enable()
        assert guest.io(0x02, 0, 1) == 0
    finally:
        guest.machine.close()


def test_the_memory_of_the_controller(tmp_path: Path) -> None:
    guest = Guest(tmp_path, cmb_size_mb="2")
    bar = guest.function.bars[2]
    assert guest.function.config(0x18, 4) & 0xF == 0xC
    assert guest.access.load(guest.base, 8) >> 57 & 1
    assert guest.access.load(guest.base + 0x3C, 4) == 0
    guest.access.store(guest.base + 0x50, 4, 1)
    assert guest.access.load(guest.base + 0x3C, 4) >> 12 == 2
    assert guest.access.load(guest.base + 0x38, 4) & 7 == 2
    # Data may come to lie there.
    assert guest.command(0x02, namespace=1, prp1=bar + 0x1000, words=(5, 0, 0), queue=1)[0] == 0
    assert guest.access.read(bar + 0x1000, 512) == bytes([5]) * 512
    guest.access.store(bar + (2 << 20) - 1, 1, 0x77)
    assert guest.access.load(bar + (2 << 20) - 1, 1) == 0x77
    guest.machine.close()


@pytest.mark.parametrize("buffer", ["0", "1"])
def test_persistent_memory(buffer: str) -> None:
    machine = simple_machine(memory=32 << 20)
    access = BoardAccess(machine)
    with machine.control:
        machine.objects.create("memory-backend-ram", "pmr", {"size": 1 << 20})
        options = {"driver": "nvme", "serial": "x", "addr": "5", "pmrdev": "pmr", "id": "n", "cmb_size_mb": buffer}
        add_device(machine, options, keyval=True)
    function = PciFunction(access, 5 << 3)
    function.enable()
    base, bar = function.bars[0], function.bars[4]
    assert function.config(0x20, 4) & 0xF == 0xC  # of 64 bits, and may be prefetched
    access.store(bar, 4, 0x11223344)
    assert access.load(bar, 4) != 0x11223344
    assert access.load(base + 0xE08, 4) == 0x100
    access.store(base + 0xE04, 4, 1)
    access.store(bar, 4, 0x11223344)
    assert access.load(bar, 4) == 0x11223344
    assert access.load(base + 0xE08, 4) == 0
    with machine.control:
        machine.board.reset_all()  # type: ignore[union-attr]
    function.enable()
    access.store(base + 0xE04, 4, 1)
    assert access.load(bar, 4) == 0x11223344
    machine.close()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("cmb_size_mb", "3", "cmb_size_mb must be a power of 2"),
        ("cmb_size_mb", "4096", "cmb_size_mb must not be larger than 1024"),
    ],
)
def test_memory_that_cannot_be(name: str, value: str, text: str) -> None:
    machine = simple_machine(memory=1 << 20)
    with machine.control, pytest.raises(QobraError, match=text):
        add_device(machine, {"driver": "nvme", "serial": "x", name: value}, keyval=True)
    machine.close()


def _move(source: Any, destination: Any, *, spoil: Any = None) -> None:
    with source.control:
        source.run_state.settle()
        (_kind, head), *sections = machine_state.save_devices(source, "paused")
    payloads = [bytes(payload) for _kind, payload in sections]
    with destination.control:
        destination.board.ram.view[:] = source.board.ram.view
        machine_state.load_devices(destination, bytes(head), payloads if spoil is None else spoil(payloads))


def test_its_state_moves(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    there = Guest(tmp_path / "there")
    guest.put(0x0C, 0, 0, 0, (), 0)  # waits for an event
    assert guest.command(0x09, words=(0x0B, 0x100), queue=0) == (0, 0)
    assert guest.io(0x02, 3, 1) == 0
    _move(guest.machine, there.machine)
    guest.access, machine = there.access, there.machine
    assert guest.io(0x02, 9, 1) == 0
    assert guest.access.read(_BUFFER, 512) == bytes([9]) * 512
    assert guest.command(0x0A, words=(0x0B,)) == (0, 0x100)
    with machine.control:
        machine.block.graph.nodes["disk"].truncate(2 << 20)
        there.device._resized()
    code, event = guest.answer(0)
    assert (code, event & 0xFF0007) == (0, 4 << 16 | 2)
    machine.close()


def test_state_that_no_guest_can_have_made_is_refused(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    there = Guest(tmp_path / "there")
    size = _le(1, 2) + _le(_IO, 8) + _le(_ENTRIES, 2)

    def spoil(payloads: list[bytes]) -> list[bytes]:
        assert any(size in each for each in payloads)
        return [each.replace(size, _le(1, 2) + _le(_IO, 8) + _le(1, 2)) for each in payloads]

    with pytest.raises(QobraError, match="queue 1 cannot be"):
        _move(guest.machine, there.machine, spoil=spoil)
    there.machine.close()


def test_memory_of_its_own_stays(tmp_path: Path) -> None:
    guest = Guest(tmp_path, cmb_size_mb="1")
    with guest.machine.control, pytest.raises(QobraError, match="memory that it offers cannot be moved"):
        machine_state.save_devices(guest.machine, "paused")
    guest.machine.close()


def _log(guest: Guest, page: int, length: int, *, offset: int = 0, namespace: int = 0xFFFFFFFF) -> tuple[int, bytes]:
    """The status of reading a log, and ``length`` bytes of it."""
    guest.access.write(_BUFFER, b"\xee" * length)
    count = length // 4 - 1
    words = (page | (count & 0xFFFF) << 16, count >> 16, offset & 0xFFFFFFFF, offset >> 32)
    code, _result = guest.command(0x02, namespace, words=words)
    return code, guest.access.read(_BUFFER, length)


def test_the_log_of_health_counts_what_was_moved(guest: Guest) -> None:
    code, before = _log(guest, 2, 512)
    assert code == 0 and before[0] == 0 and 273 < int.from_bytes(before[1:3], "little") < 373
    assert before[3:5] == bytes((100, 10)) and not any(before[32:96])
    for _ in range(2):
        assert guest.io(0x02, 0, 8) == 0
    assert guest.io(0x01, 0, 8) == 0
    _code, after = _log(guest, 2, 512)
    # Units of a thousand blocks, begun ones too; then commands.
    assert [int.from_bytes(after[at : at + 16], "little") for at in (32, 48, 64, 80)] == [1, 1, 2, 1]
    assert _log(guest, 2, 512, namespace=1) == (0, after)
    for namespace in (0, 9, 300):
        assert _log(guest, 2, 512, namespace=namespace)[0] == 0x400B


def test_other_logs(guest: Guest) -> None:
    assert _log(guest, 1, 64) == (0, bytes(64))
    code, slots = _log(guest, 3, 512)
    assert code == 0 and slots[0] == 1 and not any(slots[1:8]) and slots[8:16].strip() and not any(slots[16:])
    code, effects = _log(guest, 5, 4096)
    commands = {at // 4 for at in range(0, 1024, 4) if effects[at] & 1}
    assert code == 0 and {0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x09, 0x0A} <= commands
    assert {0x00, 0x01, 0x02} <= {at // 4 for at in range(0, 1024, 4) if effects[1024 + at] & 1}
    assert effects[1024 + 4] & 2 and not effects[1024 + 8] & 2  # writes change what is there, reads do not


def test_parts_of_logs(guest: Guest) -> None:
    whole = _log(guest, 5, 4096)[1]
    assert _log(guest, 5, 1024, offset=1020) == (0, whole[1020 : 1020 + 1024])
    code, data = _log(guest, 5, 64, offset=4096 - 32)
    assert code == 0 and data == whole[-32:] + b"\xee" * 32
    for page, offset in ((1, 64), (2, 512), (3, 512), (4, 4096), (5, 4096), (5, 1 << 40), (5, 2), (0x70, 0)):
        assert _log(guest, page, 64, offset=offset) == (0x4002, b"\xee" * 64)
