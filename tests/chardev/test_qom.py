"""Character devices in the composition tree."""

from __future__ import annotations

from typing import Any


def test_devices_are_shown(monitored: Any) -> None:
    client = monitored.client()
    client.call("chardev-add", {"id": "early", "backend": {"type": "memory", "data": {}}})
    assert {"name": "early", "type": "child<chardev-memory>"} in client.call("qom-list", {"path": "/chardevs"})[
        "return"
    ]
    address = {"type": "inet", "data": {"host": "127.0.0.1", "port": "0"}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    client.call("chardev-add", {"id": "late", "backend": backend})

    def get(name: str) -> Any:
        return client.call("qom-get", {"path": "/chardevs/late", "property": name})["return"]

    assert get("type") == "chardev-socket"
    assert get("connected") is False
    assert get("addr") == {"type": "inet", "host": "127.0.0.1", "port": "0"}
    refused = client.call("qom-set", {"path": "/chardevs/late", "property": "addr", "value": 1})
    assert refused["error"]["desc"] == "Property 'chardev-socket.addr' is not writable"
    client.call("chardev-change", {"id": "late", "backend": {"type": "null", "data": {}}})
    assert get("type") == "chardev-null"
    client.call("chardev-remove", {"id": "late"})
    assert client.call("qom-get", {"path": "/chardevs/late", "property": "type"})["error"]["class"] == "DeviceNotFound"


def test_types(monitored: Any) -> None:
    client = monitored.client()
    listed = client.call("qom-list-types", {"implements": "chardev", "abstract": True})["return"]
    types = {each["name"]: each for each in listed}
    assert types["chardev"] == {"name": "chardev", "parent": "object", "abstract": True}
    assert types["chardev-fd"] == {"name": "chardev-fd", "parent": "chardev", "abstract": True}
    assert types["chardev-file"]["parent"] == "chardev-fd"
    assert types["chardev-memory"]["parent"] == "chardev-ringbuf"
    backends = {each["name"] for each in client.call("query-chardev-backends")["return"]}
    assert {f"chardev-{name}" for name in backends} | {"chardev", "chardev-fd"} == types.keys()
