"""Sessions: negotiation, errors, order, out-of-band commands, slow readers, hostile input."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qobra.machine.machine import Machine
from qobra.qmp import registry
from qobra.qmp.monitor import Monitors

GREETING = {
    "QMP": {
        "version": {"qemu": {"micro": 0, "minor": 2, "major": 5}, "package": "qobra-0.1.0"},
        "capabilities": ["oob"],
    }
}


def error(desc: str, error_class: str = "GenericError", **rest: Any) -> dict[str, Any]:
    return {**rest, "error": {"class": error_class, "desc": desc}}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``serve(name, handler, like="stop")``: a command for the test, with the contract of another."""
    from qobra.qapi.contract import contract

    def register(name: str, handler: Any, like: str = "stop", oob: bool = False) -> None:
        registry.commands()
        spec = contract().commands[like]
        monkeypatch.setitem(contract().commands, name, spec)
        monkeypatch.setitem(registry._commands, name, registry.Command(name, handler, None, False))
        if oob:
            monkeypatch.setattr(spec, "oob", True)

    return register


def test_greeting_and_negotiation(monitored: Any) -> None:
    client = monitored.connect()
    assert client.line() == GREETING
    expecting = error("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound")
    assert client.call("query-version") == expecting
    assert client.call("no-such-command") == expecting
    unknown = client.call("qmp_capabilities", {"foo": 1})
    assert unknown == error("Parameter 'foo' is unexpected")
    assert client.call("qmp_capabilities") == {"return": {}}
    assert client.call("query-version")["return"] == GREETING["QMP"]["version"]
    again = error("Capabilities negotiation is already complete, command ignored", "CommandNotFound")
    assert client.call("qmp_capabilities") == again


def test_reply_layout(monitored: Any) -> None:
    client = monitored.client()
    client.send(b'{"execute":"query-name","id":{"a":[1,null]}}')
    assert client.raw_line() == b'{"return": {}, "id": {"a": [1, null]}}\r\n'
    client.send(b'{"execute":"nope","id":"x"}')
    assert client.raw_line() == (
        b'{"id": "x", "error": {"class": "CommandNotFound", "desc": "The command nope has not been found"}}\r\n'
    )


def test_pretty_layout(monitored: Any) -> None:
    client = monitored.connect(pretty=True)
    assert client.raw_line() == b"{\r\n"
    while client.raw_line() != b"}\r\n":
        pass
    client.send(b'{"execute":"qmp_capabilities","id":1}')
    assert [client.raw_line() for _ in range(5)] == [
        b"{\r\n",
        b'    "return": {\r\n',
        b"    },\r\n",
        b'    "id": 1\r\n',
        b"}\r\n",
    ]


@pytest.mark.parametrize(
    ("request_", "desc"),
    [
        (b"[]", "QMP input must be a JSON object"),
        (b'"x"', "QMP input must be a JSON object"),
        (b"{}", "QMP input lacks member 'execute'"),
        (b'{"execute":1}', "QMP input member 'execute' must be a string"),
        (b'{"execute":"query-name","x":1}', "QMP input member 'x' is unexpected"),
        (b'{"zzz":1,"execute":"query-name","aaa":1,"bbb":2}', "QMP input member 'bbb' is unexpected"),
        (b'{"execute":"query-name","arguments":1}', "QMP input member 'arguments' must be an object"),
        (b'{"execute":"query-name","arguments":null}', "QMP input member 'arguments' must be an object"),
        (b'{"exec-oob":"query-name"}', "QMP input member 'exec-oob' is unexpected"),
        (b'{"execute":"query-name","exec-oob":"x"}', "QMP input member 'exec-oob' is unexpected"),
        (b'{"execute":"query-name","arguments":{"x":1}}', "Parameter 'x' is unexpected"),
        (b"{@}\xff", "JSON parse error, stray '@'"),
    ],
)
def test_bad_requests_leave_the_session_usable(monitored: Any, request_: bytes, desc: str) -> None:
    client = monitored.client()
    client.send(request_)
    assert client.reply() == error(desc)
    client.send(b'\xff\n{"execute":"query-name","id":"after"}')
    while client.reply() != {"return": {}, "id": "after"}:
        pass


def test_an_id_comes_back_whatever_else_is_wrong(monitored: Any) -> None:
    client = monitored.client()
    client.send(b'{"id":7}')
    assert client.reply() == error("QMP input lacks member 'execute'", id=7)
    client.send(b'{"execute":"query-name","id":18446744073709551616}')
    assert client.reply() == {"return": {}, "id": 2.0**64}


def test_many_commands_in_one_packet_and_one_in_many(monitored: Any) -> None:
    client = monitored.client()
    client.send(b"".join(b'{"execute":"query-name","id":%d}' % n for n in range(100)))
    assert [client.reply()["id"] for _ in range(100)] == list(range(100))
    client.send(*(bytes((byte,)) for byte in b"{'execute':'query-name'}"))
    assert client.reply() == {"return": {}}


def test_a_defective_handler_is_an_error_and_not_the_end(monitored: Any, serve: Any) -> None:
    def handler(machine: Machine, args: Any) -> None:
        raise KeyError("oops")

    serve("x-broken", handler)
    client = monitored.client()
    assert client.call("x-broken") == error("Internal error in x-broken: KeyError: 'oops'")
    assert client.call("query-name") == {"return": {}}


def test_events_of_a_command_precede_its_reply_and_later_ones_follow(monitored: Any, serve: Any) -> None:
    def handler(machine: Machine, args: Any) -> None:
        machine.control.post(machine.events.emit, "RESUME")
        machine.events.emit("STOP")

    serve("x-emit", handler)
    acting, watching = monitored.client(), monitored.client()
    for _ in range(50):
        acting.send(b'{"execute":"x-emit"}')
        lines = [acting.line() for _ in range(3)]
        assert [line.get("event", "reply") for line in lines] == ["STOP", "reply", "RESUME"]
        assert set(lines[0]) == {"event", "timestamp"}
        assert [watching.line()["event"] for _ in range(2)] == ["STOP", "RESUME"]


def test_no_events_before_negotiation(monitored: Any) -> None:
    client = monitored.connect()
    assert client.line() == GREETING
    with monitored.machine.control:
        monitored.machine.events.emit("STOP")
    assert client.call("qmp_capabilities") == {"return": {}}
    assert client.events == []


def test_out_of_band_overtakes(monitored: Any, serve: Any) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(machine: Machine, args: Any) -> None:
        entered.set()
        assert go_on.wait(30)

    serve("x-slow", slow)
    serve("x-urgent", lambda machine, args: go_on.set(), like="system_wakeup", oob=True)
    client = monitored.client("oob")
    client.send(b'{"execute":"x-slow","id":1}{"execute":"query-name","id":2}')
    assert entered.wait(30)
    client.send(b'{"exec-oob":"query-name","id":3}')
    assert client.reply() == error("The command query-name does not support OOB", id=3)
    client.send(b'{"exec-oob":"x-urgent","id":4}')
    assert [client.reply()["id"] for _ in range(3)] == [4, 1, 2]


def test_a_command_is_in_band_or_out_of_it(monitored: Any) -> None:
    both = {"execute": "query-name", "exec-oob": "query-name", "id": 1}
    client = monitored.client("oob")
    client.send(json.dumps(both).encode())
    reply = client.reply()
    assert re.fullmatch(
        "QMP input member '(execute|exec-oob)' clashes with '(exec-oob|execute)'", reply["error"]["desc"]
    )
    client = monitored.client()  # that did not ask for it, and has no such member
    client.send(json.dumps(both).encode())
    assert client.reply()["error"]["desc"] == "QMP input member 'exec-oob' is unexpected"


def test_oob_queue_is_bounded(monitored: Any, serve: Any) -> None:
    go_on, served = threading.Event(), []

    def slow(machine: Machine, args: Any) -> None:
        served.append(1)
        assert go_on.wait(30)

    serve("x-slow", slow)
    serve("x-urgent", lambda machine, args: None, like="system_wakeup", oob=True)
    client = monitored.client("oob")
    # One runs, eight wait, the reader holds the tenth: the out-of-band command behind them is not seen yet.
    client.send(b'{"execute":"x-slow"}' * 10 + b'{"exec-oob":"x-urgent","id":"urgent"}')
    client.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.sock.recv(1)
    client.sock.settimeout(30)
    go_on.set()
    replies = [json.loads(line) for line in _receive(client.sock, 11)]
    assert {"return": {}, "id": "urgent"} in replies
    assert len(served) == 10


def _receive(sock: socket.socket, lines: int) -> list[bytes]:
    data = b""
    while data.count(b"\r\n") < lines:
        data += sock.recv(65536)
    return data.splitlines()


def test_a_client_that_does_not_read_holds_up_nobody(monitored: Any) -> None:
    slow, other = monitored.client(), monitored.client()
    flood = b'{"execute":"query-commands"}\n' * 1000
    slow.sock.settimeout(0.2)
    try:
        while True:
            slow.sock.sendall(flood)  # until the server stops reading as well
    except TimeoutError:
        pass
    machine = monitored.machine
    for _ in range(30000):
        with machine.control:
            machine.events.emit("STOP")
        if other.sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) if _pending(other.sock) else b"":
            assert other.line()["event"] == "STOP"
    assert other.call("query-name") == {"return": {}}
    session = machine.chardevs.get("qmp0").frontend
    output = session._output
    assert output.dropped_events > 0
    assert output._size < 1 << 21


def test_commands_are_taken_before_their_answers_are_read(monitored: Any, serve: Any) -> None:
    taken = threading.Semaphore(0)
    serve("x-long", lambda machine, args: taken.release() or {"text": "x" * 4096})
    client = monitored.client()
    many = 100  # their answers are more than the socket holds, and less than what may wait
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for number in range(many):
        client.send(b'{"execute":"x-long","id":%d}' % number)
    assert all(taken.acquire(timeout=30) for _ in range(many))
    assert [client.reply()["id"] for _ in range(many)] == list(range(many))


def test_a_client_that_has_said_all_is_still_answered(monitored: Any, serve: Any) -> None:
    serve("x-long", lambda machine, args: {"text": "x" * 4096})
    client = monitored.client()
    client.send(*(b'{"execute":"x-long","id":%d}' % number for number in range(100)))
    client.sock.shutdown(socket.SHUT_WR)
    assert [client.reply()["id"] for _ in range(100)] == list(range(100))
    assert client.sock.recv(1) == b""


def _pending(sock: socket.socket) -> bool:
    import select

    return bool(select.select([sock], [], [], 0)[0])


def test_a_reader_that_catches_up_gets_whole_lines(monitored: Any) -> None:
    client, machine = monitored.client(), monitored.machine
    for _ in range(20000):
        with machine.control:
            machine.events.emit("RESET", {"guest": False, "reason": "host-qmp-system-reset"})
    client.send(b'{"execute":"query-name","id":"end"}')
    assert client.reply() == {"return": {}, "id": "end"}
    assert len(client.events) > 1000
    assert {event["event"] for event in client.events} == {"RESET"}


def test_many_sessions(monitored: Any) -> None:
    clients = [monitored.client() for _ in range(40)]
    for number, client in enumerate(clients):
        client.send(b'{"execute":"query-version","id":%d}' % number)
    assert [client.reply()["id"] for client in clients] == list(range(40))
    with monitored.machine.control:
        monitored.machine.events.emit("STOP")
    assert all(client.line()["event"] == "STOP" for client in clients)


def test_a_session_ends_with_its_connection(monitored: Any) -> None:
    client, other = monitored.client(), monitored.client()
    client.close()
    deadline = threading.Event()
    for _ in range(2000):
        if len(other.call("query-chardev")["return"]) == 1:
            break
        deadline.wait(0.005)
    else:
        pytest.fail("the first session is still there")


def test_a_first_client_can_be_waited_for(tmp_path: Any) -> None:
    machine = Machine()
    monitors = Monitors(machine)
    try:
        monitors.wait_for_greeting(60)  # there is nobody who could come
        address = {"type": "unix", "data": {"path": str(tmp_path / "qmp")}}
        machine.chardevs.create("s", {"type": "socket", "data": {"addr": address, "server": True, "wait": False}})
        monitors.add("s")
        begin = time.monotonic()
        monitors.wait_for_greeting(0.02)
        assert time.monotonic() - begin >= 0.02
        told = threading.Thread(target=monitors.wait_for_greeting, args=(60,))
        told.start()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(tmp_path / "qmp"))
            assert b"QMP" in client.recv(4096)
            told.join(30)
            assert not told.is_alive()
    finally:
        machine.close()


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=60) | st.text("{}[]:,'\"\\u0e1-.tfn exc", max_size=60).map(str.encode), max_size=6))
def test_garbage_never_ends_or_hangs_a_session(pieces: list[bytes]) -> None:
    machine = Machine()
    monitors = Monitors(machine)
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    monitors.serve_socket(theirs)
    try:
        ours.sendall(b'{"execute":"qmp_capabilities"}')
        for piece in pieces:
            ours.sendall(piece)
        ours.sendall(b'\xff\n{"execute":"query-version","id":"the end"}')
        received = b""
        while b"the end" not in received:
            data = ours.recv(65536)
            assert data, "the session has ended"
            received += data
        for line in received.splitlines():
            json.loads(line)
    finally:
        ours.close()
        machine.close()
