"""vhost-user: disks, directories and network cards whose queues another process serves."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.block.export.vhost_user_blk import protocol as vu
from qobra.block.export.vhost_user_blk.memory import Memory as SharedMemory
from qobra.block.export.vhost_user_blk.memory import map_region
from qobra.block.export.vhost_user_blk.vring import Vring
from qobra.chardev import vhost_user
from qobra.errors import QobraError
from qobra.machine.launch import attach_board, find_board
from qobra.machine.machine import Machine
from qobra.machine.plug import add_device
from qobra.machine.virtio.vhost import Vhost
from qobra.migration.machine_state import check_declared
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess, Memory, ModernPci, PciFunction, Queue, driver_ok, start_driver
from qobra.testing.guest_drivers import BlockDriver
from qobra.testing.waiting import wait_until


class Guest:
    """A PC in slot 5 of which a device is plugged; its memory is shared unless ``backend`` says otherwise."""

    def __init__(self, backend: str = "memory-backend-memfd") -> None:
        self.machine = Machine(capabilities=frozenset(("board", "x86_64")))
        with self.machine.control:
            board = attach_board(self.machine, find_board("x86_64", "pc"))
            board.set_topology({"cpus": 1})
            self.machine.objects.create(backend, "mem", {"size": 32 << 20})
            board.max_ram_size, board.memory_slots = 64 << 20, 1
            board.set_memory(32 << 20, backend="mem")
            board.start()
            board.finish()
            self.machine.run_state.start()
        self.access = BoardAccess(self.machine)
        self.memory = Memory()

    def call(self, command: str, **arguments: Any) -> Any:
        with self.machine.control:
            named = {key.replace("_", "-"): value for key, value in arguments.items()}
            return dispatch.call(self.machine, command, named)

    def chardev(self, path: Path | str) -> None:
        address = {"type": "unix", "data": {"path": str(path)}}
        self.call("chardev-add", id="c", backend={"type": "socket", "data": {"addr": address, "server": False}})

    def plug(self, driver: str, **options: Any) -> ModernPci:
        with self.machine.control:
            add_device(self.machine, {"driver": driver, "id": "d", "addr": 5 << 3} | options, keyval=False)
        function = PciFunction(self.access, 5 << 3)
        function.enable()
        return ModernPci(function)


@pytest.fixture
def guests() -> Iterator[Callable[..., Guest]]:
    made: list[Guest] = []

    def make(*arguments: str) -> Guest:
        made.append(Guest(*arguments))
        return made[-1]

    yield make
    for each in made:
        each.machine.close()


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[Path]:
    """The socket of a disk of ours, whose sectors begin with their numbers."""
    image = tmp_path / "image"
    image.write_bytes(b"".join(bytes([number]) * 512 for number in range(64)))
    server, path = Machine(), tmp_path / "socket"
    with server.control:
        server.block.add_node({"driver": "file", "filename": str(image), "node-name": "n"})
        address = {"type": "unix", "path": str(path)}
        options = {"type": "vhost-user-blk", "id": "e", "node-name": "n", "writable": True, "addr": address}
        server.block.exports.add(options)
    yield path
    server.close()


def test_a_disk(guests: Callable[..., Guest], exported: Path) -> None:
    guest = guests()
    guest.chardev(exported)
    transport = guest.plug("vhost-user-blk-pci", chardev="c")
    assert transport.config(0, 8) == 64
    disk = BlockDriver(transport, guest.memory, features=1 << 32)
    assert disk.request(0, 7, read=512) == (0, b"\7" * 512)
    assert disk.request(1, 9, b"new" + bytes(509))[0] == 0
    assert disk.request(0, 9, read=3 + 509)[1][:3] == b"new"
    assert disk.request(0, 64, read=512)[0] == 1
    # The queue goes on where it was.
    guest.call("stop")
    guest.call("cont")
    assert disk.request(0, 8, read=512) == (0, b"\x08" * 512)
    # A new driver begins at the beginning.
    disk = BlockDriver(transport, guest.memory, features=1 << 32)
    assert disk.request(0, 8, read=512) == (0, b"\x08" * 512)
    with pytest.raises(QobraError, match="busy"):
        guest.call("chardev-remove", id="c")


def test_memory_that_comes_later_is_shared_too(guests: Callable[..., Guest], exported: Path) -> None:
    guest = guests()
    guest.chardev(exported)
    disk = BlockDriver(guest.plug("vhost-user-blk-pci", chardev="c"), guest.memory, features=1 << 32)
    assert disk.request(0, 1, read=512)[0] == 0
    with guest.machine.control:
        guest.machine.objects.create("memory-backend-memfd", "more", {"size": 16 << 20})
        dimm: Any = add_device(guest.machine, {"driver": "pc-dimm", "id": "dimm", "memdev": "more"}, keyval=False)
    disk._buffer = dimm.addr
    assert disk.request(0, 3, read=512) == (0, b"\3" * 512)


def test_memory_of_its_own_cannot_be_served(
    guests: Callable[..., Guest], exported: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    guest = guests("memory-backend-ram")
    guest.chardev(exported)
    transport = guest.plug("vhost-user-blk-pci", chardev="c")
    start_driver(transport, 1 << 32)
    Queue(transport, guest.memory, 0)
    driver_ok(transport)
    assert "consider using -object memory-backend-file share=on" in capfd.readouterr().err


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory, whose server (virtiofsd) listens at the socket ``fs`` beside it."""
    daemon = Path("/usr/lib/qemu/virtiofsd")
    if not daemon.exists():
        pytest.skip("virtiofsd is not installed")
    if os.geteuid():
        pytest.skip("virtiofsd needs the privileges of root")
    shared, path = tmp_path / "shared", tmp_path / "fs"
    shared.mkdir()
    options = (f"--socket-path={path}", "-o", f"source={shared}", "-o", "sandbox=chroot")
    with subprocess.Popen([daemon, *options], stderr=subprocess.DEVNULL) as server:
        wait_until(path.exists)
        yield shared
        server.kill()


class FileSystemDriver:
    """A driver of virtio-fs with one queue for requests, each a FUSE message (linux/fuse.h, version 7.31)."""

    def __init__(self, guest: Guest, transport: ModernPci) -> None:
        self._guest = guest.access
        start_driver(transport, 1 << 32)
        _first, self._queue = (Queue(transport, guest.memory, number) for number in range(2))
        self._out, self._in = guest.memory.take(4096), guest.memory.take(4096)
        driver_ok(transport)
        self._unique = 0

    def request(self, operation: int, node: int, payload: bytes, answer: int) -> tuple[int, bytes]:
        """The error of an operation on a node, and its answer."""
        self._unique += 1
        size = 40 + len(payload)
        head = struct.pack("<IIQQIIII", size, operation, self._unique, node, 0, 0, 0, 0)
        self._guest.write(self._out, head + payload)
        self._queue.send([(self._out, size, False), (self._in, 16 + answer, True)])
        self._queue.wait_used()
        length, error, unique = struct.unpack("<IiQ", self._guest.read(self._in, 16))
        assert unique == self._unique
        return error, self._guest.read(self._in + 16, length - 16)


def test_a_directory(guests: Callable[..., Guest], directory: Path) -> None:
    (directory / "file").write_text("what is in it")
    guest = guests()
    guest.chardev(directory.parent / "fs")
    transport = guest.plug("vhost-user-fs-pci", chardev="c", tag="shared")
    assert bytes(transport.config(offset, 1) for offset in range(8)) == b"shared\0\0"
    assert transport.config(36, 4) == 1
    driver = FileSystemDriver(guest, transport)
    error, answer = driver.request(26, 0, struct.pack("<IIII", 7, 31, 0, 0), 64)
    assert (error, struct.unpack_from("<I", answer)[0]) == (0, 7)
    error, answer = driver.request(1, 1, b"file\0", 128)
    node, size = struct.unpack_from("<Q", answer)[0], struct.unpack_from("<Q", answer, 48)[0]
    assert (error, size) == (0, 13)
    error, answer = driver.request(14, node, struct.pack("<II", os.O_RDONLY, 0), 16)
    (handle,) = struct.unpack_from("<Q", answer)
    reading = struct.pack("<QQIIQII", handle, 0, 100, 0, 0, 0, 0)
    assert (error, driver.request(15, node, reading, 100)) == (0, (0, b"what is in it"))
    assert driver.request(1, 1, b"nothing\0", 128)[0] == -errno.ENOENT
    with guest.machine.control, pytest.raises(QobraError, match="State blocked by non-migratable device"):
        check_declared(guest.machine.board)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"chardev": None}, "missing chardev"),
        ({"tag": None}, "missing tag property"),
        ({"tag": ""}, "tag property cannot be empty"),
        ({"tag": "x" * 37}, "tag property must be 36 bytes or less"),
        ({"num-request-queues": 0}, "num-request-queues property must be larger than 0"),
        ({"num-request-queues": 1024}, "num-request-queues property must be 1023 or smaller"),
        ({"queue-size": 100}, "queue-size property must be a power of 2"),
        ({"queue-size": 2048}, "queue-size property must be 1024 or smaller"),
        ({}, "vhost_backend_init failed: Protocol error"),
    ],
)
def test_directories_that_cannot_be(guests: Callable[..., Guest], options: dict[str, Any], text: str) -> None:
    guest = guests()
    guest.call("chardev-add", id="c", backend={"type": "null", "data": {}})
    wanted = {"chardev": "c", "tag": "t"} | options
    with pytest.raises(QobraError) as refusal:
        guest.plug("vhost-user-fs-pci", **{name: value for name, value in wanted.items() if value is not None})
    assert str(refusal.value) == text


def test_refusals(guests: Callable[..., Guest], exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = guests()
    guest.chardev(exported)
    guest.call("chardev-add", id="nul", backend={"type": "null", "data": {}})
    for options, text in (
        ({}, "chardev is mandatory"),
        ({"chardev": "nope"}, "Property 'vhost-user-blk.chardev' can't find value 'nope'"),
        ({"chardev": "nul"}, "vhost_backend_init failed: Protocol error"),
        ({"chardev": "c", "num-queues": 9}, "The maximum number of queues supported by the backend is 1"),
        ({"chardev": "c", "queue-size": 0}, "queue size must be non-zero"),
    ):
        with pytest.raises(QobraError) as refusal:
            guest.plug("vhost-user-blk-pci", **options)
        assert str(refusal.value) == text
    for name, text in (("nope", 'chardev "nope" not found'), ("nul", 'chardev "nul" is not reconnectable')):
        with pytest.raises(QobraError) as refusal:
            guest.call("netdev_add", type="vhost-user", id="net", chardev=name)
        assert str(refusal.value) == text


class Echo:
    """A process that serves a network card: what the card sends comes back to it."""

    def __init__(
        self,
        path: Path,
        features: int = 1 << 32 | 1 << 28,
        protocol: int = 1 << vu.PROTOCOL_F_REPLY_ACK | 1 << vu.PROTOCOL_F_MQ,
    ) -> None:
        self._features, self._protocol = features, protocol
        self.accepted = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._memory = SharedMemory()
        self._queues: dict[int, dict[str, Any]] = {0: {}, 1: {}}
        self._rings: dict[int, Vring] = {}
        self.requests: list[int] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while True:
                kicks = [queue["kick"] for queue in self._queues.values() if "kick" in queue]
                for each in select.select([connection, *kicks], [], [])[0]:
                    if each is not connection:
                        os.read(each, 8)
                        self._work()
                        continue
                    message = vu.receive(connection)
                    if message is None:
                        return
                    self._handle(connection, message)

    def _handle(self, connection: socket.socket, message: vu.Message) -> None:
        self.requests.append(message.request)
        payload, answer = message.payload, None
        if message.request == vu.GET_FEATURES:
            answer = vu.U64.pack(self._features | 1 << vu.F_PROTOCOL_FEATURES)
        elif message.request == vu.GET_PROTOCOL_FEATURES:
            answer = vu.U64.pack(self._protocol)
        elif message.request == vu.SET_FEATURES:
            self.accepted = vu.U64.unpack(payload)[0]
        elif message.request == vu.GET_QUEUE_NUM:
            answer = vu.U64.pack(2)
        elif message.request == vu.SET_MEM_TABLE:
            self._memory = SharedMemory()
            for number, fd in enumerate(message.fds):
                fields = vu.MEM_REGION.unpack_from(payload, vu.MEM_HEADER.size + number * vu.MEM_REGION.size)
                self._memory = self._memory.plus(map_region(fd, *fields))
        elif message.request in (vu.SET_VRING_KICK, vu.SET_VRING_CALL):
            name = "kick" if message.request == vu.SET_VRING_KICK else "call"
            self._queues[vu.U64.unpack(payload)[0]][name] = message.fds[0]
        elif message.request == vu.SET_VRING_ADDR:
            index, _, *addresses, _ = vu.VRING_ADDR.unpack(payload)
            self._queues[index]["addresses"] = addresses
        elif message.request in (vu.SET_VRING_NUM, vu.SET_VRING_BASE):
            index, number = vu.VRING_STATE.unpack(payload)
            self._queues[index]["size" if message.request == vu.SET_VRING_NUM else "base"] = number
        elif message.request == vu.SET_VRING_ENABLE:
            index = vu.VRING_STATE.unpack(payload)[0]
            queue = self._queues[index]
            descriptors, used, available = queue["addresses"]
            self._rings[index] = Vring(
                self._memory, queue["size"], descriptors, available, used, queue["base"], event_idx=False
            )
        elif message.request == vu.GET_VRING_BASE:
            index = vu.VRING_STATE.unpack(payload)[0]
            ring = self._rings.pop(index)
            self._queues[index] = {}
            answer = vu.VRING_STATE.pack(index, ring.next)
        if answer is None and message.flags & vu.FLAG_NEED_REPLY:
            answer = vu.U64.pack(0)
        if answer is not None:
            vu.reply(connection, message.request, answer)

    def _work(self) -> None:
        if len(self._rings) < 2:
            return
        while (sent := self._rings[1].take()) is not None:
            data = b"".join(bytes(view) for view in sent.out)
            target = self._rings[0].take()
            if target is not None:
                target.into[0][: len(data)] = data
                self._rings[0].put(target.head, len(data))
            self._rings[1].put(sent.head, 0)
        for index, ring in self._rings.items():
            if ring.should_signal():
                os.write(self._queues[index]["call"], (1).to_bytes(8, "little"))


def test_a_network_card(guests: Callable[..., Guest], tmp_path: Path) -> None:
    guest, process = guests(), Echo(tmp_path / "net")
    guest.chardev(tmp_path / "net")
    guest.call("netdev_add", type="vhost-user", id="net", chardev="c")
    transport = guest.plug("virtio-net-pci", netdev="net", mac="52:54:00:00:00:01")
    features = transport.features()
    assert features >> 32 & 1
    assert features >> 5 & 1  # the address is the card's own
    assert not features >> 15 & 1  # the process does not merge buffers
    assert not features >> 21 & 1  # nor would it send what makes the card known
    start_driver(transport, 1 << 32 | 1 << 5 | 1 << 17 | 1 << 18)
    receive, send, control = (Queue(transport, guest.memory, number) for number in range(3))
    driver_ok(transport)
    there, back = guest.memory.take(2048), guest.memory.take(2048)
    receive.send([(back, 2048, True)])
    frame = bytes(12) + b"\xff" * 6 + b"hello"
    guest.access.write(there, frame)
    send.send([(there, len(frame), False)])
    assert send.wait_used() == (0, 0)
    assert receive.wait_used() == (0, len(frame))
    assert guest.access.read(back, len(frame)) == frame
    wait_until(lambda: bool(transport.isr()))
    # The card serves the control queue itself.
    guest.access.write(there, b"\0\0\0\xee")
    control.send([(there, 3, False), (there + 3, 1, True)])
    assert control.wait_used() == (0, 1)
    assert guest.access.read(there + 3, 1) == b"\0"
    with guest.machine.control, pytest.raises(QobraError, match="State blocked by non-migratable device"):
        assert guest.machine.board is not None
        check_declared(guest.machine.board)
    guest.call("netdev_del", id="net")
    assert process.requests.count(vu.GET_VRING_BASE) == 2
    guest.call("chardev-remove", id="c")
    process.close()


def test_a_process_that_shares_no_extension_with_us(guests: Callable[..., Guest], tmp_path: Path) -> None:
    # That there are such is negotiated all the same, and queues are at rest until they are enabled.
    guest, process = guests(), Echo(tmp_path / "net", protocol=1 << 1)
    guest.chardev(tmp_path / "net")
    guest.call("netdev_add", type="vhost-user", id="net", chardev="c")
    transport = guest.plug("virtio-net-pci", netdev="net")
    start_driver(transport, 1 << 32)
    for number in range(2):
        Queue(transport, guest.memory, number)
    driver_ok(transport)
    wait_until(lambda: process.requests.count(vu.SET_VRING_ENABLE) == 2)
    assert process.accepted == 1 << 32 | 1 << vu.F_PROTOCOL_FEATURES
    guest.call("netdev_del", id="net")
    guest.call("chardev-remove", id="c")
    process.close()


def test_a_process_that_knows_the_old_interface_alone(guests: Callable[..., Guest], tmp_path: Path) -> None:
    guest, process = guests(), Echo(tmp_path / "net", features=0)
    guest.chardev(tmp_path / "net")
    guest.call("netdev_add", type="vhost-user", id="net", chardev="c")
    with pytest.raises(QobraError) as refusal:
        guest.plug("virtio-net-pci", netdev="net", **{"disable-legacy": "on"})
    text = "Device doesn't support modern mode, and legacy mode is disabled"
    assert (refusal.value.desc, refusal.value.hint) == (text, "Set disable-legacy to off")
    with guest.machine.control:
        add_device(guest.machine, {"driver": "virtio-net-pci", "netdev": "net", "addr": 5 << 3}, keyval=False)
    function = PciFunction(guest.access, 5 << 3)
    assert 9 not in dict(function.capabilities()) and function.config(0x20) == 0
    guest.call("netdev_del", id="net")
    guest.call("chardev-remove", id="c")
    process.close()


def test_a_process_that_goes_away_and_comes_back(guests: Callable[..., Guest], tmp_path: Path, exported: Path) -> None:
    guest = guests()
    address = {"type": "unix", "data": {"path": str(exported)}}
    options = {"addr": address, "server": False, "reconnect": 1}
    guest.call("chardev-add", id="c", backend={"type": "socket", "data": options})
    disk = BlockDriver(guest.plug("vhost-user-blk-pci", chardev="c"), guest.memory, features=1 << 32)
    assert disk.request(0, 1, read=512)[0] == 0
    board: Any = guest.machine.board
    device = board.peripheral.children["d"].device
    chardev: Any = guest.machine.chardevs.get("c")
    before = device._vhost._thread
    chardev._connection.shutdown()
    wait_until(lambda: bool(device._vhost.active) and device._vhost._thread not in (None, before))


class Scripted:
    """A character device whose other end answers with given bytes."""

    id = "scripted"
    passes_fds = True

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers
        self._front_end: Any = None

    def attach(self, front_end: Any) -> None:
        self._front_end = front_end
        front_end.event("opened")

    def detach(self) -> None:
        self._front_end = None

    def write_with_fds(self, data: bytes, fds: Any) -> None:
        if self._answers:
            self._front_end.receive(self._answers.pop(0))
        else:
            self._front_end.event("closed")


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=64),
            st.builds(vu.HEADER.pack, st.integers(0, 40), st.sampled_from([1, 5, 9]), st.integers(0, 9000)),
        )
    )
)
def test_answers_of_any_kind(answers: list[bytes]) -> None:
    """The worst that another process can do is to be refused."""
    before, vhost_user.TIMEOUT_SECONDS = vhost_user.TIMEOUT_SECONDS, 0.02
    chardev: Any = Scripted(answers)
    front_end = vhost_user.VhostUserFrontEnd(chardev)
    try:
        front_end.open()
        front_end.config(60)
        front_end.stop_queue(0)
    except QobraError:
        pass
    finally:
        vhost_user.TIMEOUT_SECONDS = before


def test_a_process_that_talks_and_talks() -> None:
    chardev: Any = Scripted([])
    front_end = vhost_user.VhostUserFrontEnd(chardev)
    for _ in range(100):
        front_end.receive(bytes(4096))
    assert len(front_end._input) == front_end.can_receive()


def test_a_process_that_fills_the_counter_of_its_queue() -> None:
    kick = os.eventfd(0, os.EFD_NONBLOCK)
    os.write(kick, ((1 << 64) - 2).to_bytes(8, "little"))
    vhost: Any = SimpleNamespace(active=True, _kicks=[kick])
    Vhost.kick(vhost, 0)
    assert os.read(kick, 8) == b"\xfe" + b"\xff" * 7
    os.close(kick)
