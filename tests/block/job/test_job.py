"""The state machine of jobs, on jobs that do nothing until they are told."""

from __future__ import annotations

import errno
import threading

import pytest

from qobra.block.job import state
from qobra.block.job.group import JobGroup
from qobra.block.job.job import Job
from qobra.block.throttle import Limits
from qobra.errors import QobraError
from qobra.testing.jobs import RecordingLayer
from qobra.testing.waiting import wait_until


class Waiting(Job):
    """Works until ``go`` is set; fails with ``failure`` then if there is one."""

    kind = "create"
    failure: Exception | None = None
    prepare_failure: QobraError | None = None

    def __init__(self, jobs, job_id, **options):
        self.go = False
        self.steps = []
        super().__init__(jobs, job_id, **options)

    def run(self):
        while not self.go:
            self.park(None)
        if self.failure:
            raise self.failure

    def release(self):
        with self.condition:
            self.go = True
            self.condition.notify_all()

    def prepare(self):
        self.steps.append("prepare")
        if self.prepare_failure:
            raise self.prepare_failure

    def commit(self):
        self.steps.append("commit")

    def abort(self):
        self.steps.append("abort")

    def clean(self):
        self.steps.append("clean")


@pytest.fixture
def layer():
    made = RecordingLayer()
    yield made
    with made.control:
        made.close()


def make(layer, job_id="j", **options):
    with layer.control:
        return Waiting(layer.jobs, job_id, **options)


def start(layer, job):
    with layer.control:
        job.start()


def refused(text, function, *args):
    with pytest.raises(QobraError) as error:
        function(*args)
    assert str(error.value) == text


def test_a_job_that_succeeds(layer):
    job = make(layer)
    start(layer, job)
    job.release()
    layer.wait_status("j", "null")
    assert layer.statuses("j") == ["created", "running", "waiting", "pending", "concluded", "null"]
    assert job.steps == ["prepare", "commit", "clean"]
    assert layer.jobs.all() == []


def test_a_job_that_fails(layer):
    job = make(layer, auto_dismiss=False)
    job.failure = OSError(errno.ENOSPC, "x")
    start(layer, job)
    job.release()
    layer.wait_status("j", "concluded")
    assert layer.statuses("j") == ["created", "running", "aborting", "concluded"]
    assert job.steps == ["abort", "clean"]
    assert job.info()["error"] == "No space left on device"
    with layer.control:
        job.dismiss()
    assert layer.statuses("j")[-1] == "null"


def test_a_last_step_that_fails_aborts(layer):
    job = make(layer, auto_dismiss=False, auto_finalize=False)
    job.prepare_failure = QobraError("no")
    start(layer, job)
    job.release()
    layer.wait_status("j", "pending")
    with layer.control:
        job.finalize()
    assert layer.statuses("j")[-3:] == ["pending", "aborting", "concluded"]
    assert job.info()["error"] == "no"


def test_pause_and_resume(layer):
    job = make(layer)
    start(layer, job)
    with layer.control:
        job.user_pause()
        refused("Job is already paused", job.user_pause)
    layer.wait_status("j", "paused")
    job.release()
    with layer.control:
        job.user_resume()
        refused("Can't resume a job that was not paused", job.user_resume)
    layer.wait_status("j", "null")
    assert layer.statuses("j") == [
        "created", "running", "paused", "running", "waiting", "pending", "concluded", "null",
    ]  # fmt: skip


def test_cancelling_a_paused_job_goes_through_running(layer):
    job = make(layer)
    start(layer, job)
    with layer.control:
        job.user_pause()
    layer.wait_status("j", "paused")
    with layer.control:
        job.user_cancel(False)
    layer.wait_status("j", "null")
    assert layer.statuses("j") == ["created", "running", "paused", "running", "aborting", "concluded", "null"]


def test_cancelling_a_pending_job_aborts_it(layer):
    job = make(layer, auto_finalize=False, auto_dismiss=False)
    start(layer, job)
    job.release()
    layer.wait_status("j", "pending")
    with layer.control:
        job.user_cancel(False)
    assert layer.statuses("j")[-2:] == ["aborting", "concluded"]
    assert job.info()["error"] == "Operation canceled"
    assert job.steps == ["abort", "clean"]


VERBS = {
    "pause": Waiting.user_pause,
    "cancel": lambda job: job.user_cancel(True),
    "complete": Waiting.complete,
    "finalize": Waiting.finalize,
    "dismiss": Waiting.dismiss,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("status", ["created", "running", "waiting", "pending", "concluded"])
def test_each_state_refuses_the_verbs_that_the_table_refuses(layer, verb, status):
    job = make(layer, auto_finalize=False, auto_dismiss=False)
    other = make(layer, "other", group=job.group)
    if status != "created":
        start(layer, other)
        start(layer, job)
    if status in ("waiting", "pending", "concluded"):
        job.release()
        layer.wait_status("j", "waiting")
    if status in ("pending", "concluded"):
        other.release()
        layer.wait_status("j", "pending")
    if status == "concluded":
        with layer.control:
            job.finalize()
    with layer.control:
        assert job.status == status
        if status not in state.ACCEPTS[verb]:
            refused(f"Job 'j' in state '{status}' cannot accept command verb '{verb}'", VERBS[verb], job)
    job.release()
    other.release()


def test_a_group_waits_for_all_and_then_finalizes_newest_first(layer):
    group = JobGroup()
    one, two = make(layer, "one", group=group), make(layer, "two", group=group)
    start(layer, one)
    start(layer, two)
    one.release()
    layer.wait_status("one", "waiting")
    assert layer.statuses("one")[-1] == "waiting"
    two.release()
    layer.wait_status("one", "null")
    tail = [(data["id"], data["status"]) for _name, data in layer.events][5:]
    assert tail == [
        ("two", "waiting"), ("two", "pending"), ("one", "pending"),
        ("two", "concluded"), ("two", "null"), ("one", "concluded"), ("one", "null"),
    ]  # fmt: skip


def test_a_failure_in_a_group_cancels_the_others(layer):
    group = JobGroup()
    one = make(layer, "one", group=group, auto_dismiss=False)
    two = make(layer, "two", group=group, auto_dismiss=False)
    done = make(layer, "done", group=group, auto_dismiss=False)
    for job in (one, two, done):
        start(layer, job)
    done.release()
    layer.wait_status("done", "waiting")
    one.failure = OSError(errno.EIO, "x")
    one.release()
    layer.wait_status("one", "concluded")
    layer.wait_status("two", "concluded")
    layer.wait_status("done", "concluded")
    assert one.info()["error"] == "Input/output error"
    assert two.info()["error"] == done.info()["error"] == "Operation canceled"
    assert "commit" not in one.steps + two.steps + done.steps


def test_ids(layer):
    make(layer)
    with layer.control:
        refused("Job ID 'j' already in use", Waiting, layer.jobs, "j")
        refused("Invalid job ID '1'", Waiting, layer.jobs, "1")
        refused("An explicit job ID is required", Waiting, layer.jobs, None)
        refused("Job not found", layer.jobs.get, "x")
        refused("Block job 'j' not found", layer.jobs.get_block_job, "j")


def test_an_internal_job_is_not_told_of(layer):
    with layer.control:
        job = Waiting(layer.jobs, None, internal=True)
        job.start()
    job.release()
    job.join()
    with layer.control:
        assert job.status == "null"
    assert layer.events == [] and layer.jobs.all() == []


def test_closing_cancels_all(layer):
    jobs = [make(layer, f"j{number}") for number in range(3)]
    for job in jobs[:2]:
        start(layer, job)
    with layer.control:
        jobs[0].user_pause()
        layer.jobs.close()
    assert all(job.status == "null" for job in jobs)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("job j")]


def test_ending_the_layer_does_not_wait_for_a_throttled_job(layer):
    group = layer.throttle_group("slow")
    group.members += 1

    class Reading(Waiting):
        def run(self):
            node.read(0, 1 << 20)  # goes at once, and takes 2**40 seconds to be paid for
            node.read(0, 1 << 20)

    group.set_limits(Limits().updated({"bps-total": 1}))
    null = {"driver": "null-co", "size": 1 << 20}
    node = layer.add_node({"driver": "throttle", "node-name": "t", "throttle-group": "slow", "file": null})
    with layer.control:
        job = Reading(layer.jobs, "j")
    start(layer, job)
    wait_until(lambda: group._turns[0])
    with layer.control:
        layer.close()
    assert not layer.jobs.all() and group.members == 1


def test_a_sleeping_job_that_is_cancelled_ends_between_that_command_and_the_next(layer):
    job = make(layer)
    start(layer, job)
    wait_until(lambda: job._parked)
    with layer.control:
        job.cancel(True)
        assert job.status == state.RUNNING  # the reply goes out here
    with layer.control:
        assert layer.jobs.find("j") is None
