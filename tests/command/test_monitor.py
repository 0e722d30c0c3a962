"""What the monitor says about itself, objects, I/O threads, and the human monitor's commands."""

from __future__ import annotations

import ast
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qobra
from qobra.machine.machine import Machine
from qobra.qapi.contract import contract
from qobra.qapi.introspect import introspect
from qobra.qmp import hmp, registry


def names(client: Any, command: str) -> list[str]:
    return [each["name"] for each in client.call(command)["return"]]


def test_a_command_is_advertised_exactly_where_it_is_served(make_monitored: Callable[..., Any]) -> None:
    for capabilities in (frozenset[str](), frozenset(("board",))):
        client = make_monitored(capabilities=capabilities).client()
        listed = set(names(client, "query-commands"))
        assert {"qmp_capabilities", "query-version", "quit", "getfd", "object-add"} <= listed
        for name, command in registry.commands().items():
            served = name in contract().commands and (command.needs is None or command.needs in capabilities)
            assert (name in listed) == served
            if not served:
                refused = {"class": "CommandNotFound", "desc": f"The command {name} has not been found"}
                assert client.call(name) == {"error": refused}


def test_no_command_breaks_for_want_of_arguments(monitored: Any) -> None:
    client = monitored.client()
    for name in names(client, "query-commands"):
        if name != "quit":
            reply = client.call(name)
            assert "Internal error" not in reply.get("error", {}).get("desc", ""), (name, reply)


def test_every_command_is_in_the_contract() -> None:
    assert registry.commands().keys() <= contract().commands.keys()


def test_the_schema_is_of_what_is_served(monitored: Any) -> None:
    client = monitored.client()
    schema = client.call("query-qmp-schema")["return"]
    listed = [each["name"] for each in schema if each["meta-type"] == "command"]
    assert sorted(listed) == names(client, "query-commands")
    events = [each["name"] for each in schema if each["meta-type"] == "event"]
    assert sorted(events) == names(client, "query-events")
    assert schema == introspect(listed, events)
    assert client.call("query-qmp-schema")["return"] == schema


def test_every_event_that_is_emitted_is_declared() -> None:
    """The events whose names stand anywhere in the source are those that query-events is made of."""
    registry.commands()
    declared = set(registry._events)
    assert declared <= contract().events.keys()
    emitted: set[str] = set()
    for path in Path(qobra.__file__).parent.rglob("*.py"):
        if path.match("qmp/events.py") or path.match("command/introspect.py") or {"model", "client"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in contract().events:
                if path.name not in ("events.py", "introspect.py") and "client" not in path.parts:
                    emitted.add(node.value)
    assert emitted - declared == set()
    assert declared - emitted == set()


def test_name_and_uuid(make_monitored: Callable[..., Any]) -> None:
    client = make_monitored().client()
    assert client.call("query-name") == {"return": {}}
    assert client.call("query-uuid") == {"return": {"UUID": "00000000-0000-0000-0000-000000000000"}}
    identity = uuid.uuid4()
    client = make_monitored(name="vm", uuid=identity).client()
    assert client.call("query-name") == {"return": {"name": "vm"}}
    assert client.call("query-uuid") == {"return": {"UUID": str(identity)}}


def test_quit(monitored: Any) -> None:
    client = monitored.client()
    assert client.call("quit") == {"return": {}}
    assert monitored.machine.wait_for_exit(30)


def test_preconfig(monitored: Any) -> None:
    client = monitored.client()
    monitored.machine.preconfig = True
    refused = client.call("query-chardev")
    assert "error" in refused or contract().commands["query-chardev"].allow_preconfig
    desc = "The command 'chardev-remove' is permitted only after machine initialization has completed"
    assert client.call("chardev-remove", {"id": "x"}) == {"error": {"class": "GenericError", "desc": desc}}
    assert "return" in client.call("query-version")


def test_objects(monitored: Any) -> None:
    client = monitored.client()
    secret = {"qom-type": "secret", "id": "s", "data": "x"}
    assert client.call("object-add", secret) == {"return": {}}
    assert client.call("object-add", {"qom-type": "secret", "id": "t", "props": {"data": "y"}}) == {"return": {}}
    twice = client.call("object-add", {"qom-type": "secret", "id": "u", "data": "z", "props": {"data": "y"}})
    assert twice["error"]["desc"] == "Parameter 'data' is given both by itself and in 'props'"
    assert client.call("object-del", {"id": "s"}) == {"return": {}}
    assert client.call("object-del", {"id": "s"})["error"]["desc"] == "object 's' not found"
    assert client.call("object-add", {"id": "s"})["error"]["desc"] == "Parameter 'qom-type' is missing"


def test_iothreads(monitored: Any) -> None:
    client = monitored.client()
    client.call("object-add", {"qom-type": "iothread", "id": "io", "poll-max-ns": 5})
    client.call("object-add", {"qom-type": "secret", "id": "s", "data": "x"})
    found = client.call("query-iothreads")["return"]
    assert [each["id"] for each in found] == ["io"]
    assert found[0]["poll-max-ns"] == 5
    assert found[0]["thread-id"] > 0


def test_iothreads_are_named_by_paths(monitored: Any) -> None:
    client = monitored.client()
    client.call("blockdev-add", {"driver": "null-co", "node-name": "n"})
    client.call("object-add", {"qom-type": "secret", "id": "s", "data": "x"})

    def ask(path: str) -> Any:
        return client.call("x-blockdev-set-iothread", {"node-name": "n", "iothread": path})

    assert ask("")["error"]["desc"] == "Cannot find iothread "
    client.call("object-add", {"qom-type": "iothread", "id": "io"})
    for path in ("io", "/objects/io", "objects/io", "//objects//io", "io/", ""):  # the empty one ends every path
        assert ask(path) == {"return": {}}, path
    for path in ("/", "/objects", "s", "/io"):
        assert ask(path)["error"]["desc"] == f"Cannot find iothread {path}"
    client.call("object-add", {"qom-type": "iothread", "id": "other"})
    assert ask("")["error"]["desc"] == "Cannot find iothread "
    assert ask("io") == {"return": {}}


class TestHmp:
    def run(self, monitored: Any, line: str) -> str:
        reply = monitored.client().call("human-monitor-command", {"command-line": line})
        text: str = reply["return"]
        return text

    def test_texts(self, monitored: Any) -> None:
        for line, text in (
            ("", ""),
            ("foo", "unknown command: 'foo'\r\n"),
            ("info foo", "unknown command: 'info foo'\r\n"),
            ("info version", "5.2.0qobra-0.1.0\r\n"),
            (
                "info version x",
                'version: extraneous characters at the end of line\r\nTry "help info version" for more information\r\n',
            ),
            ("quit x", 'quit|q: extraneous characters at the end of line\r\nTry "help quit" for more information\r\n'),
            ("object_add", 'object_add: string expected\r\nTry "help object_add" for more information\r\n'),
            ("object_add secret,id=s,data=x", ""),
            ("object_del s", ""),
            ("object_del s", "Error: object 's' not found\r\n"),
            ("chardev-add ringbuf,id=r", ""),
            ('ringbuf_write r "a b\\nc\\\\"', ""),
            ("ringbuf_read r 0x10", "a b\r\nc\\\\\r\n"),
            (
                "ringbuf_read r x",
                "invalid char 'x' in expression\r\nTry \"help ringbuf_read\" for more information\r\n",
            ),
            ("ringbuf_read r", 'unexpected end of expression\r\nTry "help ringbuf_read" for more information\r\n'),
            ("chardev-change r null", ""),
            ("chardev-remove r", ""),
            ("help q", "quit|q  -- end the program\r\n"),
            ("help foo bar", "unknown command: 'foo'\r\n"),
            ("help info foo", "unknown command: 'info foo'\r\n"),
            ("info uuid", "00000000-0000-0000-0000-000000000000\r\n"),
        ):
            assert self.run(monitored, line) == text, line

    def test_help_lists_every_command_once(self, monitored: Any) -> None:
        everything = self.run(monitored, "help").splitlines()
        assert "quit|q  -- end the program" in everything
        assert len(everything) == len(set(everything))
        assert self.run(monitored, "info") == self.run(monitored, "help info")
        assert "info version  -- the version that this program answers as" in self.run(monitored, "info").splitlines()

    def test_on_a_terminal(self, monitored: Any) -> None:
        machine = monitored.machine
        ring = machine.chardevs.create("r", {"type": "ringbuf", "data": {}})
        monitored.monitors.add("r", mode="readline")
        assert ring.read(1000).endswith(b"information\r\n(qemu) ")
        ring.deliver(b"info uuix\x7fd\r")
        assert ring.read(1000).endswith(b"\r\n00000000-0000-0000-0000-000000000000\r\n(qemu) ")
        ring.deliver(b"\x1b[A")  # the line before, again
        assert ring.read(1000).endswith(b"info uuid\x1b[K")
        ring.deliver(b"\x01\x1b[3~\x15fo version\x01in\x1b[C\x1b[D\x05 foo\x17\x7f\r")
        assert b"\r\n5.2.0" in ring.read(1000)
        ring.deliver(b"info ver\t\r")
        assert b"5.2.0" in ring.read(1000)


def test_people_are_not_answered_by_a_machine_that_could_not_be_set_up() -> None:
    machine = Machine()
    machine.setting_up = True
    assert hmp.execute(machine, "info version") == hmp.execute(machine, "quit") == ""
    assert not machine.is_ending
    machine.setting_up = False
    assert qobra.__version__ in hmp.execute(machine, "info version")
    machine.close()
