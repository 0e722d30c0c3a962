"""rerror and werror: what is decided about a failed request, who is told, and what the io-status is then."""

from __future__ import annotations

import errno
import os

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.error_policy import ErrorPolicy
from qobra.block.layer import BlockLayer

NO_SPACE = OSError(errno.ENOSPC, "full")
BROKEN = OSError(errno.EIO, "broken")


class _Machine:
    """A backend on a node that fails, and what is told of it."""

    def __init__(self) -> None:
        self.layer = BlockLayer()
        self.told: list[object] = []
        self.layer.emit = lambda name, data: self.told.append((name, data))  # type: ignore[method-assign]
        self.layer.stop_machine = lambda: self.told.append("stopped")
        self.layer.control.defer = lambda call, *args: call(*args)  # type: ignore[method-assign]
        self.layer.add_node({"driver": "null-co", "node-name": "disk", "size": 4096})
        self.backend = BlockBackend(self.layer, "drive", perm=permissions.CONSISTENT_READ)
        self.backend.insert(self.layer.find_node("disk"))

    def policy(self, **options: str) -> ErrorPolicy:
        policy = ErrorPolicy(self.backend, **options)
        policy.has_status = True
        return policy


@pytest.fixture
def machine():
    made = _Machine()
    yield made
    made.backend.remove()
    made.layer.close()


@pytest.mark.parametrize(
    ("read", "write", "error", "is_read", "action", "status"),
    [
        ("auto", "auto", BROKEN, True, "report", "ok"),
        ("auto", "auto", NO_SPACE, True, "report", "ok"),
        ("auto", "auto", BROKEN, False, "report", "ok"),
        ("auto", "auto", NO_SPACE, False, "stop", "nospace"),
        ("stop", "report", BROKEN, True, "stop", "failed"),
        ("stop", "report", NO_SPACE, True, "stop", "nospace"),
        ("stop", "report", NO_SPACE, False, "report", "ok"),
        ("report", "stop", BROKEN, False, "stop", "failed"),
        ("ignore", "stop", BROKEN, True, "ignore", "ok"),
        ("report", "ignore", NO_SPACE, False, "ignore", "ok"),
    ],
)
def test_what_becomes_of_a_failure(machine, read, write, error, is_read, action, status):
    policy = machine.policy(on_read_error=read, on_write_error=write)
    assert policy.decide(error, is_read=is_read) == action
    event = {
        "device": "drive",
        "node-name": "disk",
        "operation": "read" if is_read else "write",
        "action": action,
        "reason": os.strerror(error.errno),
    }
    if read == "stop" or write in ("auto", "stop"):
        event["nospace"] = error is NO_SPACE  # beside an io-status only
    assert machine.told == [("BLOCK_IO_ERROR", event), *(["stopped"] if action == "stop" else [])]
    assert policy.io_status == status
    policy.reset()
    assert policy.io_status == "ok"


def test_a_drive_without_a_medium_names_no_node(machine):
    policy = machine.policy()
    machine.backend.remove()
    policy.decide(BROKEN, is_read=True)
    ((name, data),) = machine.told
    assert name == "BLOCK_IO_ERROR" and "node-name" not in data


@pytest.mark.parametrize(
    ("read", "write", "is_shown"),
    [("auto", "auto", True), ("stop", "report", True), ("report", "stop", True), ("ignore", "report", False)],
)
def test_a_status_is_shown_where_the_machine_may_stop(machine, read, write, is_shown):
    policy = machine.policy(on_read_error=read, on_write_error=write)
    assert policy.shown_status == ("ok" if is_shown else None)
    policy.has_status = False
    assert policy.shown_status is None


def test_report_all(machine):
    policy = machine.policy(on_read_error="stop", on_write_error="stop")
    policy.report_all()
    assert [policy.decide(NO_SPACE, is_read=is_read) for is_read in (False, True)] == ["report", "report"]


@pytest.mark.parametrize(("action", "failed", "done"), [("report", 1, 0), ("ignore", 0, 1), ("stop", 0, 0)])
def test_a_failure_that_the_guest_does_not_hear_of_does_not_count(machine, action, failed, done):
    policy = machine.policy(on_read_error=action)
    node = machine.layer.find_node("disk")
    node.read_into = _fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="broken") as caught:
        machine.backend.read(0, 512)
    policy.decide(caught.value, is_read=True)
    accounting = machine.backend.accounting
    assert (accounting.failed[0], accounting.operations[0]) == (failed, done)


def _fail(_offset, _view):
    raise BROKEN
