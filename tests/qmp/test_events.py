"""Rate limits of events, in simulated time."""

from __future__ import annotations

from typing import Any

from qobra.clock import SimulatedClock
from qobra.testing.waiting import wait_until

SECOND = 10**9


def emit(machine: Any, name: str, **data: Any) -> None:
    with machine.control:
        machine.events.emit(name, {key.replace("_", "-"): value for key, value in data.items()})


def test_first_at_once_then_the_latest_each_second(make_monitored: Any) -> None:
    clock = SimulatedClock()
    monitored = make_monitored(clock=clock)
    machine, client = monitored.machine, monitored.client()
    for offset in range(5):
        emit(machine, "RTC_CHANGE", offset=offset)
    assert client.line()["data"] == {"offset": 0}
    assert client.call("query-name") == {"return": {}}
    assert client.events == []
    wait_until(lambda: _advance(clock, client))
    assert client.line()["data"] == {"offset": 4}
    # That one has its second as well.
    emit(machine, "RTC_CHANGE", offset=9)
    client.call("query-name")
    assert client.events == []


def _advance(clock: SimulatedClock, client: Any) -> bool:
    import select

    clock.advance(SECOND // 10)
    return bool(select.select([client.sock], [], [], 0.005)[0])


def test_sources_are_limited_apart(make_monitored: Any) -> None:
    monitored = make_monitored(clock=SimulatedClock())
    machine, client = monitored.machine, monitored.client()
    for port in ("a", "b", "a", "b"):
        emit(machine, "VSERPORT_CHANGE", id=port, open=True)
    for node in ("m", "n", "m"):
        emit(machine, "QUORUM_REPORT_BAD", type="read", node_name=node, sector_num=0, sectors_count=1)
    client.call("query-name")
    assert [event["data"].get("id", event["data"].get("node-name")) for event in client.events] == ["a", "b", "m", "n"]


def test_other_events_are_not_limited(make_monitored: Any) -> None:
    monitored = make_monitored(clock=SimulatedClock())
    client = monitored.client()
    for _ in range(10):
        emit(monitored.machine, "STOP")
    client.call("query-name")
    assert len(client.events) == 10


def test_timestamps(make_monitored: Any) -> None:
    monitored = make_monitored(clock=SimulatedClock(epoch_ns=1_700_000_000_123_456_789))
    client = monitored.client()
    emit(monitored.machine, "STOP")
    assert client.line() == {"timestamp": {"seconds": 1_700_000_000, "microseconds": 123456}, "event": "STOP"}


def test_a_monitor_that_is_to_be_read_gets_events_as_it_gets_replies(make_monitored: Any) -> None:
    monitored = make_monitored()
    pretty, plain = monitored.connect(pretty=True), monitored.client()

    def message() -> bytes:
        lines = [pretty.raw_line()]
        while lines[-1] != b"}\r\n":
            lines.append(pretty.raw_line())
        return b"".join(lines)

    assert b'"QMP"' in message()
    pretty.send(b'{"execute": "qmp_capabilities"}')
    assert message() == b'{\r\n    "return": {\r\n    }\r\n}\r\n'
    emit(monitored.machine, "WAKEUP")
    told = message()
    assert told.startswith(b'{\r\n    "timestamp": {\r\n        "seconds": ') and b'    "event": "WAKEUP"' in told
    assert plain.line()["event"] == "WAKEUP"


def test_who_has_left_is_sent_no_events(make_monitored: Any) -> None:
    monitored = make_monitored()
    staying, leaving = monitored.client(), monitored.client()
    events = monitored.monitors._router
    assert len(events._sessions) == 2
    leaving.close()
    wait_until(lambda: len(events._sessions) == 1)
    emit(monitored.machine, "WAKEUP")
    assert staying.line()["event"] == "WAKEUP"
