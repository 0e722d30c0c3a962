"""The test double: a real server in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qobra.client import CommandError, ConnectionLost
from qobra.errors import QobraError
from qobra.testing import QobraServer


def test_commands_over_the_socket_and_without(qobra_server: QobraServer) -> None:
    with qobra_server.connect() as client:
        client.blockdev_add(driver="null-co", node_name="a", size=1 << 20)
        assert [node["node-name"] for node in qobra_server.execute("query-named-block-nodes")] == ["a"]
        qobra_server.execute("blockdev-del", node_name="a")
        with pytest.raises(CommandError, match="Failed to find node with node-name='a'"):
            client.blockdev_del(node_name="a")
    with pytest.raises(QobraError, match="Failed to find node"):
        qobra_server.execute("blockdev-del", node_name="a")


def test_events_reach_every_client(qobra_server: QobraServer) -> None:
    with qobra_server.connect() as one, qobra_server.connect() as two:
        streams = [one.events("BLOCK_IO_ERROR"), two.events()]
        qobra_server.emit("BLOCK_IO_ERROR", device="disk", io_status="failed")
        for stream in streams:
            assert stream.next(timeout=10).data == {"device": "disk", "io-status": "failed"}


def test_quit_is_seen(qobra_server: QobraServer) -> None:
    assert not qobra_server.wait_for_quit(timeout=0)
    with qobra_server.connect() as client:
        client.quit()
    assert qobra_server.wait_for_quit(timeout=30)


def test_close_ends_the_connections_and_leaves_nothing(qobra_server: QobraServer) -> None:
    client = qobra_server.connect()
    directory = Path(qobra_server.directory)
    qobra_server.close()
    with pytest.raises(ConnectionLost):
        client.query_version()
    client.disconnect()
    assert not directory.exists()
    qobra_server.close()


def test_many_servers_in_one_process(make_qobra_server: Callable[..., QobraServer]) -> None:
    servers = [make_qobra_server(name=str(number)) for number in range(50)]
    for number, server in enumerate(servers):
        with server.connect() as client:
            assert client.query_name() == {"name": str(number)}


def test_no_descriptor_is_left(make_qobra_server: Callable[..., QobraServer]) -> None:
    make_qobra_server().close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        server = make_qobra_server()
        with server.connect() as client:
            client.query_version()
        server.close()
    assert len(os.listdir("/proc/self/fd")) <= before
