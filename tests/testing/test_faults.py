"""Faults on demand."""

from __future__ import annotations

import pytest

from qobra.client import CommandError, ConnectionLost, DeviceNotFound
from qobra.testing import QobraServer


def nodes(server: QobraServer) -> list[str]:
    return [node["node-name"] for node in server.execute("query-named-block-nodes")]


def test_fail_then_work(qobra_server: QobraServer) -> None:
    qobra_server.faults.fail("blockdev-add", "No space left on device", times=2)
    qobra_server.faults.fail("blockdev-add", "no such device", "DeviceNotFound")
    with qobra_server.connect() as client:
        for _ in range(2):
            with pytest.raises(CommandError, match="No space left on device"):
                client.blockdev_add(driver="null-co", node_name="a")
        with pytest.raises(DeviceNotFound):
            client.blockdev_add(driver="null-co", node_name="a")
        assert nodes(qobra_server) == []
        client.blockdev_add(driver="null-co", node_name="a")
    assert nodes(qobra_server) == ["a"]


@pytest.mark.parametrize("carried_out", [False, True])
def test_drop(qobra_server: QobraServer, carried_out: bool) -> None:
    qobra_server.faults.drop("blockdev-add", carried_out=carried_out)
    with qobra_server.connect() as client, pytest.raises(ConnectionLost):
        client.blockdev_add(driver="null-co", node_name="a")
    assert nodes(qobra_server) == (["a"] if carried_out else [])
    with qobra_server.connect() as client:
        client.blockdev_add(driver="null-co", node_name="b")


def test_a_delay_holds_up_one_client_only(qobra_server: QobraServer) -> None:
    qobra_server.faults.delay("query-name", 600)
    with qobra_server.connect() as slow, qobra_server.connect() as quick:
        with pytest.raises(TimeoutError):
            slow.execute("query-name", timeout=0.01)
        with pytest.raises(TimeoutError):
            slow.execute("query-version", timeout=0.01)
        assert quick.query_name() == {}
        qobra_server.faults.clear()
        assert slow.execute("query-name", timeout=30) == {}


def test_a_delay_does_not_hold_up_the_end(qobra_server: QobraServer) -> None:
    qobra_server.faults.delay("query-name", 600)
    with qobra_server.connect() as client:
        with pytest.raises(TimeoutError):
            client.execute("query-name", timeout=0.01)
        qobra_server.close()
        with pytest.raises(ConnectionLost):
            client.query_version()


def test_lost_events_and_clear(qobra_server: QobraServer) -> None:
    qobra_server.faults.lose_event("BLOCK_IO_ERROR")
    qobra_server.faults.fail("query-name", "never")
    with qobra_server.connect() as client, client.events() as events:
        qobra_server.emit("BLOCK_IO_ERROR", device="lost")
        qobra_server.emit("BLOCK_IO_ERROR", device="found")
        assert events.next(timeout=30).data == {"device": "found"}
        qobra_server.faults.clear()
        assert client.query_name() == {}
