"""Run states: legal transitions, and the events in QEMU's order."""

from __future__ import annotations

import errno
from functools import partial
from typing import Any

import pytest

from qobra.block.node import BlockNode
from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.machine.run_state import TRANSITIONS
from qobra.testing.waiting import wait_until


def _machine(*capabilities: str) -> tuple[Machine, list[Any]]:
    machine = Machine(capabilities=frozenset(capabilities))
    seen: list[Any] = []
    machine.events.subscribe(lambda event: seen.append((event["event"], event.get("data"))))
    return machine, seen


def test_a_storage_daemon_runs_and_quits_quietly() -> None:
    machine, seen = _machine()
    assert machine.run_state.query() == {"running": True, "singlestep": False, "status": "running"}
    machine.run_state.request_quit()
    assert machine.wait_for_exit(0) and seen == []


def test_cont_and_stop() -> None:
    machine, seen = _machine("board")
    state = machine.run_state
    calls: list[tuple[bool, str]] = []
    unsubscribe = state.subscribe(lambda running, name: calls.append((running, name)))
    assert state.state == "prelaunch"
    state.stop()
    state.cont()
    state.cont()
    state.stop()
    assert [name for name, _ in seen] == ["RESUME", "STOP"]
    assert calls == [(True, "running"), (False, "paused")]
    unsubscribe()
    state.cont()
    assert len(calls) == 2


def test_a_guest_that_stops_has_its_disks_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each disk once, also where one fails; not once the guest runs again."""
    machine, _ = _machine("board")
    state = machine.run_state
    flushed: list[str] = []

    def flush(node: BlockNode) -> None:
        flushed.append(node.node_name)
        raise OSError(errno.EIO, "broken")

    for name in ("first", "second"):
        disk = machine.block.add_node({"driver": "null-co", "node-name": name})
        monkeypatch.setattr(disk, "flush", partial(flush, disk))
    with machine.control:
        state.cont()
        state.stop("io-error")
        assert flushed == []
    wait_until(lambda: flushed == ["first", "second"])
    with machine.control:
        state.cont()
        state.stop()
        state.cont()
    machine.control.call_later(0, lambda: flushed.append("later"))
    wait_until(lambda: "later" in flushed)
    with machine.control:
        state.stop()
        state.write_out()
    assert flushed[2:] == ["later", "first", "second"]
    with machine.control:
        state.write_out()
    assert len(flushed) == 7
    machine.close()


def test_every_illegal_transition_is_refused() -> None:
    machine, _ = _machine("board")
    for state, followers in TRANSITIONS.items():
        for other in set(TRANSITIONS) - followers - {state}:
            machine.run_state.state = state
            with pytest.raises(QobraError, match=f"invalid runstate transition: '{state}' -> '{other}'"):
                machine.run_state.set(other)


def test_requests_are_served_after_what_asked_for_them() -> None:
    machine, seen = _machine("board")
    resets: list[int] = []
    machine.run_state.on_reset(lambda: resets.append(len(seen)))
    with machine.control:
        machine.run_state.request_reset("guest-reset")
        machine.run_state.request_reset("guest-reset")
        assert seen == []
    assert seen == [("RESET", {"guest": True, "reason": "guest-reset"})] and resets == [0]


def test_what_a_command_asks_for_is_done_after_its_reply() -> None:
    machine, seen = _machine("board")
    with machine.control:
        machine.run_state.request_reset()
        machine.run_state.request_powerdown()
        assert seen == []
    assert seen == [("RESET", {"guest": False, "reason": "host-qmp-system-reset"}), ("POWERDOWN", None)]


def test_shutdown_pauses_or_ends() -> None:
    machine, seen = _machine("board")
    machine.run_state.shutdown_action = "pause"
    machine.run_state.start()
    machine.run_state.request_shutdown("guest-shutdown")
    assert seen[1:] == [("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}), ("STOP", None)]
    assert machine.run_state.state == "shutdown" and not machine.wait_for_exit(0)
    with pytest.raises(QobraError, match="Resetting the Virtual Machine is required"):
        machine.run_state.cont()
    machine.run_state.request_reset()
    machine.run_state.cont()
    machine.run_state.request_quit()
    assert machine.wait_for_exit(0)


def test_no_reboot_makes_a_reset_the_end() -> None:
    machine, seen = _machine("board")
    machine.run_state.reboot_action = "shutdown"
    machine.run_state.request_reset("guest-reset")
    assert seen == [("SHUTDOWN", {"guest": True, "reason": "guest-reset"})]


def test_a_panic_does_what_is_set() -> None:
    machine, seen = _machine("board")
    state = machine.run_state
    state.start()
    state.panic_action = "none"
    state.guest_panicked()
    state.panic_action = "pause"
    state.guest_panicked({"type": "hyper-v"})
    assert seen[1:] == [
        ("GUEST_PANICKED", {"action": "run"}),
        ("GUEST_PANICKED", {"action": "pause", "info": {"type": "hyper-v"}}),
        ("STOP", None),
    ]
    assert state.state == "guest-panicked"


def test_suspend_and_wake() -> None:
    machine, seen = _machine("board")
    machine.run_state.start()
    with pytest.raises(QobraError, match="guest is not in suspended state"):
        machine.run_state.request_wakeup()
    machine.run_state.request_suspend()
    assert machine.run_state.state == "suspended"
    machine.run_state.request_wakeup()
    assert [name for name, _ in seen] == ["RESUME", "SUSPEND", "WAKEUP"] and machine.run_state.running
