"""Jobs that are waited for, on servers that tell of them in different ways."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from qobra.client import Client, JobCancelled, JobFailed, JobNotFound
from qobra.client.sync import Client as SyncClient

Scripted = Callable[..., Any]
OLD = {"QMP": {"version": {"qemu": {"major": 2, "minor": 5, "micro": 0}, "package": ""}, "capabilities": []}}


def backup(server: Any, *events: tuple[str, dict[str, Any]]) -> None:
    """Let the command ``backup`` emit ``events`` before its answer."""

    def start(request: dict[str, Any]) -> Any:
        for name, data in events:
            server.event(name, **data)
        return {}

    server.answers["backup"] = start


def status(*names: str) -> list[tuple[str, dict[str, Any]]]:
    return [("JOB_STATUS_CHANGE", {"id": "j", "status": name}) for name in names]


def block(name: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return f"BLOCK_JOB_{name}", {"device": "j", "type": "backup", "len": 10, "offset": 10, "speed": 0, **more}


def outcome(server: Any) -> Any:
    with SyncClient.connect(server.client_end) as client:
        client.execute("backup")
        return client.jobs["j"].wait(timeout=10)


def test_a_job_that_is_over_before_anybody_waits(scripted: Scripted) -> None:
    server = scripted()
    server.answers["query-jobs"] = []
    backup(server, *status("created", "running"), block("COMPLETED"), *status("concluded", "null"))
    state = outcome(server)
    assert (state.status, state.progress) == ("null", (10, 10))


def test_a_failed_block_job(scripted: Scripted) -> None:
    server = scripted()
    server.answers["query-jobs"] = []
    failed = block("COMPLETED", error="No space left on device")
    backup(server, *status("created", "running", "aborting"), failed, *status("concluded", "null"))
    with pytest.raises(JobFailed, match="job j: No space left on device"):
        outcome(server)


@pytest.mark.parametrize("by", ["event", "query"])
def test_a_cancelled_job(scripted: Scripted, by: str) -> None:
    server = scripted()
    server.answers["query-jobs"] = []
    if by == "event":
        backup(server, *status("created", "aborting"), block("CANCELLED"), *status("concluded", "null"))
    else:
        backup(server, *status("created", "aborting", "concluded"))
        info = {"id": "j", "type": "create", "status": "concluded", "current-progress": 0, "total-progress": 1}
        server.answers["query-jobs"] = [{**info, "error": "Operation canceled"}]
    with pytest.raises(JobCancelled):
        outcome(server)


def test_a_job_of_another_kind_tells_why_only_when_asked(scripted: Scripted) -> None:
    server = scripted()
    info = {"id": "j", "type": "create", "status": "concluded", "current-progress": 0, "total-progress": 1}
    server.answers["query-jobs"] = [{**info, "error": "Invalid size"}]
    backup(server, *status("created", "running", "aborting", "concluded"))
    with pytest.raises(JobFailed, match="Invalid size"):
        outcome(server)


def test_a_server_without_job_statuses(scripted: Scripted) -> None:
    server = scripted(OLD)
    info = {"device": "j", "type": "backup", "len": 10, "offset": 3, "busy": True, "paused": False, "speed": 0}
    server.answers["query-block-jobs"] = [info]

    def finish(request: dict[str, Any]) -> Any:
        server.answers["query-block-jobs"] = []
        server.event("BLOCK_JOB_COMPLETED", **block("COMPLETED")[1])
        return {}

    server.answers["backup"] = {}
    server.answers["block-job-resume"] = finish

    with SyncClient.connect(server.client_end) as client:
        client.execute("backup")
        job = client.jobs["j"]
        assert job.refresh().progress == (3, 10)
        job.resume()
        assert job.wait(timeout=10).progress == (10, 10)


def test_an_id_used_again_is_a_new_job(scripted: Scripted) -> None:
    server = scripted()
    server.answers["query-jobs"] = []
    with SyncClient.connect(server.client_end) as client:
        backup(server, *status("created", "aborting"), block("CANCELLED"), *status("concluded", "null"))
        client.execute("backup")
        with pytest.raises(JobCancelled):
            client.jobs["j"].wait()
        backup(server, *status("created", "running"), block("COMPLETED"), *status("concluded", "null"))
        client.execute("backup")
        client.jobs["j"].wait()


def running_then_over(server: Any) -> None:
    """Let the server tell that a job is running, and with the same packet that it is over."""
    info = {"id": "j", "type": "create", "status": "running", "current-progress": 0, "total-progress": 1}

    def query(request: dict[str, Any]) -> None:
        messages: list[Any] = [{"return": [info], "id": request["id"]}]
        messages += [{"event": name, "data": data} for name, data in status("waiting", "null")]
        server.send(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))

    server.answers["query-jobs"] = query


def test_an_answer_does_not_undo_the_events_behind_it(scripted: Scripted) -> None:
    server = scripted()
    running_then_over(server)
    with SyncClient.connect(server.client_end) as client:
        assert client.jobs["j"].wait(timeout=10).status == "null"


def test_an_answer_does_not_undo_the_events_behind_it_with_asyncio(scripted: Scripted) -> None:
    server = scripted()
    running_then_over(server)

    async def test() -> None:
        async with await Client.connect(server.client_end) as client:
            assert (await client.jobs["j"].wait(timeout=10)).status == "null"

    asyncio.run(asyncio.wait_for(test(), 30))


def test_no_such_job(scripted: Scripted) -> None:
    server = scripted()
    server.answers["query-jobs"] = []
    with SyncClient.connect(server.client_end) as client, pytest.raises(JobNotFound):
        client.jobs["j"].wait()


def test_wait_timeout(scripted: Scripted) -> None:
    server = scripted()
    info = {"id": "j", "type": "backup", "status": "running", "current-progress": 0, "total-progress": 1}
    server.answers["query-jobs"] = [info]
    with SyncClient.connect(server.client_end) as client, pytest.raises(TimeoutError):
        client.jobs["j"].wait(timeout=0.01)


def test_await_and_watch(scripted: Scripted) -> None:
    server = scripted()
    info = {"id": "j", "type": "mirror", "status": "running", "current-progress": 1, "total-progress": 4}
    asked: list[int] = []

    def query(request: dict[str, Any]) -> Any:
        asked.append(1)
        if len(asked) == 3:
            for name, data in [*status("ready"), block("COMPLETED"), *status("concluded", "null")]:
                server.event(name, **data)
        return [{**info, "current-progress": len(asked)}] if len(asked) < 3 else []

    server.answers["query-jobs"] = query

    async def test() -> None:
        async with await Client.connect(server.client_end) as client:
            seen = [progress.fraction async for progress in client.jobs["j"].watch(interval=0.001)]
            assert seen[:2] == [0.25, 0.5]
            assert seen[-1] == 1.0
            assert (await client.jobs["j"]).status == "null"

    asyncio.run(asyncio.wait_for(test(), 30))


def test_only_so_many_states_are_kept(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    from qobra.client import jobs
    from qobra.client.events import Event

    monkeypatch.setattr(jobs, "MAX_STATES", 3)
    tracker = jobs.JobTracker()
    for n in range(10):
        for name in ("created", "running") if n == 4 else ("created", "null"):
            tracker.observe(Event("JOB_STATUS_CHANGE", {"id": str(n), "status": name}, 0.0))
    assert set(tracker.states) == {"4", "8", "9"}
