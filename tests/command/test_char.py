"""Character devices over QMP."""

from __future__ import annotations

from typing import Any

import pytest


def add(client: Any, id: str, kind: str, **data: Any) -> dict[str, Any]:
    reply: dict[str, Any] = client.call("chardev-add", {"id": id, "backend": {"type": kind, "data": data}})
    return reply


def error(desc: str) -> dict[str, Any]:
    return {"error": {"class": "GenericError", "desc": desc}}


def test_add_query_remove(monitored: Any) -> None:
    client = monitored.client()
    assert add(client, "n", "null") == {"return": {}}
    assert add(client, "n", "null") == error("Chardev with id 'n' already exists")
    assert add(client, "x", "vc") == error("Failed to add chardev 'x': 'vc' is not a valid char driver name")
    pty = add(client, "p", "pty")["return"]["pty"]
    found = {each["label"]: each for each in client.call("query-chardev")["return"]}
    assert found["n"] == {"label": "n", "filename": "null", "frontend-open": False}
    assert found["p"]["filename"] == f"pty:{pty}"
    assert found["qmp0"]["frontend-open"] is True
    assert client.call("chardev-remove", {"id": "n"}) == {"return": {}}
    assert client.call("chardev-remove", {"id": "n"}) == error("Chardev 'n' not found")
    assert client.call("chardev-remove", {"id": "qmp0"}) == error("Chardev 'qmp0' is busy")


def test_change(monitored: Any) -> None:
    client = monitored.client()
    add(client, "n", "null")
    change = {"id": "n", "backend": {"type": "ringbuf", "data": {}}}
    assert client.call("chardev-change", change) == {"return": {}}
    assert client.call("ringbuf-write", {"device": "n", "data": "x"}) == {"return": {}}
    assert client.call("chardev-change", change | {"id": "zz"}) == error("Chardev 'zz' does not exist")
    busy = error("Chardev user does not support chardev hotswap")
    assert client.call("chardev-change", change | {"id": "qmp0"}) == busy


def test_break(monitored: Any) -> None:
    client = monitored.client()
    add(client, "n", "null")
    assert client.call("chardev-send-break", {"id": "n"}) == {"return": {}}
    assert client.call("chardev-send-break", {"id": "zz"}) == error("Chardev 'zz' not found")

    class Port:
        hotswap = False

        def __init__(self) -> None:
            self.events: list[str] = []

        def event(self, name: str) -> None:
            self.events.append(name)

    port = Port()
    monitored.machine.chardevs.get("n").attach(port)
    assert client.call("chardev-send-break", {"id": "n"}) == {"return": {}}
    assert port.events == ["break"]


def test_what_is_served_can_be_made(monitored: Any) -> None:
    names = {each["name"] for each in monitored.client().call("query-chardev-backends")["return"]}
    assert "vc" not in names  # there is no board whose displays would show it
    assert names >= {"file", "memory", "mux", "null", "pipe", "pty", "ringbuf", "serial", "socket", "stdio", "udp"}


@pytest.mark.parametrize(
    ("written", "form", "read", "text"),
    [
        ("abc", "utf8", "utf8", "abc"),
        ("\u20ac", "utf8", "base64", "4oKs"),
        ("AP8=", "base64", "base64", "AP8="),
        ("AP9h", "base64", "utf8", "\0\ufffda"),
    ],
)
def test_ring_buffer(monitored: Any, written: str, form: str, read: str, text: str) -> None:
    client = monitored.client()
    add(client, "r", "ringbuf", size=16)
    assert client.call("ringbuf-write", {"device": "r", "data": written, "format": form}) == {"return": {}}
    assert client.call("ringbuf-read", {"device": "r", "size": 99, "format": read}) == {"return": text}
    assert client.call("ringbuf-read", {"device": "r", "size": 99}) == {"return": ""}


def test_ring_buffer_errors(monitored: Any) -> None:
    client = monitored.client()
    add(client, "n", "null")
    add(client, "r", "ringbuf")
    assert client.call("ringbuf-read", {"device": "z", "size": 1}) == error("Device 'z' not found")
    assert client.call("ringbuf-write", {"device": "n", "data": ""}) == error("n is not a ringbuf device")
    for size in (0, -1):
        assert client.call("ringbuf-read", {"device": "r", "size": size}) == error("size must be greater than zero")
    bad = {"device": "r", "data": "!!", "format": "base64"}
    assert client.call("ringbuf-write", bad) == error("Base64 data contains invalid characters")


@pytest.mark.parametrize(
    ("written", "read"), [("aGk", "hi"), ("aGk=\n", "hi"), ("aGkx\nYQ", "hi1a"), ("a", ""), ("", "")]
)
def test_base64_is_taken_as_far_as_it_goes(monitored: Any, written: str, read: str) -> None:
    client = monitored.client()
    add(client, "r", "ringbuf", size=16)
    assert client.call("ringbuf-write", {"device": "r", "data": written, "format": "base64"}) == {"return": {}}
    assert client.call("ringbuf-read", {"device": "r", "size": 99}) == {"return": read}
