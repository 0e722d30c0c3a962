"""The vhost-user-blk export, driven by a front end and a virtio driver written for the purpose."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import gc
import os
import random
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.export.vhost_user_blk import protocol as vu
from qobra.block.export.vhost_user_blk import requests as blk
from qobra.block.export.vhost_user_blk import vring
from qobra.errors import QobraError
from qobra.testing.waiting import wait_until

MIB = 1 << 20
GUEST = 0x10_0000
USER = 0x7F00_0000_0000
MEMORY = 4 * MIB
SIZE = 64
DESCRIPTORS, AVAILABLE, USED, DATA = 0, 0x1000, 0x2000, 0x10000


class FrontEnd:
    """Memory, one queue of SIZE descriptors, and the messages that set it up."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(path)
        self.memory = os.memfd_create("guest")
        os.ftruncate(self.memory, MEMORY)
        self.kick = os.eventfd(0)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self._next = 0
        self._seen = 0
        self.event_idx = False

    def send(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 0) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([vu.HEADER.pack(request, vu.FLAG_VERSION | flags, len(payload)) + payload], rights)

    def ask(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 0) -> bytes:
        self.send(request, payload, fds, flags)
        answered, reply_flags, size = vu.HEADER.unpack(self._recv(vu.HEADER.size))
        assert (answered, reply_flags) == (request, vu.FLAG_VERSION | vu.FLAG_REPLY)
        return self._recv(size)

    def _recv(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.sock.recv(length - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def set_up(self, *, event_idx: bool = False, flush: bool = True) -> FrontEnd:
        (offered,) = vu.U64.unpack(self.ask(vu.GET_FEATURES))
        assert offered >> vu.F_PROTOCOL_FEATURES & 1
        chosen = offered if event_idx else offered & ~(1 << blk.RING_F_EVENT_IDX)
        chosen = chosen if flush else chosen & ~(1 << blk.F_FLUSH)
        self.event_idx = event_idx
        protocol = self.ask(vu.GET_PROTOCOL_FEATURES)
        self.send(vu.SET_PROTOCOL_FEATURES, protocol)
        self.send(vu.SET_OWNER)
        self.send(vu.SET_FEATURES, vu.U64.pack(chosen))
        region = vu.MEM_REGION.pack(GUEST, MEMORY, USER, 0)
        assert self.ask(
            vu.SET_MEM_TABLE, vu.MEM_HEADER.pack(1, 0) + region, (self.memory,), vu.FLAG_NEED_REPLY
        ) == vu.U64.pack(0)
        self.start_queue(0)
        return self

    def start_queue(self, base: int) -> None:
        self.send(vu.SET_VRING_NUM, vu.VRING_STATE.pack(0, SIZE))
        self.send(vu.SET_VRING_BASE, vu.VRING_STATE.pack(0, base))
        self.send(vu.SET_VRING_ADDR, vu.VRING_ADDR.pack(0, 0, USER + DESCRIPTORS, USER + USED, USER + AVAILABLE, 0))
        self.send(vu.SET_VRING_KICK, vu.U64.pack(0), (self.kick,))
        self.send(vu.SET_VRING_CALL, vu.U64.pack(0), (self.call,))
        self.send(vu.SET_VRING_ENABLE, vu.VRING_STATE.pack(0, 1))

    # The driver -------------------------------------------------------------------------------------------------------

    def poke(self, offset: int, data: bytes) -> None:
        os.pwrite(self.memory, data, offset)

    def peek(self, offset: int, length: int) -> bytes:
        return os.pread(self.memory, length, offset)

    def describe(self, index: int, offset: int, length: int, flags: int, following: int = 0) -> None:
        self.poke(
            DESCRIPTORS + 16 * index,
            vring.DESCRIPTOR.pack(GUEST + offset if offset >= 0 else 1, length, flags, following),
        )

    def submit(self, head: int) -> None:
        self.poke(AVAILABLE + 4 + 2 * (self._next % SIZE), vring.U16.pack(head))
        self._next += 1
        self.poke(AVAILABLE + 2, vring.U16.pack(self._next & 0xFFFF))
        if self.event_idx:
            self.poke(AVAILABLE + 4 + 2 * SIZE, vring.U16.pack(self._seen & 0xFFFF))
        os.eventfd_write(self.kick, 1)

    def completed(self) -> tuple[int, int]:
        """(head, bytes written) of the next completion."""
        deadline = time.monotonic() + 30
        while vring.U16.unpack(self.peek(USED + 2, 2))[0] == self._seen & 0xFFFF:
            assert time.monotonic() < deadline
            select.select([self.call], [], [], 0.02)
        element = self.peek(USED + 4 + 8 * (self._seen % SIZE), 8)
        self._seen += 1
        head, written = vring.USED_ELEMENT.unpack(element)
        return head, written

    def request(self, kind: int, sector: int, out: bytes = b"", into: int = 0) -> tuple[int, bytes]:
        """(status, data) of one request."""
        self.poke(DATA, blk.HEADER.pack(kind, 0, sector) + out)
        status = DATA + MIB
        self.poke(status, b"\xff")
        self.describe(0, DATA, 16, vring.F_NEXT, 1)
        index = 1
        if out:
            half = len(out) // 2
            for start, length in ((0, half), (half, len(out) - half)):
                self.describe(index, DATA + 16 + start, length, vring.F_NEXT, index + 1)
                index += 1
        if into:
            self.describe(index, status - into, into, vring.F_NEXT | vring.F_WRITE, index + 1)
            index += 1
        self.describe(index, status, 1, vring.F_WRITE)
        self.submit(0)
        head, written = self.completed()
        assert head == 0 and written in (1, into + 1)
        return self.peek(status, 1)[0], self.peek(status - into, into)

    def dropped(self) -> bool:
        """Whether the other end has hung up."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.sock.close()
        for fd in (self.memory, self.kick, self.call):
            os.close(fd)


@pytest.fixture
def attach(exporter: Any) -> Iterator[Any]:
    """``attach(node, **options)``: export the node, and a front end on it."""
    made: list[FrontEnd] = []

    def connect(node: str, **options: Any) -> FrontEnd:
        path = str(exporter.tmp_path / "vhost.sock")
        if not os.path.exists(path):
            with exporter.layer.control:
                exporter.exports.add(
                    {
                        "type": "vhost-user-blk",
                        "id": "e",
                        "node-name": node,
                        "writable": True,
                        "addr": {"type": "unix", "path": path},
                        **options,
                    }
                )
        made.append(FrontEnd(path))
        return made[-1]

    yield connect
    for each in made:
        each.close()


def test_a_header_may_lie_in_several_pieces() -> None:
    views = [memoryview(part) for part in (b"01", b"23", b"456789", b"ab")]
    assert blk._split(views, 6) == (b"012345", [b"6789", b"ab"])
    assert blk._split(views, 2) == (b"01", views[1:])
    with pytest.raises(QobraError, match="without a header"):
        blk._split(views[:1], 3)


@pytest.mark.parametrize("event_idx", [False, True])
def test_data(exporter: Any, attach: Any, event_idx: bool) -> None:
    content = bytearray(random.Random(1).randbytes(MIB))
    exporter.file("n", bytes(content))
    front = attach("n").set_up(event_idx=event_idx)
    for turn in range(100):
        sector = turn * 17 % 2000
        if turn % 3:
            assert front.request(blk.T_IN, sector, into=4096) == (0, content[sector * 512 : sector * 512 + 4096])
        else:
            data = bytes([turn]) * 1024
            assert front.request(blk.T_OUT, sector, data)[0] == 0
            content[sector * 512 : sector * 512 + 1024] = data
    assert front.request(blk.T_FLUSH, 0)[0] == 0
    assert (exporter.tmp_path / "n.raw").read_bytes() == content


def test_discard_zeroes_identity_and_the_unknown(exporter: Any, attach: Any) -> None:
    node = exporter.told("n")
    node.data[:] = b"x" * MIB
    front = attach("n").set_up()
    assert front.request(blk.T_WRITE_ZEROES, 0, blk.RANGE.pack(8, 4, 1))[0] == 0
    assert front.request(blk.T_WRITE_ZEROES, 0, blk.RANGE.pack(16, 4, 0))[0] == 0
    assert front.request(blk.T_DISCARD, 0, blk.RANGE.pack(24, 8, 0))[0] == 0
    assert node.log == [("zero", 4096, 2048, True, False), ("zero", 8192, 2048, False, False), ("discard", 12288, 4096)]
    assert front.request(blk.T_DISCARD, 0, blk.RANGE.pack(24, 8, 1))[0] == blk.S_UNSUPP
    assert front.request(blk.T_DISCARD, 0, bytes(32))[0] == blk.S_UNSUPP
    for kind in (blk.T_DISCARD, blk.T_WRITE_ZEROES):
        assert front.request(kind, 0, blk.RANGE.pack(0, 1 << 20, 2))[0] == blk.S_IOERR
        assert front.request(kind, 0, bytes(8))[0] == blk.S_IOERR
    assert front.request(blk.T_GET_ID, 0, into=20) == (0, b"e".ljust(20, b"\0"))
    assert front.request(99, 0)[0] == blk.S_UNSUPP


def test_the_driver_is_told_at_once_of_what_was_done_before(exporter: Any, attach: Any) -> None:
    exporter.told("n")
    front = attach("n").set_up()
    assert select.select([front.call], [], [], 30)[0] and os.eventfd_read(front.call) == 1


def test_errors(exporter: Any, attach: Any) -> None:
    node = exporter.told("n")
    front = attach("n").set_up()
    assert front.request(blk.T_IN, MIB // 512, into=512)[0] == blk.S_IOERR
    assert front.request(blk.T_IN, (1 << 64) - 1, into=512)[0] == blk.S_IOERR
    assert front.request(blk.T_IN, 0, into=100)[0] == blk.S_IOERR
    node.failing = {"read": errno.EIO, "write": errno.ENOSPC}
    assert front.request(blk.T_IN, 0, into=512)[0] == blk.S_IOERR
    assert front.request(blk.T_OUT, 0, bytes(512))[0] == blk.S_IOERR
    node.failing = {}
    assert front.request(blk.T_IN, 0, into=512)[0] == 0


def test_read_only(exporter: Any, attach: Any) -> None:
    exporter.told("n")
    front = attach("n", writable=False).set_up()
    assert vu.U64.unpack(front.ask(vu.GET_FEATURES))[0] >> blk.F_RO & 1
    assert front.request(blk.T_OUT, 0, bytes(512))[0] == blk.S_IOERR
    assert front.request(blk.T_IN, 0, into=512) == (0, bytes(512))


def test_write_cache(exporter: Any, attach: Any) -> None:
    node = exporter.told("n")
    front = attach("n").set_up()
    front.request(blk.T_OUT, 0, bytes(512))
    assert node.log == [("write", 0, 512)]
    front.send(vu.SET_CONFIG, vu.CONFIG.pack(blk.WCE_OFFSET, 1, 0) + b"\0")
    front.ask(vu.GET_FEATURES)
    front.request(blk.T_OUT, 0, bytes(512))
    assert node.log[1:] == [("write", 0, 512), ("flush",)]


def test_a_driver_without_flushes_gets_stable_writes(exporter: Any, attach: Any) -> None:
    node = exporter.told("n")
    front = attach("n").set_up(flush=False)
    front.request(blk.T_OUT, 0, bytes(512))
    assert node.log == [("write", 0, 512), ("flush",)]


def test_configuration(exporter: Any, attach: Any) -> None:
    exporter.told("n")
    front = attach("n", **{"logical-block-size": 4096, "num-queues": 3})
    reply = front.ask(vu.GET_CONFIG, vu.CONFIG.pack(0, 60, 0) + bytes(60))
    fields = blk.CONFIG.unpack(reply[vu.CONFIG.size :])
    assert fields[0] == MIB // 512 and fields[6] == 4096 and fields[12] == 3
    assert vu.U64.unpack(front.ask(vu.GET_QUEUE_NUM)) == (3,)
    beyond = front.ask(vu.GET_CONFIG, vu.CONFIG.pack(50, 40, 0) + bytes(40))
    assert len(beyond) == vu.CONFIG.size + 40


def test_indirect_descriptors(exporter: Any, attach: Any) -> None:
    exporter.file("n", b"q" * MIB)
    front = attach("n").set_up()
    front.poke(DATA, blk.HEADER.pack(blk.T_IN, 0, 0))
    table = [
        (GUEST + DATA, 16, vring.F_NEXT, 1),
        (GUEST + DATA + 4096, 1000, vring.F_NEXT | vring.F_WRITE, 2),
        (GUEST + DATA + 8192, 25, vring.F_WRITE, 0),  # 24 bytes of data, and the status
    ]
    front.poke(DATA + 0x8000, b"".join(vring.DESCRIPTOR.pack(*entry) for entry in table))
    front.describe(5, DATA + 0x8000, 48, vring.F_INDIRECT)
    front.submit(5)
    assert front.completed() == (5, 1025)
    assert front.peek(DATA + 4096, 1000) == b"q" * 1000 and front.peek(DATA + 8192, 25) == b"q" * 24 + b"\0"


def test_the_ring_goes_on_where_it_stopped(exporter: Any, attach: Any) -> None:
    exporter.file("n", b"q" * MIB)
    front = attach("n").set_up()
    for _ in range(70):  # once around
        assert front.request(blk.T_IN, 0, into=512)[0] == 0
    assert vu.VRING_STATE.unpack(front.ask(vu.GET_VRING_BASE, vu.VRING_STATE.pack(0, 0))) == (0, 70)
    front.start_queue(70)
    assert front.request(blk.T_IN, 0, into=512)[0] == 0


def test_the_next_front_end_comes_when_the_first_has_left(exporter: Any, attach: Any) -> None:
    exporter.file("n", b"q" * MIB)
    first = attach("n").set_up()
    second = attach("n")
    second.send(vu.GET_FEATURES)
    assert not select.select([second.sock], [], [], 0.01)[0]
    with pytest.raises(QobraError, match="still in use"):
        exporter.exports.remove("e")
    first.sock.shutdown(socket.SHUT_RDWR)
    assert second._recv(20)
    assert second.set_up().request(blk.T_IN, 0, into=512) == (0, b"q" * 512)


def test_the_memory_is_let_go_when_the_front_end_has_left(exporter: Any) -> None:
    def is_held() -> bool:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            return "/memfd:guest" in maps.read()

    exporter.told("n")
    path = str(exporter.tmp_path / "vhost.sock")
    options = {"type": "vhost-user-blk", "id": "e", "node-name": "n", "addr": {"type": "unix", "path": path}}
    with exporter.layer.control:
        exporter.exports.add(options)
    gc.collect()
    gc.disable()
    try:
        front = FrontEnd(path).set_up()
        assert front.request(blk.T_IN, 0, into=512)[0] == 0
        assert is_held()
        front.close()
        wait_until(lambda: not is_held())
    finally:
        gc.enable()


def test_removal_disconnects(exporter: Any, attach: Any) -> None:
    exporter.told("n")
    front = attach("n").set_up()
    exporter.exports.remove("e", "hard")
    assert front.dropped()
    wait_until(lambda: exporter.events)
    assert exporter.events == [("BLOCK_EXPORT_DELETED", {"id": "e"})]
    assert not os.path.exists(exporter.tmp_path / "vhost.sock")


def test_a_driver_that_does_not_look_holds_nobody_up(exporter: Any, attach: Any) -> None:
    """It is told through a pipe that is full."""
    exporter.told("n")
    front = attach("n").set_up()
    read, write = os.pipe()
    os.write(write, bytes(fcntl.fcntl(write, fcntl.F_GETPIPE_SZ)))
    front.send(vu.SET_VRING_CALL, vu.U64.pack(0), (write,))
    for _ in range(3):
        assert front.request(blk.T_IN, 0, into=512)[0] == 0
    exporter.exports.remove("e", "hard")
    assert front.dropped()
    for each in (read, write):
        os.close(each)


def test_a_queue_stops_though_its_driver_always_has_another_request(exporter: Any, attach: Any) -> None:
    """Each read brings the next request along: it writes the ring's count, and the sector that is read then."""
    header = 256
    content = bytearray(1 << 25)
    for sector in range(1 << 16):
        vring.U16.pack_into(content, sector * 512, sector + 2 & 0xFFFF)
        blk.HEADER.pack_into(content, sector * 512 + header, blk.T_IN, 0, sector + 1 & 0xFFFF)
    exporter.file("n", bytes(content))
    front = attach("n").set_up()
    front.sock.settimeout(10)
    front.poke(AVAILABLE + 2 + header, blk.HEADER.pack(blk.T_IN, 0, 0))
    front.describe(0, AVAILABLE + 2 + header, 16, vring.F_NEXT, 1)
    front.describe(1, AVAILABLE + 2, 512, vring.F_NEXT | vring.F_WRITE, 2)
    front.describe(2, DATA, 1, vring.F_WRITE)
    front.submit(0)
    for _ in range(2):
        front.completed()
        front._seen = vring.U16.unpack(front.peek(USED + 2, 2))[0]
    stop = vu.VRING_STATE.pack(0, 0)
    assert front.ask(vu.SET_VRING_ENABLE, stop, flags=vu.FLAG_NEED_REPLY) == vu.U64.pack(0)
    assert vring.U16.unpack(front.peek(AVAILABLE + 2, 2)) != vring.U16.unpack(front.peek(USED + 2, 2))


def test_memory_slots(exporter: Any, attach: Any) -> None:
    exporter.file("n", b"q" * MIB)
    front = attach("n").set_up()
    assert vu.U64.unpack(front.ask(vu.GET_MAX_MEM_SLOTS))[0] >= 8
    more = vu.MEM_SINGLE.pack(0, 1 << 40, MEMORY, USER + (1 << 30), 0)
    assert front.ask(vu.ADD_MEM_REG, more, (front.memory,), vu.FLAG_NEED_REPLY) == vu.U64.pack(0)
    assert front.ask(vu.ADD_MEM_REG, more, (front.memory,), vu.FLAG_NEED_REPLY) == vu.U64.pack(1)  # overlaps
    assert front.request(blk.T_IN, 0, into=512)[0] == 0
    assert front.ask(vu.REM_MEM_REG, more, (), vu.FLAG_NEED_REPLY) == vu.U64.pack(0)
    assert front.ask(vu.REM_MEM_REG, more, (), vu.FLAG_NEED_REPLY) == vu.U64.pack(1)


@pytest.mark.parametrize(
    "message",
    [
        struct.pack("<III", vu.GET_FEATURES, 2, 0),
        struct.pack("<III", vu.GET_FEATURES, 1, 1 << 30),
        vu.HEADER.pack(vu.SET_FEATURES, 1, 8) + b"\xff" * 8,
        vu.HEADER.pack(vu.SET_FEATURES, 1, 3) + b"123",
        vu.HEADER.pack(vu.SET_VRING_NUM, 1, 8) + vu.VRING_STATE.pack(7, 1),
        vu.HEADER.pack(vu.SET_MEM_TABLE, 1, 8) + vu.MEM_HEADER.pack(1, 0),
        vu.HEADER.pack(vu.SET_MEM_TABLE, 1, 8) + vu.MEM_HEADER.pack(1 << 31, 0),
        vu.HEADER.pack(vu.SET_CONFIG, 1, 13) + vu.CONFIG.pack(0, 1, 0) + b"x",
        vu.HEADER.pack(99, 1, 0),
    ],
)
def test_messages_that_make_no_sense(exporter: Any, attach: Any, message: bytes) -> None:
    exporter.told("n")
    front = attach("n")
    front.sock.sendall(message)
    assert front.dropped()
    assert attach("n").set_up().request(blk.T_IN, 0, into=512)[0] == 0


def test_memory_that_is_not_there(exporter: Any, attach: Any) -> None:
    exporter.told("n")
    front = attach("n")
    region = vu.MEM_REGION.pack(GUEST, MEMORY + 4096, USER, 0)
    front.send(vu.SET_MEM_TABLE, vu.MEM_HEADER.pack(1, 0) + region, (front.memory,))
    assert front.dropped()


def file_of_memory(tmp_path: Any, kind: str) -> int:
    if kind == "memfd":
        return os.memfd_create("guest")
    return os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)


@pytest.mark.parametrize("kind", ["memfd", "file"])
@pytest.mark.parametrize("kicked", [False, True])
def test_memory_that_goes_away(exporter: Any, attach: Any, tmp_path: Any, kind: str, kicked: bool) -> None:
    """What touches it finds nothing there, and the front end is dropped; the next one is served."""
    exporter.told("n")
    front = attach("n")
    os.close(front.memory)
    front.memory = file_of_memory(tmp_path, kind)
    os.ftruncate(front.memory, MEMORY)
    front.set_up()
    assert front.request(blk.T_OUT, 0, b"x" * 512)[0] == 0
    os.ftruncate(front.memory, 0)
    if kicked:
        os.eventfd_write(front.kick, 1)
    else:
        with contextlib.suppress(BrokenPipeError):  # dropped already
            front.start_queue(0)
    assert front.dropped()
    assert attach("n").set_up().request(blk.T_IN, 0, into=512) == (0, b"x" * 512)


def test_memory_that_goes_away_where_the_signal_is_held_back(exporter: Any, attach: Any) -> None:
    """As in a machine, which waits for it elsewhere."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGBUS})
    try:
        exporter.told("n")
        front = attach("n").set_up()
        front.request(blk.T_IN, 0, into=512)
        os.ftruncate(front.memory, 0)
        os.eventfd_write(front.kick, 1)
        assert front.dropped()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_nothing_is_written_of_data_that_went_away(exporter: Any, attach: Any) -> None:
    node = exporter.told("n")
    front = attach("n")
    os.ftruncate(front.memory, DATA + 16)  # the queue and the header are there, the data are not
    front.send(vu.SET_FEATURES, vu.U64.pack(1 << blk.F_VERSION_1))
    region = vu.MEM_REGION.pack(GUEST, DATA + 16, USER, 0)
    front.send(vu.SET_MEM_TABLE, vu.MEM_HEADER.pack(1, 0) + region, (front.memory,))
    second = os.memfd_create("data")
    os.ftruncate(second, 4096)
    more = vu.MEM_SINGLE.pack(0, 1 << 40, 4096, USER + (1 << 30), 0)
    front.send(vu.ADD_MEM_REG, more, (second,))
    front.start_queue(0)
    front.poke(DATA, blk.HEADER.pack(blk.T_OUT, 0, 0))
    front.describe(0, DATA, 16, vring.F_NEXT, 1)
    front.poke(DESCRIPTORS + 16, vring.DESCRIPTOR.pack(1 << 40, 512, vring.F_NEXT, 2))
    front.describe(2, DATA + 15, 1, vring.F_WRITE)
    front.ask(vu.GET_FEATURES)
    os.ftruncate(second, 0)
    front.submit(0)
    assert front.dropped()
    assert node.log == []
    os.close(second)


def test_requests_of_more_than_there_is_memory(exporter: Any, attach: Any) -> None:
    """All descriptors are of the same memory."""
    node = exporter.told("n", size=80 * MIB)
    front = attach("n").set_up()
    for kind, segments, status in (
        (blk.T_OUT, 17, blk.S_OK),
        (blk.T_IN, 17, blk.S_OK),
        (blk.T_OUT, 1000, blk.S_IOERR),
        (blk.T_DISCARD, 1000, blk.S_UNSUPP),
    ):
        front.poke(DATA, blk.HEADER.pack(kind, 0, 0))
        into = vring.F_WRITE if kind == blk.T_IN else 0
        table = [(GUEST + DATA, 16, vring.F_NEXT, 1)]
        table += [(GUEST + 3 * MIB, MIB, vring.F_NEXT | into, index + 2) for index in range(segments)]
        table.append((GUEST + DATA + 64, 1, vring.F_WRITE, 0))
        front.poke(2 * MIB, b"".join(vring.DESCRIPTOR.pack(*entry) for entry in table))
        front.describe(0, 2 * MIB, 16 * len(table), vring.F_INDIRECT)
        front.submit(0)
        front.completed()
        assert front.peek(DATA + 64, 1)[0] == status
    assert node.log == [("write", 0, 17 * MIB)] + [("read", turn * MIB, MIB) for turn in range(17)]


def test_long_requests_are_done_in_pieces(exporter: Any, attach: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(blk, "MAX_PIECE", 4096)
    node = exporter.told("n")
    front = attach("n").set_up()
    data = random.Random(2).randbytes(3 * 4096 + 512)
    assert front.request(blk.T_OUT, 1, data)[0] == 0
    assert [entry[2] for entry in node.log] == [4096, 2304, 4096, 2304]
    assert node.data[512 : 512 + len(data)] == data
    assert front.request(blk.T_IN, 1, into=len(data)) == (0, data)


@pytest.mark.parametrize("request_number", [vu.SET_VRING_KICK, vu.SET_VRING_CALL])
@pytest.mark.parametrize("kind", ["file", "device", "epoll", "none", "two"])
def test_notifications_by_what_never_waits(
    exporter: Any, attach: Any, tmp_path: Any, request_number: int, kind: str
) -> None:
    exporter.told("n")
    front = attach("n").set_up()
    fds: list[int] = []
    match kind:
        case "file":
            fds.append(os.open(tmp_path / "kick", os.O_RDWR | os.O_CREAT))
        case "device":
            fds.append(os.open("/dev/zero", os.O_RDWR))
        case "two":
            fds += [front.kick, front.kick]
    held = select.epoll()
    fds = [held.fileno()] if kind == "epoll" else fds
    answer = front.ask(request_number, vu.U64.pack(0), tuple(fds), vu.FLAG_NEED_REPLY)
    assert answer == vu.U64.pack(1)
    assert front.request(blk.T_IN, 0, into=512)[0] == 0
    if kind in ("file", "device"):
        os.close(fds[0])


def test_a_pipe_that_nobody_kicks_any_more(exporter: Any, attach: Any) -> None:
    exporter.told("n")
    front = attach("n").set_up()
    read, write = os.pipe()
    front.send(vu.SET_VRING_KICK, vu.U64.pack(0), (read,))
    front.ask(vu.GET_FEATURES)
    os.close(write)
    assert front.dropped()
    os.close(read)


def test_messages_that_are_cut_off(exporter: Any, attach: Any) -> None:
    exporter.told("n")
    region = vu.MEM_REGION.pack(GUEST, MEMORY, USER, 0)
    body = vu.MEM_HEADER.pack(1, 0) + region
    message = vu.HEADER.pack(vu.SET_MEM_TABLE, 1, len(body)) + body
    for length in range(len(message)):
        front = attach("n")
        front.sock.sendall(message[:length])
        front.sock.shutdown(socket.SHUT_WR)
        assert front.dropped()
    for fds in (0, 2, 9, 250):
        front = attach("n")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [front.memory] * fds))]
        front.sock.sendmsg([message], rights if fds else [])
        assert front.dropped()
    assert attach("n").set_up().request(blk.T_IN, 0, into=512)[0] == 0


def corrupt(front: FrontEnd, what: str) -> None:
    front.poke(DATA, blk.HEADER.pack(blk.T_IN, 0, 0))
    front.describe(0, DATA, 16, vring.F_NEXT, 1)
    front.describe(1, DATA + 512, 513, vring.F_WRITE)
    match what:
        case "loop":
            front.describe(0, DATA, 16, vring.F_NEXT, 0)
        case "next":
            front.describe(0, DATA, 16, vring.F_NEXT, SIZE)
        case "address":
            front.describe(1, -1, 513, vring.F_WRITE)
        case "length":
            front.describe(1, DATA, 0xFFFFFFFF, vring.F_WRITE)
        case "order":
            front.describe(0, DATA, 513, vring.F_NEXT | vring.F_WRITE, 1)
            front.describe(1, DATA, 16, 0)
        case "status":
            front.describe(0, DATA, 16, 0)
        case "header":
            front.describe(0, DATA, 15, vring.F_NEXT, 1)
        case "indirect":
            front.describe(0, DATA, 17, vring.F_INDIRECT)
        case "nested":
            front.poke(DATA, vring.DESCRIPTOR.pack(GUEST + DATA, 16, vring.F_INDIRECT, 0))
            front.describe(0, DATA, 16, vring.F_INDIRECT)


@pytest.mark.parametrize(
    "what", ["loop", "next", "address", "length", "order", "status", "header", "indirect", "nested", "head", "count"]
)
def test_queues_that_break_the_rules(exporter: Any, attach: Any, what: str) -> None:
    exporter.told("n")
    front = attach("n").set_up()
    corrupt(front, what)
    if what == "count":
        front.poke(AVAILABLE + 2, vring.U16.pack(SIZE + 1))
        os.eventfd_write(front.kick, 1)
    else:
        front.submit(SIZE if what == "head" else 0)
    assert front.dropped()
    exporter.exports.query()


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2), st.binary(max_size=60)), max_size=5))
def test_any_front_end_ends(make_exporter: Any, tmp_path_factory: Any, messages: Any) -> None:
    exporter = make_exporter(tmp_path_factory.mktemp("any"))
    exporter.told("n")
    path = str(exporter.tmp_path / "s")
    with exporter.layer.control:
        exporter.exports.add(
            {"type": "vhost-user-blk", "id": "e", "node-name": "n", "addr": {"type": "unix", "path": path}}
        )
    front = FrontEnd(path)
    try:
        for request, flags, payload in messages:
            front.send(request, payload, (front.memory,) if flags == 2 else (), vu.FLAG_NEED_REPLY if flags else 0)
    except OSError:
        pass  # dropped already
    front.close()
    exporter.close()


def test_refusals(exporter: Any) -> None:
    exporter.told("n")
    options = {"type": "vhost-user-blk", "id": "e", "node-name": "n", "addr": {"type": "unix", "path": "/nope/s"}}
    for more, text in (
        ({}, "Failed to bind socket to /nope/s: No such file or directory"),
        ({"num-queues": 0}, "num-queues must be greater than 0"),
        (
            {"addr": {"type": "inet", "host": "h", "port": "1"}},
            "Only socket address types 'unix' and 'fd' are supported",
        ),
        (
            {"logical-block-size": 100},
            "Property e.logical-block-size doesn't take value 100 (minimum: 512, maximum: 2097152)",
        ),
        (
            {"logical-block-size": 1000},
            "Property e.logical-block-size doesn't take value '1000', it's not a power of 2",
        ),
    ):
        with pytest.raises(QobraError) as caught:
            exporter.exports.add({**options, **more})
        assert caught.value.desc == text
    assert exporter.exports.query() == []


def test_a_node_that_may_not_be_written_is_told_before_a_wrong_option(exporter: Any) -> None:
    node = exporter.told("n")
    with exporter.layer.control:
        other = BlockBackend(exporter.layer, perm=0, shared=permissions.CONSISTENT_READ)
        other.insert(node)
        options = {"type": "vhost-user-blk", "id": "e", "node-name": "n", "addr": {"type": "unix", "path": "s"}}
        with pytest.raises(QobraError, match="Permission conflict"):
            exporter.exports.add({**options, "writable": True, "logical-block-size": 100})
        other.remove()
