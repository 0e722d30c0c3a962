"""Mirror: in step under writes in both copy modes, taking the source's place, cancelling, errors, refusals."""

from __future__ import annotations

import errno
import random
import threading

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.copy.chunk import CopyFailed
from qobra.block.copy.follow import PIECE, can_follow
from qobra.block.job.chain import root_node
from qobra.block.job.start_mirror import mirror_plan, start_mirror
from qobra.errors import QobraError
from qobra.testing.images import ImageLab
from qobra.testing.waiting import wait_until

MIB = 1 << 20


def mirror(layer, device="drive", target="target", **args):
    args = {"job-id": "m", "sync": "full", **args}
    with layer.control, layer.drained():
        source = root_node(layer, device)
        node = layer.find_device_or_node(target)
        plan = mirror_plan(layer, source, node, args)
        plan.zero_target = plan.sync == "full"
        job = start_mirror(layer.jobs, source, node, plan, args)
        job.start()
    return job


@pytest.fixture
def guest(raw, make_guest):
    made = make_guest(raw("source"))
    made.fill()
    return made


@pytest.mark.parametrize("mode", ["background", "write-blocking"])
@pytest.mark.parametrize("seed", range(4))
def test_completing_puts_the_target_in_the_place_of_the_source(layer, guest, raw, tmp_path, mode, seed):
    target = raw("target")
    rng = random.Random(seed)
    job = mirror(layer, speed=8 * MIB, **{"copy-mode": mode})
    guest.random_requests(rng, 60)
    with layer.control:
        job.set_speed(0)
    layer.wait_event("BLOCK_JOB_READY")
    guest.random_requests(rng, 60)
    with layer.control:
        job.complete()
    guest.random_requests(rng, 10)
    layer.wait_status("m", "null")
    assert guest.node is target
    guest.random_requests(rng, 10)
    guest.check()
    assert (tmp_path / "target").read_bytes() == guest.model
    assert layer.story() == [
        "created", "running", "ready", "BLOCK_JOB_READY", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded",
        "null",
    ]  # fmt: skip


def test_in_write_blocking_mode_a_job_that_is_ready_stays_in_step(layer, guest, raw, tmp_path):
    raw("target")
    job = mirror(layer, **{"copy-mode": "write-blocking"})
    layer.wait_event("BLOCK_JOB_READY")
    guest.random_requests(random.Random(1), 50)
    assert (tmp_path / "target").read_bytes() == guest.model
    before = job.block_info()
    guest.write(5, b"last")
    guest.backend.node.discard(0, 512)
    after = job.block_info()
    assert (after["offset"] - before["offset"], after["len"] - before["len"]) == (4, 4)
    with layer.control:
        job.user_cancel(True)


def test_a_soft_cancel_leaves_a_copy_and_the_guest_where_it_was(layer, guest, raw, tmp_path):
    raw("target")
    job = mirror(layer)
    layer.wait_event("BLOCK_JOB_READY")
    source = guest.backend.node.below
    guest.write(5, b"last")
    with layer.control:
        job.user_cancel(False)
    layer.wait_status("m", "null")
    assert guest.node is source
    assert (tmp_path / "target").read_bytes() == guest.model
    assert layer.story()[-5:] == ["waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"]


@pytest.mark.parametrize("ready", [False, True])
def test_a_hard_cancel(layer, guest, raw, ready, monkeypatch):
    # Small chunks, so that the speed limit holds a job back before it is ready.
    monkeypatch.setattr("qobra.block.job.mirror.CHUNK_SIZE", 65536)
    raw("target")
    job = mirror(layer, speed=0 if ready else 1)
    if ready:
        layer.wait_event("BLOCK_JOB_READY")
    source = guest.backend.node.below
    with layer.control:
        job.user_cancel(ready)
    layer.wait_status("m", "null")
    assert guest.node is source
    assert layer.story()[-4:] == ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]
    assert not source.trackers


def test_standby_and_completing_after_it(layer, guest, raw):
    raw("target")
    job = mirror(layer)
    layer.wait_event("BLOCK_JOB_READY")
    with layer.control:
        job.user_pause()
    layer.wait_status("m", "standby")
    with layer.control:
        with pytest.raises(QobraError, match="The active block job 'm' cannot be completed"):
            job.complete()
        job.user_resume()
        job.complete()
    layer.wait_status("m", "null")
    assert layer.statuses("m") == [
        "created", "running", "ready", "standby", "ready", "waiting", "pending", "concluded", "null",
    ]  # fmt: skip


def test_an_error_is_reported(layer, guest, raw, fail):
    fail(raw("target"), "_write", 1)
    guest.backend.node.file.cache_direct = True  # no copying in the kernel
    mirror(layer, **{"auto-dismiss": False})
    layer.wait_status("m", "concluded")
    assert layer.wait_event("BLOCK_JOB_ERROR")["operation"] == "write"
    assert layer.wait_event("BLOCK_JOB_COMPLETED")["error"] == "Input/output error"
    assert guest.node.node_name == "source"


def test_in_write_blocking_mode_a_target_that_fails_does_not_fail_the_guest(layer, guest, raw, fail, tmp_path):
    target = raw("target")
    job = mirror(layer, **{"copy-mode": "write-blocking", "on-target-error": "ignore"})
    layer.wait_event("BLOCK_JOB_READY")
    fail(target, "_write", 1)
    guest.write(100, b"hello")
    with layer.control:
        job.complete()
    layer.wait_status("m", "null")
    assert (tmp_path / "target").read_bytes() == guest.model


REFUSALS = [
    ({"target": "drive"}, "Can't mirror node into itself"),
    ({"sync": "incremental"}, "Sync mode 'incremental' not supported"),
    ({"sync": "bitmap"}, "Sync mode 'bitmap' not supported"),
    ({"granularity": 100}, "Parameter 'granularity' expects a value in range [512B, 64MB]"),
    ({"granularity": 1000}, "Parameter 'granularity' expects a power of 2"),
    ({"buf-size": -1}, "Invalid parameter 'buf-size'"),
    ({"replaces": "x"}, "Failed to find node with node-name='x'"),
    (
        {"replaces": "target"},
        "Cannot replace 'target' by a node mirrored from 'source', because it cannot be guaranteed that doing so would "
        "not lead to an abrupt change of visible data",
    ),
    ({"speed": -1}, "Parameter 'speed' expects a non-negative value"),
    ({"job-id": "1"}, "Invalid job ID '1'"),
]


@pytest.mark.parametrize(("args", "text"), REFUSALS, ids=[text for _args, text in REFUSALS])
def test_refusals_leave_nothing(layer, guest, raw, args, text):
    raw("target")
    before = dict(layer.graph.nodes), layer.graph.state.roots.keys()
    with pytest.raises(QobraError) as error:
        mirror(layer, **args)
    assert str(error.value) == text
    assert (layer.graph.nodes, layer.graph.state.roots.keys()) == before
    assert guest.node.node_name == "source"


def test_different_sizes_are_the_jobs_error(layer, guest, raw):
    raw("target", 65536)
    mirror(layer, **{"auto-dismiss": False})
    layer.wait_status("m", "concluded")
    error = "Source and target image have different sizes"
    assert layer.wait_event("BLOCK_JOB_COMPLETED")["error"] == error


def test_only_a_root_is_mirrored(layer, guest, raw):
    raw("target")
    job = mirror(layer, speed=1)
    with pytest.raises(QobraError, match="Need a root block node"):
        mirror(layer, "source", **{"job-id": "n"})
    with layer.control:
        job.user_cancel(True)


def test_a_job_that_says_it_is_paused_has_nothing_in_flight(layer, guest, raw, monkeypatch):
    target = raw("target")
    inside, go = threading.Event(), threading.Event()
    write = target._write

    def slow(offset, data):
        inside.set()
        go.wait(30)
        write(offset, data)

    monkeypatch.setattr(target, "_write", slow)
    monkeypatch.setattr(target, "plain_writes", lambda: False)
    job = mirror(layer)
    inside.wait(30)
    with layer.control:
        job.user_pause()
        assert job.block_info()["busy"]
    go.set()
    layer.wait_status("m", "standby")
    with layer.control:
        assert not job.block_info()["busy"]
        assert job.pool.in_flight == 0
        job.user_cancel(True)


def test_a_child_of_a_quorum_is_replaced_only_while_nobody_else_reads_it(layer, raw, make_guest, capsys):
    for name in ("one", "two", "target", "other"):
        raw(name)
    options = {"driver": "quorum", "node-name": "q", "children": ["one", "two"], "vote-threshold": 1}
    made = make_guest(layer.add_node(options))
    reader = BlockBackend(layer, perm=permissions.CONSISTENT_READ)
    reader.insert(layer.graph.find("one"))
    with pytest.raises(QobraError, match="abrupt change of visible data"):
        mirror(layer, replaces="one")
    reader.remove()
    job = mirror(layer, replaces="one")
    layer.wait_event("BLOCK_JOB_READY")
    reader.insert(layer.graph.find("one"))
    with layer.control:
        job.complete()
    assert layer.wait_event("BLOCK_JOB_COMPLETED")["error"] == "Operation not permitted"
    layer.wait_status("m", "null")
    assert "Can no longer replace 'one' by 'target'" in capsys.readouterr().err
    assert made.node.children["children.0"] is layer.graph.find("one")
    reader.remove()


def test_what_the_guest_adds_is_told_before_it_is_copied(layer, guest, raw, monkeypatch):
    target = raw("target")
    job = mirror(layer, sync="none", **{"buf-size": 65536})
    layer.wait_event("BLOCK_JOB_READY")
    inside, go = threading.Event(), threading.Event()
    write = target._write

    def slow(offset, data):
        inside.set()
        go.wait(30)
        write(offset, data)

    monkeypatch.setattr(target, "_write", slow)
    monkeypatch.setattr(target, "plain_writes", lambda: False)
    layer.changed()
    for offset in range(0, MIB, 2 * 65536):
        guest.write(offset, b"new" * 100)
    inside.wait(30)
    info = job.block_info()
    assert (info["len"], info["offset"]) == (8 * (PIECE if can_follow() else 65536), 0)
    go.set()
    with layer.control:
        job.user_cancel(True)


def test_the_speed_limit_holds_between_runs_of_a_buffer(layer, guest, raw):
    guest.fill()
    raw("target")
    job = mirror(layer, speed=65536)
    wait_until(lambda: job.block_info()["offset"] >= MIB)
    assert not job.ready
    with layer.control:
        job.user_cancel(True)


def test_a_ready_job_that_the_end_of_the_program_meets_pauses_once_more(layer, guest, raw):
    raw("target")
    mirror(layer)
    layer.wait_event("BLOCK_JOB_READY")
    with layer.control:
        layer.jobs.close()
    assert layer.story()[-6:] == ["standby", "ready", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]


def test_a_target_that_cannot_be_flushed_keeps_a_job_from_ending(layer, guest, raw, monkeypatch):
    target = raw("target")
    job = mirror(layer, **{"on-target-error": "stop"})
    layer.wait_event("BLOCK_JOB_READY")
    flush = target.flush

    def fail():
        monkeypatch.setattr(target, "flush", flush)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(target, "flush", fail)
    with layer.control:
        job.cancel(force=False)
    layer.wait_event("BLOCK_JOB_ERROR")
    layer.wait_status("m", "standby")
    with layer.control:
        job.user_resume()
    layer.wait_status("m", "null")
    guest.check()


def test_a_mirror_gets_ready_and_completes_beside_a_guest_that_never_rests(layer, guest, raw, tmp_path):
    target = raw("target")
    over = threading.Event()

    def work():
        rng = random.Random(5)
        while not over.is_set():
            guest.random_requests(rng, 1, 5000)

    writer = threading.Thread(target=work)
    writer.start()
    try:
        job = mirror(layer)
        layer.wait_event("BLOCK_JOB_READY")
        with layer.control:
            job.complete()
        layer.wait_status("m", "null")
    finally:
        over.set()
        writer.join()
    assert guest.node is target
    guest.check()


@pytest.mark.skipif(not can_follow(), reason="the compiled form is not built")
@pytest.mark.parametrize(("cluster", "leaves_long"), [(4096, False), (65536, True)])
def test_what_is_written_to_small_clusters_is_copied_in_pieces_from_the_second_pass_on(
    layer, guest, tmp_path, cluster, leaves_long
):
    path = ImageLab(tmp_path).create("t", size=MIB, cluster_size=cluster)
    layer.add_node({"driver": "qcow2", "node-name": "target", "file": {"driver": "file", "filename": path}})
    job = mirror(layer)
    layer.wait_event("BLOCK_JOB_READY")
    assert job._follower.leaves_long == leaves_long
    guest.random_requests(random.Random(1), 50, 200000)
    with layer.control:
        job.complete()
    layer.wait_status("m", "null")
    guest.check()


def write_past_nodes(guest, offset, data):
    """As a loop without the GIL does it."""
    with guest.backend.new_slot():
        table = guest.backend.table()
        table.look(offset, len(data))
        assert table.places.write(offset, data)
    guest.model[offset : offset + len(data)] = data


def wait_until_led(layer, guest, job):
    """Until a guest that is at work is to keep the target in step, which it is."""
    in_step = job._dirty.in_step

    def is_led():
        guest.write(0, guest.model[:512])
        return in_step.target is not None and in_step.target.generation == layer.generation

    wait_until(is_led)
    wait_until(lambda: job._dirty.count() == 0)


@pytest.mark.skipif(not can_follow(), reason="the compiled form is not built")
def test_what_is_in_step_is_written_by_the_guest(layer, guest, raw):
    target = raw("target")
    job = mirror(layer)
    layer.wait_event("BLOCK_JOB_READY")
    wait_until_led(layer, guest, job)
    write_past_nodes(guest, 70000, b"both" * 1000)
    assert target.read(70000, 4000) == b"both" * 1000 and job._dirty.count() == 0
    guest.backend.write_zeroes(65536, 65536)
    guest.model[65536:131072] = bytes(65536)
    write_past_nodes(guest, 70000, b"more" * 100)
    with layer.control:
        job.complete()
    layer.wait_status("m", "null")
    guest.check()


@pytest.mark.skipif(not can_follow(), reason="the compiled form is not built")
@pytest.mark.parametrize("held", ["pause", "speed"])
def test_nobody_writes_the_target_of_a_job_that_is_held_back(layer, guest, raw, held):
    target = raw("target")
    job = mirror(layer)
    layer.wait_event("BLOCK_JOB_READY")
    wait_until_led(layer, guest, job)
    with layer.control:
        if held == "pause":
            job.user_pause()
        else:
            job.set_speed(1)
    wait_until(lambda: job._dirty.in_step.target is None)
    before = target.read(0, 4096)
    write_past_nodes(guest, 0, b"held" * 1024)
    if held == "pause":
        assert target.read(0, 4096) == before and job._dirty.is_dirty(0)
        with layer.control:
            job.user_resume()
    else:
        with layer.control:
            job.set_speed(0)
    wait_until_led(layer, guest, job)
    with layer.control:
        job.complete()
    layer.wait_status("m", "null")
    guest.check()


def test_pieces_are_no_larger_than_the_buffer(layer, guest, raw):
    guest.fill()
    raw("target")
    job = mirror(layer, speed=65536, **{"buf-size": 131072, "granularity": 65536})
    wait_until(lambda: job.current)
    assert 0 < job.current < MIB and job.current % 131072 == 0
    with layer.control:
        job.user_cancel(True)


@pytest.mark.parametrize("size", [1, 4096, 65536])
def test_a_buffer_smaller_than_what_is_scattered(layer, guest, raw, size):
    """A run that is long is copied buffer by buffer, and is not taken for one that is short."""
    guest.fill()
    raw("target")
    mirror(layer, **{"buf-size": size})
    layer.wait_event("BLOCK_JOB_READY")


def test_the_target_becomes_read_only_in_the_place_of_a_source_that_is(layer, raw, make_guest):
    source = raw("source")
    source.write(0, b"kept")
    layer.delete_node("source")
    raw("source", **{"read-only": True})
    target = raw("target")
    job = mirror(layer, "source", **{"filter-node-name": "filter"})
    layer.wait_event("BLOCK_JOB_READY")
    assert layer.graph.find("filter").filename == layer.graph.find("source").filename
    with layer.control:
        job.complete()
    layer.wait_status("m", "null")
    assert "error" not in layer.wait_event("BLOCK_JOB_COMPLETED")
    assert target.read_only and target.read(0, 4) == b"kept"


def test_the_filter_of_a_mirror_has_the_name_of_what_it_shows(layer, raw, make_guest):
    raw("target")
    raw("window", offset=512, size=4096)
    raw("other", 4096)
    with layer.control:
        mirror(layer, "window", "other", sync="none", **{"filter-node-name": "filter"})
        name = layer.graph.find("filter").filename
    assert name.startswith("json:") and name == layer.graph.find("window").filename


@pytest.mark.parametrize("policy", ["ignore", "report"])
def test_an_error_in_the_last_bit_is_ignored_if_errors_are(layer, guest, raw, monkeypatch, policy):
    raw("target")
    job = mirror(layer, **{"on-target-error": policy})
    layer.wait_event("BLOCK_JOB_READY")
    copy_rest, copy = job._copy_rest, job._copier.copy
    failures = iter([CopyFailed(OSError(errno.EIO, "Input/output error"), False)])

    def failing(*args, **kwargs):
        for failure in failures:
            raise failure
        return copy(*args, **kwargs)

    def rest():
        job._follower = None
        job._dirty.set(0, 65536)
        monkeypatch.setattr(job._copier, "copy", failing)
        copy_rest()

    monkeypatch.setattr(job, "_copy_rest", rest)
    with layer.control:
        job.user_cancel(False)
    layer.wait_status("m", "null")
    assert (job.error is None) == (policy == "ignore")
