"""The nbd driver, on exports of another layer in this process, and on scripted servers."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.block.extents import ALLOCATED, DATA, UNALLOCATED, ZERO
from qobra.block.layer import BlockLayer
from qobra.block.protocol import _nbd_options as nbd_options
from qobra.block.query import image_info
from qobra.errors import QobraError
from qobra.nbd import Client
from qobra.nbd import protocol as p

MIB = 1 << 20


class Server:
    """A raw file, exported as ``disk`` on a unix socket; may be stopped and started."""

    def __init__(self, directory: Path, size: int = 4 * MIB) -> None:
        self.path = str(directory / "server.sock")
        self.file = directory / "server.raw"
        self.file.touch()
        import os

        os.truncate(self.file, size)
        self.layer = BlockLayer()
        self.layer.add_node(
            {
                "driver": "raw",
                "node-name": "disk",
                "discard": "unmap",
                "file": {"driver": "file", "filename": str(self.file), "discard": "unmap"},
            }
        )
        self.start()

    def start(self, **options: Any) -> None:
        self.layer.exports.start_nbd_server({"type": "unix", "path": self.path})
        self.layer.exports.add({"type": "nbd", "id": "e", "node-name": "disk", "writable": True, **options})

    def stop(self) -> None:
        self.layer.exports.stop_nbd_server()

    def close(self) -> None:
        self.layer.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.close()


@pytest.fixture
def layer() -> Iterator[BlockLayer]:
    made = BlockLayer()
    yield made
    made.close()


def node_options(server: Server, **more: Any) -> dict[str, Any]:
    return {
        "driver": "nbd",
        "node-name": "n",
        "server": {"type": "unix", "path": server.path},
        "export": "disk",
        **more,
    }


def writable(layer: BlockLayer, node: Any) -> Any:
    """A backend that may write to ``node``."""
    from qobra.block import permissions
    from qobra.block.backend import BlockBackend

    backend = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    backend.insert(node)
    return backend


def test_data(layer: BlockLayer, server: Server) -> None:
    node = layer.add_node(node_options(server, discard="unmap"))
    backend = writable(layer, node)
    assert node.length == 4 * MIB
    backend.write(1000, b"x" * 70_000)
    backend.write(3 * MIB, b"y", fua=True)
    assert server.file.read_bytes()[1000:71_000] == b"x" * 70_000
    assert backend.read(999, 3) == b"\0xx"
    kinds = [(each.kind, each.offset, each.length) for each in node.map(0, 4 * MIB)]
    assert kinds == [
        (DATA, 0, 73728),
        (ZERO, 73728, 3 * MIB - 73728),
        (DATA, 3 * MIB, 4096),
        (ZERO, 3 * MIB + 4096, MIB - 4096),
    ]
    assert [each.kind for each in node.map(0, 4 * MIB, False)] == [DATA]
    backend.write_zeroes(0, 4096, may_unmap=True)
    assert backend.read(0, 5000) == bytes(4096) + b"x" * 904
    backend.write_zeroes(4096, 4096, no_fallback=True)
    backend.discard(0, 2 * MIB)
    backend.flush()
    assert not any(server.file.read_bytes()[: 2 * MIB])
    backend.remove()


def test_names(layer: BlockLayer, server: Server) -> None:
    node = layer.add_node(node_options(server))
    assert node.filename == f"nbd+unix:///disk?socket={server.path}"
    assert nbd_options.uri({"type": "unix", "path": "s"}, None) == "nbd+unix://?socket=s"
    assert nbd_options.uri({"type": "unix", "path": "s"}, "") == "nbd+unix:///?socket=s"
    assert "dirty-flag" not in image_info(node)  # a server does not tell
    layer.delete_node("n")
    again = layer.open_image(node.filename, {"driver": "raw", "node-name": "top"}, monitor_owned=True)
    assert again.length == 4 * MIB and again.filename == node.filename
    layer.delete_node("top")
    old = layer.open_image(
        f"nbd:unix:{server.path}:exportname=disk", {"driver": "raw", "node-name": "old"}, monitor_owned=True
    )
    assert old.length == 4 * MIB
    layer.delete_node("old")


def test_an_address_that_says_which_protocol_has_no_plain_name() -> None:
    address = {"type": "inet", "host": "::1", "port": "10"}
    assert nbd_options.uri(address, "e") == "nbd://::1:10/e"
    assert nbd_options.uri({**address, "ipv6": True}, "e") == ""


UNIX = {"type": "unix", "path": "/s"}
INET = {"type": "inet", "host": "h", "port": "10"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nbd:h:10", {"server": INET}),
        ("nbd:h:10:exportname=", {"server": INET}),
        ("nbd:h:10:exportname=a:b", {"server": INET, "export": "a:b"}),
        ("nbd:[::1]:10:exportname=x", {"server": {**INET, "host": "::1"}, "export": "x"}),
        ("nbd:unix:/s", {"server": UNIX}),
        ("nbd:unix:/s:exportname=x", {"server": UNIX, "export": "x"}),
        ("nbd://h:10/x%20y", {"server": INET, "export": "x y"}),
        ("nbd://h", {"server": {**INET, "port": "10809"}}),
        ("nbd+unix:///x?socket=/s", {"server": UNIX, "export": "x"}),
        ("nbd+unix://?socket=/s", {"server": UNIX}),
    ],
)
def test_file_names(name: str, options: dict[str, Any]) -> None:
    assert nbd_options.parse_filename(name) == options


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nbd:localhost", "error parsing address 'localhost'"),
        ("nbd:h:", "error parsing address 'h:'"),
        ("nbd+unix:///foo", "No valid URL specified"),
        ("nbd+unix:///foo?sock=1", "No valid URL specified"),
        ("nbd+unix://h/foo?socket=/x", "No valid URL specified"),
        ("nbd:///foo?socket=/x", "No valid URL specified"),
        ("nbd://", "No valid URL specified"),
        ("nbds://h/x", "No valid URL specified"),
    ],
)
def test_bad_file_names(name: str, text: str) -> None:
    with pytest.raises(QobraError) as caught:
        nbd_options.parse_filename(name)
    assert caught.value.desc == text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "NBD server address missing"),
        ({"port": 5}, "NBD server address missing"),
        ({"host": "a", "path": "/x"}, "path and host may not be used at the same time"),
        ({"server": UNIX, "host": "a"}, "Cannot use 'server' and path/host/port at the same time"),
        ({"server": {"type": "unix", "path": "/nope"}}, "Failed to connect to '/nope': No such file or directory"),
        ({"server": UNIX, "tls-creds": "t"}, "No TLS credentials with id 't'"),
        ({"server": UNIX, "export": "x" * 5000}, "export name too long to send to server"),
        ({"server": UNIX, "x-dirty-bitmap": "x" * 5000}, "x-dirty-bitmap query too long to send to server"),
    ],
)
def test_refusals(layer: BlockLayer, options: dict[str, Any], text: str) -> None:
    with pytest.raises(QobraError) as caught:
        layer.add_node({"driver": "nbd", "node-name": "n", **options})
    assert caught.value.desc == text


def test_refusals_of_the_server(layer: BlockLayer, server: Server) -> None:
    with pytest.raises(QobraError) as caught:
        layer.add_node(node_options(server, export="zz"))
    assert caught.value.desc == "Requested export not available"
    assert caught.value.hint == "server reported: export 'zz' not present"
    with pytest.raises(QobraError, match="requested x-dirty-bitmap b not found"):
        layer.add_node(node_options(server, **{"x-dirty-bitmap": "b"}))


def test_read_only_exports(layer: BlockLayer, server: Server) -> None:
    server.stop()
    server.start(writable=False)
    with pytest.raises(QobraError, match="denied"):
        layer.add_node(node_options(server))
    node = layer.add_node(node_options(server, **{"auto-read-only": True}))
    assert node.read_only
    layer.delete_node("n")
    assert layer.add_node(node_options(server, **{"read-only": True})).read(0, 4) == bytes(4)


def test_size_is_fixed(layer: BlockLayer, server: Server) -> None:
    node = layer.add_node(node_options(server))
    with pytest.raises(QobraError, match="Cannot resize NBD nodes"):
        node._truncate(MIB, "off", True)
    with pytest.raises(QobraError, match="Cannot grow NBD nodes"):
        node._truncate(8 * MIB, "off", False)
    node._truncate(MIB, "off", False)


def test_without_reconnect_delay_a_request_fails_and_the_next_one_connects(layer: BlockLayer, server: Server) -> None:
    node = layer.add_node(node_options(server))
    server.stop()
    for _ in range(2):
        with pytest.raises(QobraError) as caught:
            node.read(0, 10)
        assert caught.value.errno == 5
    server.start()
    assert node.read(0, 10) == bytes(10)


def test_with_reconnect_delay_requests_wait(layer: BlockLayer, server: Server) -> None:
    node = layer.add_node(node_options(server, **{"reconnect-delay": 60}))
    server.stop()
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(node.read(0, 10))) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    assert not results
    server.start()
    for thread in threads:
        thread.join(60)
    assert results == [bytes(10)] * 3


def test_reconnect_delay_ends(layer: BlockLayer, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    node = layer.add_node(node_options(server, **{"reconnect-delay": 60}))
    server.stop()
    now = time.monotonic()
    moments = iter(range(0, 100_000, 7))
    monkeypatch.setattr("qobra.block.protocol.nbd.time.monotonic", lambda: now + next(moments))
    for name in ("RETRY_FIRST", "RETRY_LONGEST"):
        monkeypatch.setattr(f"qobra.block.protocol.nbd.{name}", 0.001)
    with pytest.raises(QobraError):
        node.read(0, 10)


def test_open_timeout(layer: BlockLayer, server: Server) -> None:
    server.stop()
    threading.Timer(0.02, server.start).start()
    assert layer.add_node(node_options(server, **{"open-timeout": 60})).length == 4 * MIB


def test_an_export_of_another_size_is_not_taken_for_the_same(layer: BlockLayer, server: Server) -> None:
    node = layer.add_node(node_options(server))
    server.stop()
    server.layer.find_node("disk").length = MIB
    server.start()
    with pytest.raises(QobraError):
        node.read(0, 10)  # finds that the connection is gone
    with pytest.raises(QobraError, match="has 1048576 bytes now"):
        node.read(0, 10)


def test_yank(layer: BlockLayer, server: Server) -> None:
    node: Any = layer.add_node(node_options(server, **{"reconnect-delay": 60}))
    server.stop()
    failures: list[Exception] = []

    def read() -> None:
        try:
            node.read(0, 10)
        except QobraError as error:
            failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    node.yank()
    thread.join(60)
    assert len(failures) == 1


def test_a_cancelled_job_lets_go_of_what_waits_for_the_server(layer: BlockLayer, server: Server) -> None:
    top = layer.add_node({"driver": "raw", "node-name": "top", "file": node_options(server, **{"reconnect-delay": 60})})
    server.stop()
    failures: list[Exception] = []

    def read() -> None:
        try:
            top.read(0, 10)
        except QobraError as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            top.cancel_in_flight()
            thread.join(0.01)
    assert len(failures) == 3
    server.start()
    assert top.read(0, 10) == bytes(10)


def test_an_image_is_created_in_an_export(server: Server, tmp_path: Path) -> None:
    from qobra.cli import img

    with open(server.file, "r+b") as file:
        file.write(b"what was there before" * 50_000)
    uri = f"nbd+unix:///disk?socket={server.path}"
    assert img.main(["create", "-q", "-f", "qcow2", uri, "64M"]) == 0
    assert img.main(["check", "-q", uri]) == 0
    blank = str(tmp_path / "blank")
    assert img.main(["create", "-q", "-f", "qcow2", blank, "64M"]) == 0
    assert img.main(["compare", "-q", uri, blank]) == 0


class Scripted:
    """A server of one connection over a bytearray, with constraints that ours does not have."""

    def __init__(
        self, path: Path, size: int, minimum: int, status: list[tuple[int, int]], *, answered: int = 0
    ) -> None:
        """``answered``: the context that block status is told of; 0 is base:allocation, and 1 another one."""
        self.data = bytearray(size)
        self._answered = answered
        self.requests: list[tuple[int, int, int]] = []
        self._minimum = minimum
        self._status = status
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        sock, _ = self._listener.accept()
        try:
            self._serve(sock.makefile("rwb"))
        except OSError:
            pass  # the client left
        finally:
            sock.close()

    def _serve(self, stream: Any) -> None:
        def send(data: bytes) -> None:
            stream.write(data)
            stream.flush()

        send(p.GREETING.pack(p.INIT_MAGIC, p.OPTION_MAGIC, 3))
        stream.read(4)
        option = 0
        while option != p.OPT_GO:
            _magic, option, length = p.OPTION.unpack(stream.read(16))
            stream.read(length)
            parts = []
            if option == p.OPT_SET_META_CONTEXT:
                parts = [
                    (p.REP_META_CONTEXT, p.U32.pack(number) + name)
                    for number, name in ((0, b"base:allocation"), (1, b"other:context"))
                ]
            elif option == p.OPT_GO:
                flags = 1 | p.FLAG_SEND_FLUSH | p.FLAG_SEND_WRITE_ZEROES | p.FLAG_SEND_TRIM
                sizes = p.INFO_BLOCK_SIZE_BODY.pack(p.INFO_BLOCK_SIZE, self._minimum, 4096, 1 << 20)
                parts = [
                    (p.REP_INFO, sizes),
                    (p.REP_INFO, p.INFO_EXPORT_BODY.pack(p.INFO_EXPORT, len(self.data), flags)),
                ]
            for kind, body in [*parts, (p.REP_ACK, b"")]:
                send(p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(body)) + body)
        while request := stream.read(p.REQUEST.size):
            _magic, _flags, command, cookie, offset, length = p.REQUEST.unpack(request)
            self.requests.append((command, offset, length))
            if command == p.CMD_DISC:
                return
            if command == p.CMD_WRITE:
                self.data[offset : offset + length] = stream.read(length)
            if command == p.CMD_READ:
                body = p.U64.pack(offset) + self.data[offset : offset + length]
                send(p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, 1, p.CHUNK_OFFSET_DATA, cookie, len(body)) + body)
            elif command == p.CMD_BLOCK_STATUS:
                body = p.U32.pack(self._answered) + b"".join(p.EXTENT.pack(*each) for each in self._status)
                send(p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, 1, p.CHUNK_BLOCK_STATUS, cookie, len(body)) + body)
            else:
                send(p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, cookie))

    def close(self) -> None:
        self._thread.join(30)
        self._listener.close()


def test_a_minimum_block_size_is_kept(layer: BlockLayer, tmp_path: Path) -> None:
    path = tmp_path / "scripted.sock"
    scripted = Scripted(path, 64 << 10, 4096, [(4096, 3), (4096, 1), (8192, 2)])
    node = layer.add_node({"driver": "nbd", "node-name": "n", "server": {"type": "unix", "path": str(path)}})
    backend = writable(layer, node)
    assert node.request_alignment == 4096
    backend.write(4090, b"x" * 10)
    assert scripted.data[4080:4110] == bytes(10) + b"x" * 10 + bytes(10)
    assert backend.read(4089, 3) == b"\0xx"
    backend.write_zeroes(4095, 2)  # not whole blocks: as data
    assert backend.read(4089, 10) == b"\0xxxxx\0\0xx"
    node.discard_unmap = True
    backend.discard(100, 4096)  # no whole block in it
    extents = [(each.length, each.kind, each.flags) for each in node.map(1000, 10_000)]
    assert extents == [(3096, ZERO, 0), (4096, DATA, UNALLOCATED), (2808, ZERO, ALLOCATED)]
    assert all(offset % 4096 == length % 4096 == 0 for _command, offset, length in scripted.requests)
    assert not any(command == p.CMD_TRIM for command, _offset, _length in scripted.requests)
    backend.remove()
    layer.close()
    scripted.close()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ([(1, 3)], [(100, 412, ZERO), (512, 488, ZERO)]),
        ([(512, 3), (300, 0), (9000, 3)], [(100, 412, ZERO), (512, 488, DATA)]),
    ],
)
def test_extents_that_do_not_keep_to_the_servers_minimum(
    layer: BlockLayer, tmp_path: Path, status: list[tuple[int, int]], expected: list[tuple[int, int, int]]
) -> None:
    """They are rounded, so that each answer is a step forward."""
    scripted = Scripted(tmp_path / "s", 64 << 10, 512, status)
    node = layer.add_node({"driver": "nbd", "node-name": "n", "server": {"type": "unix", "path": str(tmp_path / "s")}})
    assert [(extent.offset, extent.length, extent.kind) for extent in node.map(100, 900)] == expected
    layer.close()
    scripted.close()


def test_block_status_of_another_context_only(layer: BlockLayer, tmp_path: Path) -> None:
    scripted = Scripted(tmp_path / "s", 64 << 10, 512, [(512, 0)], answered=1)
    node = layer.add_node({"driver": "nbd", "node-name": "n", "server": {"type": "unix", "path": str(tmp_path / "s")}})
    with pytest.raises(QobraError, match="no block status of 'base:allocation'"):
        node.map(0, 4096)
    layer.close()
    scripted.close()


def test_a_copy_asks_for_zeroes_once_and_reads_data_only(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qobra.cli import img

    content = bytes(MIB) + b"d" * (MIB + 1000) + bytes(2 * MIB - 1000)
    with open(server.file, "r+b") as file:
        file.seek(MIB)
        file.write(content[MIB : 2 * MIB + 1000])
    target = tmp_path / "target"
    target.write_bytes(b"old!" * MIB)
    asked: list[int] = []
    read: list[int] = []
    block_status, pread_into = Client.block_status, Client.pread_into

    def noting_status(self: Client, length: int, offset: int) -> Any:
        asked.append(length)
        return block_status(self, length, offset)

    def noting_read(self: Client, buffer: Any, offset: int) -> Any:
        read.append(len(buffer))
        return pread_into(self, buffer, offset)

    monkeypatch.setattr(Client, "block_status", noting_status)
    monkeypatch.setattr(Client, "pread_into", noting_read)
    uri = f"nbd+unix:///disk?socket={server.path}"
    assert img.main(["convert", "-n", "-f", "raw", "-O", "raw", uri, str(target)]) == 0
    assert target.read_bytes() == content
    assert sum(read) <= MIB + 4096 and len(asked) <= 3


def test_what_the_server_answers_is_told_as_for_a_file(
    layer: BlockLayer, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_self: Client, *_request: Any) -> Any:
        raise QobraError("NBD read at 0 failed: Input/output error: bad disk", errno=errno.EIO)

    monkeypatch.setattr(Client, "pread_into", failing)
    with pytest.raises(QobraError, match="^Could not read image for determining its format: Input/output error$"):
        layer.open_image(f"nbd+unix:///disk?socket={server.path}")
    with pytest.raises(QobraError, match="^Could not read qcow2 header: Input/output error$"):
        layer.add_node({"node-name": "q", "driver": "qcow2", "file": node_options(server)})
