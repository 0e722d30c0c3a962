"""Exports by id: adding, removing, the server's life, and QEMU's words for what cannot be."""

from __future__ import annotations

import os
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qobra.block.export.nbd import server
from qobra.errors import QobraError
from qobra.nbd import connect, list_exports
from qobra.testing.waiting import wait_until


def refused(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(QobraError) as caught:
        call(*args, **kwargs)
    return caught.value.desc


def test_texts(exporter: Any) -> None:
    exports = exporter.exports
    exporter.told("n")
    exporter.told("ro", **{"read-only": True})
    options = {"type": "nbd", "id": "e", "node-name": "n"}
    assert refused(exports.add, options) == "NBD server not running"
    assert refused(exports.stop_nbd_server, required=True) == "NBD server not running"
    exporter.start()
    assert refused(exports.start_nbd_server, {"type": "unix", "path": "x"}) == "NBD server already running"
    assert refused(exports.add, {**options, "id": "1e"}) == "Invalid block export id"
    assert refused(exports.add, {**options, "node-name": "nn"}) == "Cannot find device='' nor node-name='nn'"
    assert (
        refused(exports.add, {**options, "node-name": "ro", "writable": True})
        == "Cannot export read-only node as writable"
    )
    assert refused(exports.add, {**options, "iothread": "io"}) == 'iothread "io" not found'
    assert refused(exports.add, {**options, "bitmaps": ["b"]}) == "Bitmap 'b' is not found"
    assert refused(exports.add, {**options, "bitmaps": [{"node": "zz", "name": "b"}]}) == "Node 'zz' not found"
    assert refused(exports.add, {**options, "name": "x" * 4097}).endswith("' too long")
    assert refused(exports.add, {**options, "description": "x" * 4097}).startswith("description 'xx")
    assert refused(exports.add, {**options, "type": "nothing"}) == "No driver found for the requested export type"
    exports.add(options)
    assert refused(exports.add, options) == "Block export id 'e' is already in use"
    assert refused(exports.add, {**options, "id": "e2", "name": "n"}) == "NBD server already has export named 'n'"
    assert refused(exports.remove, "zz") == "Export 'zz' is not found"
    assert refused(exports.remove_nbd, "zz") == "Export 'zz' is not found"
    assert refused(exports.add_nbd, {"device": "zz"}) == "Cannot find device='zz' nor node-name='zz'"
    assert refused(exporter.layer.delete_node, "n") == "Node n is in use"


def test_nothing_is_left_of_an_export_that_could_not_be_made(exporter: Any) -> None:
    exporter.told("n")
    exporter.start()
    refused(exporter.exports.add, {"type": "nbd", "id": "e", "node-name": "n", "bitmaps": ["b"]})
    assert exporter.exports.query() == []
    exporter.layer.delete_node("n")


def test_query_and_removal(exporter: Any) -> None:
    exporter.told("n")
    exporter.told("m")
    exporter.export("n")
    exporter.export("m", id="e")
    assert exporter.exports.query() == [
        {"id": "e", "type": "nbd", "node-name": "m", "shutting-down": False},
        {"id": "n", "type": "nbd", "node-name": "n", "shutting-down": False},
    ]
    exporter.exports.remove("e")
    assert exporter.events == [("BLOCK_EXPORT_DELETED", {"id": "e"})]  # at once, as nobody was connected
    assert [each["id"] for each in exporter.exports.query()] == ["n"]
    exporter.layer.delete_node("m")


def test_safe_removal_waits_for_nobody(exporter: Any) -> None:
    exporter.told("n")
    exporter.export("n")
    client = exporter.connect("n")
    assert refused(exporter.exports.remove, "n") == "export 'n' still in use"
    # A client that has gone is no reason, even if its thread here does not know yet.
    client.close()
    exporter.exports.remove("n", "safe")
    assert exporter.exports.query() == []


def test_hard_removal_disconnects(exporter: Any) -> None:
    node = exporter.told("n")
    exporter.export("n")
    client = exporter.connect("n")
    client.pread(10, 0)
    with exporter.layer.control:
        exporter.exports.remove("n", "hard")
        assert exporter.events == []  # that comes after the answer
        assert exporter.exports.query()[0]["shutting-down"]
        assert refused(exporter.exports.remove, "n") == "Export 'n' is already shutting down"
    assert exporter.events == [("BLOCK_EXPORT_DELETED", {"id": "n"})]
    with pytest.raises(QobraError):
        client.pread(10, 0)
    assert node.perm == 0
    exporter.export("n")  # both names are free again


def test_an_export_that_shuts_down_takes_no_new_client(exporter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    node = exporter.told("n")
    exporter.export("n")
    client = exporter.connect("n")
    node.hold = threading.Event()
    request = client.aio_pread(10, 0)
    assert node.entered.acquire(timeout=30)
    monkeypatch.setattr("qobra.block.export.exports.LEAVING", 120)
    start = time.monotonic()
    exporter.exports.remove("n", "hard")
    assert time.monotonic() - start < 60  # a request that is not done in a moment is not waited for
    assert exporter.exports.query()[0]["shutting-down"]
    with pytest.raises(QobraError):
        exporter.connect("n")
    assert exporter.events == []
    node.hold.set()
    wait_until(lambda: exporter.events)
    assert request.exception(30) is not None


def test_stop_drops_clients_and_exports(exporter: Any) -> None:
    exporter.told("n")
    exporter.told("m")
    exporter.export("n")
    exporter.export("m")
    server = exporter.exports.nbd_server
    exporter.connect("n")
    idle = exporter.socket()  # has not even shaken hands
    path = server.addresses[0]
    with exporter.layer.control:
        exporter.exports.stop_nbd_server()
    assert sorted(data["id"] for _name, data in exporter.events) == ["m", "n"]
    assert server.connections == 0
    assert not os.path.exists(path)
    idle.settimeout(30)
    while idle.recv(100):
        pass
    exporter.start()


def test_legacy_add(exporter: Any) -> None:
    exporter.told("ro", **{"read-only": True})
    exporter.start()
    export = exporter.exports.add_nbd({"device": "ro", "writable": True, "name": "other", "description": "words"})
    assert (export.id, export.name, export.writable) == ("other", "other", False)
    exporter.exports.add_nbd({"device": "ro"})
    assert [each["id"] for each in exporter.exports.query()] == ["ro", "other"]
    assert exporter.connect("other").info.description == "words"


def test_listening(exporter: Any) -> None:
    exporter.told("n")
    server = exporter.start()
    path = server.addresses[0]
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    exporter.export("n", description="a node")
    ((info, contexts),) = list_exports(f"nbd+unix://?socket={path}")
    assert (info.name, info.description, info.size, contexts) == ("n", "a node", 1 << 20, ["base:allocation"])
    with connect(f"nbd+unix:///n?socket={path}") as client:
        assert client.pread(4, 0) == bytes(4)


def test_listening_on_inet_ports(exporter: Any) -> None:
    exporter.told("n")
    with exporter.layer.control:
        server = exporter.exports.start_nbd_server({"type": "inet", "host": "127.0.0.1", "port": "0"})
    port = server.addresses[0][1]
    exporter.export("n")
    with connect(f"nbd://127.0.0.1:{port}/n") as client:
        assert client.pread(4, 0) == bytes(4)


def test_listening_on_a_passed_descriptor(exporter: Any) -> None:
    exporter.told("n")
    listener = socket.socket(socket.AF_UNIX)
    path = str(exporter.tmp_path / "passed.sock")
    listener.bind(path)
    with exporter.layer.control:
        exporter.layer.find_fd = {"sock": os.dup(listener.fileno())}.__getitem__
        exporter.exports.start_nbd_server({"type": "fd", "str": "sock"})
    exporter.export("n")
    with connect(f"nbd+unix:///n?socket={path}") as client:
        assert client.pread(4, 0) == bytes(4)
    listener.close()


def test_addresses_that_will_not_do(exporter: Any) -> None:
    start = exporter.exports.start_nbd_server
    missing = str(exporter.tmp_path / "none" / "s")
    assert refused(start, {"type": "unix", "path": missing}) == (
        f"Failed to bind socket to {missing}: No such file or directory"
    )
    assert refused(start, {"type": "unix", "path": "x" * 200}).startswith("UNIX socket path")
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    assert refused(start, {"type": "inet", "host": "127.0.0.1", "port": port}) == (
        "Failed to find an available port: Address already in use"
    )
    taken.close()
    assert exporter.exports.nbd_server is None


def test_max_connections(exporter: Any) -> None:
    exporter.told("n")
    server = exporter.start(max_connections=1)
    exporter.export("n")
    uri = f"nbd+unix:///n?socket={server.addresses[0]}"
    first = connect(uri)
    assert not first.info.can_multi_conn  # it is alone
    with pytest.raises(QobraError, match="in time"):
        connect(uri, handshake_timeout=0.05)
    first.close()
    with connect(uri) as second:
        assert second.pread(1, 0) == b"\0"


def test_a_crowd_is_served_and_its_memory_given_back(exporter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(server, "give_back_memory", lambda: calls.append(len(exporter.exports.nbd_server._connections)))
    monkeypatch.setattr(server, "QUIET", 0.02)
    node = exporter.told("n")
    node.data[:] = bytes(range(256)) * (len(node.data) // 256)
    exporter.export("n")
    clients = [connect(f"nbd+unix:///n?socket={exporter.tmp_path}/nbd.sock") for _ in range(server.MANY + 8)]
    with ThreadPoolExecutor(len(clients)) as pool:
        found = pool.map(lambda number: clients[number].pread(16, number), range(len(clients)))
        assert list(found) == [bytes(range(number, number + 16)) for number in range(len(clients))]
    for client in clients:
        client.abort()
    wait_until(lambda: calls)
    # Once, and not again for the few that come and go afterwards.
    connect(f"nbd+unix:///n?socket={exporter.tmp_path}/nbd.sock").close()
    wait_until(lambda: not exporter.exports.nbd_server._connections)
    time.sleep(0.05)
    assert calls == [0]


def test_no_tls_credentials(exporter: Any) -> None:
    path = str(exporter.tmp_path / "s")
    assert refused(exporter.exports.start_nbd_server, {"type": "unix", "path": path}, tls_creds="t") == (
        "No TLS credentials with id 't'"
    )
    assert not os.path.exists(path)


def test_an_export_goes_after_the_command_that_removes_it(exporter: Any) -> None:
    exporter.start()
    exporter.told("n")
    exports = exporter.exports
    exports.add({"type": "nbd", "id": "e", "node-name": "n"})
    with exporter.layer.control:  # a command and its answer
        exports.remove("e")
        assert [each["shutting-down"] for each in exports.query()] == [True]
        assert refused(exports.remove, "e") == "Export 'e' is already shutting down"
    assert exports.query() == []
