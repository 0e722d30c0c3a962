"""Backup: an exact point in time under writes, bitmaps, errors, what is refused, the graph before and after."""

from __future__ import annotations

import errno
import random
import threading

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.bitmap import DirtyBitmap
from qobra.block.copy import chunk
from qobra.block.copy.pool import CopyPool
from qobra.block.job import backup as backup_module
from qobra.block.job import start_backup as start_module
from qobra.block.job.backup import FIRST_SHARE, BackupJob
from qobra.block.job.pace import SHARE
from qobra.block.job.start_backup import start_backup
from qobra.errors import QobraError
from qobra.testing.jobs import RecordingLayer
from qobra.testing.waiting import wait_until

MIB = 1 << 20


@pytest.fixture
def layer():
    made = RecordingLayer()
    yield made
    with made.control:
        made.close()


def raw(layer, path, name, size=MIB, **options):
    if not path.exists():
        with open(path, "wb") as file:
            file.truncate(size)
    return layer.add_node(
        {"driver": "raw", "node-name": name, "file": {"driver": "file", "filename": str(path)}, **options}
    )


@pytest.fixture
def guest(layer, tmp_path):
    node = raw(layer, tmp_path / "source", "source")
    backend = BlockBackend(layer, "drive", perm=permissions.CONSISTENT_READ | permissions.WRITE)
    backend.insert(node)
    layer.backends["drive"] = backend
    rng = random.Random(1)
    backend.write(0, rng.randbytes(MIB))
    return backend


@pytest.fixture
def target(layer, tmp_path):
    return raw(layer, tmp_path / "target", "target")


def backup(layer, source="source", target="target", **args):
    with layer.control, layer.drained():
        nodes = layer.find_device_or_node(source), layer.find_device_or_node(target)
        job = start_backup(layer.jobs, *nodes, {"job-id": "j", "sync": "full", **args})
        job.start()
    return job


def test_a_full_backup_equals_the_source(layer, guest, target, tmp_path):
    before = guest.read(0, MIB)
    backup(layer)
    layer.wait_status("j", "null")
    assert layer.story() == [
        "created", "running", "paused", "running", "waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null",
    ]  # fmt: skip
    assert layer.wait_event("BLOCK_JOB_COMPLETED") == {
        "type": "backup", "device": "j", "len": MIB, "offset": MIB, "speed": 0,
    }  # fmt: skip
    assert (tmp_path / "target").read_bytes() == before
    assert guest.node.node_name == "source" and len(layer.graph.nodes) == 4


@pytest.mark.parametrize("seed", range(6))
def test_the_copy_is_of_the_instant_at_which_it_began(layer, guest, target, tmp_path, seed):
    rng = random.Random(seed)
    before = guest.read(0, MIB)
    job = backup(layer, speed=4 * MIB, **{"x-perf": {"max-chunk": 65536}})
    model = bytearray(before)
    for _ in range(200):
        offset, length = rng.randrange(MIB - 1), rng.randrange(1, 100000)
        length = min(length, MIB - offset)
        if rng.random() < 0.2:
            guest.write_zeroes(offset, length)
            model[offset : offset + length] = bytes(length)
        else:
            data = rng.randbytes(length)
            guest.write(offset, data)
            model[offset : offset + length] = data
        if rng.random() < 0.05:
            with layer.control:
                if not job.user_paused and job.status == "running":
                    job.user_pause()
                elif job.user_paused:
                    job.user_resume()
    with layer.control:
        if job.user_paused:
            job.user_resume()
        if job.status == "running":
            job.set_speed(0)
    layer.wait_status("j", "null")
    assert (tmp_path / "target").read_bytes() == before
    assert guest.read(0, MIB) == model


def test_with_sync_none_only_what_is_overwritten_is_copied(layer, guest, target, tmp_path):
    before = guest.read(0, MIB)
    job = backup(layer, sync="none")
    guest.write(70000, b"new")
    guest.write(MIB - 1, b"x")
    with layer.control:
        job.user_cancel(False)
    layer.wait_status("j", "null")
    copied = (tmp_path / "target").read_bytes()
    assert copied[65536:131072] == before[65536:131072] and copied[-65536:] == before[-65536:]
    assert not any(copied[:65536]) and not any(copied[131072:-65536])
    assert layer.story()[-4:] == ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]


def test_what_is_overwritten_is_copied_also_if_the_job_never_gets_going(layer, guest, target, tmp_path):
    before = guest.read(0, MIB)
    with layer.control, layer.drained():
        nodes = layer.find_device_or_node("source"), layer.find_device_or_node("target")
        job = start_backup(layer.jobs, *nodes, {"job-id": "j", "sync": "none"})
        job.pause()
        job.start()
    guest.write(70000, b"new")
    with layer.control:
        job.user_cancel(False)
    layer.wait_status("j", "null")
    assert (tmp_path / "target").read_bytes()[65536:131072] == before[65536:131072]


@pytest.mark.parametrize("mode", ["on-success", "never", "always"])
def test_bitmap_modes_after_success(layer, guest, target, tmp_path, mode):
    bitmap = DirtyBitmap(guest.node, "b", 65536)
    guest.write(5 * 65536, b"dirty")
    before = guest.read(0, MIB)
    backup(layer, sync="bitmap", bitmap="b", speed=1, **{"bitmap-mode": mode})
    assert bitmap.busy
    guest.write(9 * 65536, b"later")
    with layer.control:
        job = layer.jobs.find("j")
        if job:
            job.set_speed(0)
    layer.wait_status("j", "null")
    copied = (tmp_path / "target").read_bytes()
    assert copied[5 * 65536 : 6 * 65536] == before[5 * 65536 : 6 * 65536]
    assert not any(copied[: 5 * 65536]) and not any(copied[6 * 65536 :])
    left = [offset // 65536 for offset, _length in bitmap.dirty_ranges()]
    assert left == ([5, 9] if mode == "never" else [9])
    assert not bitmap.busy


@pytest.mark.parametrize("mode", ["on-success", "always"])
def test_bitmap_modes_after_cancelling(layer, guest, target, mode):
    bitmap = DirtyBitmap(guest.node, "b", 65536)
    for number in (2, 5, 7):
        guest.write(number * 65536, b"dirty")
    job = backup(layer, sync="bitmap", bitmap="b", speed=65536, **{"bitmap-mode": mode})
    guest.write(7 * 65536, b"again")
    with layer.control:
        copied = 7 * 65536  # copied before the write
        job.user_cancel(True)
    layer.wait_status("j", "null")
    left = [offset // 65536 for offset, _length in bitmap.dirty_ranges()]
    assert copied // 65536 in left
    assert set(left) <= {2, 5, 7}
    if mode == "on-success":
        assert left == [2, 5, 7]


def test_while_it_runs_the_nodes_are_busy_and_the_filter_is_seen(layer, guest, target):
    job = backup(layer, sync="none")
    assert guest.node.driver == "copy-before-write" and not guest.node.implicit
    for name in ("target", "drive"):
        with pytest.raises(QobraError, match="is busy: block device is in use by block job: backup"):
            layer.check_blockers(layer.find_device_or_node(name))
    with layer.control:
        job.user_cancel(True)
    layer.wait_status("j", "null")
    layer.check_blockers(target)


class Failing:
    """Makes chosen writes or reads of a node fail."""

    def __init__(self, monkeypatch, node, method, times, number=errno.EIO):
        self.left = times
        original = getattr(node, method)

        def replaced(*args, **kwargs):
            if self.left:
                self.left -= 1
                raise OSError(number, "injected")
            return original(*args, **kwargs)

        monkeypatch.setattr(node, method, replaced)


@pytest.mark.parametrize("method", ["_read", "_write"])
def test_an_error_is_reported(layer, guest, target, monkeypatch, method):
    node = guest.node.file if method == "_read" else target
    if method == "_read":
        monkeypatch.setattr(chunk, "is_plain_data", lambda run: False)  # or it would be read from the file
    Failing(monkeypatch, node, method, 1)
    backup(layer, **{"x-perf": {"use-copy-range": False}, "auto-dismiss": False})
    layer.wait_status("j", "concluded")
    side = "read" if method == "_read" else "write"
    assert layer.wait_event("BLOCK_JOB_ERROR") == {"device": "j", "operation": side, "action": "report"}
    assert layer.wait_event("BLOCK_JOB_COMPLETED")["error"] == "Input/output error"
    assert layer.jobs.find("j").block_info()["error"] == "Input/output error"


def test_an_error_stops_the_job_until_it_is_resumed(layer, guest, target, monkeypatch, tmp_path):
    before = guest.read(0, MIB)
    Failing(monkeypatch, target, "_write", 1, errno.ENOSPC)
    job = backup(layer, **{"x-perf": {"use-copy-range": False}, "on-target-error": "enospc"})
    layer.wait_event("BLOCK_JOB_ERROR", action="stop")
    deadline = threading.Event()
    while job.status != "paused" and not deadline.wait(0.005):
        pass
    assert job.block_info()["io-status"] == "nospace" and job.block_info()["paused"]
    with layer.control:
        job.user_resume()
    layer.wait_status("j", "null")
    assert "error" not in layer.wait_event("BLOCK_JOB_COMPLETED")
    assert (tmp_path / "target").read_bytes() == before


def test_a_pause_while_the_last_part_is_copied_keeps_the_job(layer, guest, target, monkeypatch, tmp_path):
    before = guest.read(0, MIB)
    slow, waits = Slow(monkeypatch, target), threading.Event()
    original = CopyPool.wait_idle

    def wait_idle(pool):
        waits.set()
        original(pool)

    monkeypatch.setattr(CopyPool, "wait_idle", wait_idle)
    monkeypatch.setattr(start_module, "suggested_helpers", lambda *_args: 4)
    monkeypatch.setattr(backup_module, "is_local", lambda _node: False)
    job = backup(layer, **{"x-perf": {"use-copy-range": False}})
    assert waits.wait(30)
    with layer.control:
        job.drain_over()
        job.user_pause()
    slow.go.set()
    wait_until(lambda: job.status != "running")
    assert job.status == "paused"
    with layer.control:
        job.user_resume()
    layer.wait_status("j", "null")
    assert (tmp_path / "target").read_bytes() == before


def test_an_ignored_error_is_tried_again(layer, guest, target, monkeypatch, tmp_path):
    before = guest.read(0, MIB)
    Failing(monkeypatch, target, "_write", 2)
    backup(layer, **{"x-perf": {"use-copy-range": False}, "on-target-error": "ignore"})
    layer.wait_status("j", "null")
    assert (tmp_path / "target").read_bytes() == before


def test_a_guest_write_fails_if_the_old_data_cannot_be_read(layer, guest, target, monkeypatch):
    job = backup(layer, sync="none", **{"x-perf": {"use-copy-range": False}})
    Failing(monkeypatch, guest.node.file, "_read", 1)
    with pytest.raises(OSError, match="injected"):
        guest.write(0, b"x")
    guest.write(0, b"x")
    with layer.control:
        job.user_cancel(True)


def test_writes_past_the_nodes_keep_the_old_data(layer, guest, target, monkeypatch, tmp_path):
    before = guest.read(0, MIB)
    slow = Slow(monkeypatch, target)
    job = backup(layer, **{"x-perf": {"use-copy-range": False}})
    table = guest.table()
    assert table.writable and table.keepers == (job._once,)
    assert table.keep(3 * 65536, 65537)
    assert job.statistics()["held"] == 65536 + 4096
    if table.places is not None:
        table.fill(0, MIB)
        with guest.new_slot():
            assert table.places.write(5 * 65536 - 10, b"x" * 20)
        assert guest.read(5 * 65536 - 11, 3)[1:] == b"xx"
        assert job.statistics()["held"] == 65536 + 3 * 4096
    job._once.old.limit = 0
    assert not table.keep(6 * 65536, 1)
    job._once.old.limit = 1 << 20
    slow.go.set()
    layer.wait_status("j", "null")
    assert (tmp_path / "target").read_bytes() == before


def test_writes_past_the_nodes_keep_holes_without_waiting_for_a_disk(layer, target, monkeypatch, tmp_path):
    node = raw(layer, tmp_path / "source", "source")  # nothing of it was ever read into memory
    (tmp_path / "target").write_bytes(b"t" * MIB)
    guest = BlockBackend(layer, "drive", perm=permissions.CONSISTENT_READ | permissions.WRITE)
    guest.insert(node)
    slow = Slow(monkeypatch, target)
    job = backup(layer, sync="none")  # where all is copied, this cluster might be before the write
    table = guest.table()
    if table.places is not None:
        table.fill(0, MIB)
        with guest.new_slot():
            assert table.places.write(5 * 65536 + 10, b"x" * 20)
        assert job.statistics()["held"] == 4096
        slow.go.set()
        wait_until(lambda: not job.statistics()["held"])
        assert (tmp_path / "target").read_bytes()[5 * 65536 :][:4096] == bytes(4096)
    with layer.control:
        job.user_cancel(True)
    layer.wait_status("j", "null")


def test_memory_for_old_data_is_got_ready_beside_a_guest(layer, guest, target, monkeypatch, tmp_path):
    begun: list[object] = []
    monkeypatch.setattr(backup_module, "start_thread", lambda work, **_how: begun.append(work))
    slow = Slow(monkeypatch, target)
    job = backup(layer, **{"x-perf": {"use-copy-range": False}})
    job._get_ready()
    assert not begun, "no guest is at work"
    job.carrier.share = 2
    job._get_ready()
    job._get_ready()
    assert begun == [job._once.old.get_ready]
    job.carrier.share = 1
    slow.go.set()
    layer.wait_status("j", "null")


class Slow:
    """The target's writes wait until they are let go."""

    def __init__(self, monkeypatch, node):
        self.go, self.begun = threading.Event(), threading.Event()
        original = node._write

        def replaced(*args, **kwargs):
            self.begun.set()
            assert self.go.wait(30)
            return original(*args, **kwargs)

        monkeypatch.setattr(node, "_write", replaced)


def test_a_write_does_not_wait_for_a_slow_target(layer, guest, target, monkeypatch, tmp_path):
    before = guest.read(0, MIB)
    slow = Slow(monkeypatch, target)
    job = backup(layer, sync="none")
    guest.write(70000, b"new" * 50000)
    guest.write(0, b"x")
    guest.write(0, b"y")  # its old data is held already
    # What is below 0 and from 70000 on, in blocks.
    assert job.statistics() == {"held": (1 + -(-220000 // 4096) - 70000 // 4096) * 4096, "held-limit": 384 << 20}
    slow.go.set()
    wait_until(lambda: not job.statistics()["held"])
    assert (tmp_path / "target").read_bytes()[: 4 * 65536] == before[: 4 * 65536]
    with layer.control:
        job.user_cancel(True)


def test_what_is_held_reaches_the_target_of_a_cancelled_job(layer, guest, target, monkeypatch, tmp_path):
    before = guest.read(0, MIB)
    slow = Slow(monkeypatch, target)
    job = backup(layer, sync="none")
    guest.write(0, b"x" * MIB)
    threading.Timer(0.02, slow.go.set).start()
    with layer.control:
        job.user_cancel(False)
    layer.wait_status("j", "null")
    assert (tmp_path / "target").read_bytes() == before


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_gets_what_writes_kept_while_it_was_made(layer, tmp_path, qcow2, make_guest, seed):
    """The guest writes all over the disk, zeroes and discards too, while each part is about to be written."""
    rng = random.Random(seed)
    source = qcow2("disk")
    writer = make_guest(source)
    writer.random_requests(rng, 20)
    before = bytes(writer.model)
    copy = qcow2("copy")
    original = copy._write

    def slowly(*args, **kwargs):
        writer.random_requests(rng, 3, 30000)
        return original(*args, **kwargs)

    copy._write = slowly
    backup(layer, "drive", "copy", **{"x-perf": {"max-workers": 1, "max-chunk": rng.choice([65536, 1 << 20])}})
    layer.wait_status("j", "null")
    assert copy.read(0, MIB) == before
    writer.check()


def test_what_was_zero_stays_zero_in_the_copy(layer, tmp_path, qcow2, make_guest, monkeypatch):
    writer = make_guest(qcow2("disk"))
    copy = qcow2("copy")
    slow = threading.Event()
    original = copy._write_zeroes
    monkeypatch.setattr(copy, "_write_zeroes", lambda *args: slow.wait(30) and original(*args))
    monkeypatch.setattr(copy, "_write", None)  # nothing but zeroes is written
    job = backup(layer, "drive", "copy", **{"x-perf": {"max-chunk": 65536, "max-workers": 1}})
    writer.write(3 * 65536 + 5, b"new")
    assert job.statistics()["held"] == 0  # to know that it was zero takes no memory
    slow.set()
    layer.wait_status("j", "null")
    assert copy.read(0, MIB) == bytes(MIB)


def test_a_backup_gives_way_unless_its_memory_gets_full_too_soon(layer, guest, target, monkeypatch):
    from qobra.block.job import backup as module

    monkeypatch.setattr(module, "SLACK", 0)
    monkeypatch.setattr(module, "FULL", 1)
    slow = Slow(monkeypatch, target)
    job = backup(layer, **{"x-perf": {"use-copy-range": False, "max-chunk": 65536, "max-workers": 1}})
    job._once.old.limit = 4 * 65536
    shares = []
    for done, offset in ((0.1, 2), (0.1, 3), (0.3, 4), (0.3, 5)):
        guest.write(offset * 65536, b"x" * 65536)
        job.current = int(done * MIB)
        job._adapt_pace()
        shares.append(job.pace.share)
    # A quarter of the memory is used each time, of 4 p (1 - p) that may be.
    assert shares == [int(2 * SHARE * (1 - 0.25 / 0.36)), 1, int(2 * SHARE * (1 - 0.75 / 0.84)), 1]
    job._once.old.limit = 2 * MIB  # more than there is
    job._adapt_pace()
    assert job.pace.share == SHARE
    job._once.missed += 1  # a write had to copy
    job._adapt_pace()
    assert job.pace.share == 1
    slow.go.set()
    layer.wait_status("j", "null")


def test_a_backup_does_not_hurry_for_what_was_kept_before_it_copied(layer, guest, target, monkeypatch):
    from qobra.block.job import backup as module

    monkeypatch.setattr(module, "SLACK", 65536)
    monkeypatch.setattr(module, "FULL", 1)
    slow = Slow(monkeypatch, target)
    job = backup(layer, **{"x-perf": {"use-copy-range": False, "max-chunk": 65536, "max-workers": 1}})
    assert slow.begun.wait(30)
    job._once.old.limit = 4 * 65536
    guest.write(2 * 65536, b"x" * 2 * 65536)
    assert job._share_in_time() == 1
    job._kept_before = 2 * 65536
    assert job._share_in_time() == int(2 * SHARE * (1 - 2 / 3))
    job._kept_before = 3 * 65536
    more = 5 + 2 * 2  # clusters that may be kept of the whole disk since: at the most, all that there is room for
    most = (more - 3) / (2 * more)
    assert (1 - most) * (3 + more * most) == pytest.approx(4)
    guest.write(4 * 65536, b"x" * 65536)
    job.current = int(most * MIB)
    assert job._share_in_time() == int(2 * SHARE * (1 - 3 / 5))
    slow.go.set()
    layer.wait_status("j", "null")


def test_what_is_zero_is_found_soon_beside_a_guest(layer, guest, target, monkeypatch):
    """Till then a guest's writes have most to do, and nothing is copied."""
    shares = []
    monkeypatch.setattr(BackupJob, "_keep_zeroes", lambda job: shares.append(job.pace.share))
    backup(layer)
    layer.wait_status("j", "null")
    assert shares == [FIRST_SHARE]


def test_the_share_is_looked_at_anew_with_each_part(layer, guest, target, monkeypatch):
    monkeypatch.setattr(BackupJob, "_share_in_time", lambda job: 1)
    shares = []
    throttle = BackupJob.throttle
    monkeypatch.setattr(BackupJob, "throttle", lambda job, size: (shares.append(job.pace.share), throttle(job, size)))
    backup(layer, **{"x-perf": {"max-chunk": 65536, "use-copy-range": False}})
    layer.wait_status("j", "null")
    assert shares[-1] == 1


def test_what_is_zero_is_known_before_it_is_written(layer, qcow2, make_guest):
    """So that no write has to look."""
    source, copy = qcow2("source", None, MIB), qcow2("copy", None, MIB)
    writer = make_guest(source, "drive")
    writer.write(2 * 65536, b"data")
    before = source.read(0, MIB)
    job = backup(layer, "drive", "copy", speed=1, **{"x-perf": {"max-chunk": 65536, "max-workers": 1}})
    wait_until(lambda: job._zeroes == MIB - 65536)
    held = [job._once.old.holds(number * 65536, 65536) for number in range(1, 16)]
    assert held == [number != 2 for number in range(1, 16)]
    writer.write(0, bytes([7]) * MIB)
    with layer.control:
        job.set_speed(0)
    layer.wait_status("j", "null")
    assert copy.read(0, MIB) == before


def test_with_its_memory_full_a_write_copies_by_itself(layer, guest, target, monkeypatch, tmp_path):
    before = guest.read(0, MIB)
    slow = Slow(monkeypatch, target)
    job = backup(layer, sync="none", **{"x-perf": {"use-copy-range": False}})
    job._once.old.limit = 4096
    guest.write(0, b"x")
    writer = threading.Thread(target=guest.write, args=(65536, b"x"))
    writer.start()
    writer.join(0.05)
    assert writer.is_alive() and job.statistics()["held"] == 4096
    slow.go.set()
    writer.join(30)
    assert not writer.is_alive()
    wait_until(lambda: not job.statistics()["held"])
    assert (tmp_path / "target").read_bytes()[:131072] == before[:131072]
    with layer.control:
        job.user_cancel(True)


def test_held_data_that_cannot_be_written_is_tried_again(layer, guest, target, monkeypatch, tmp_path):
    before = guest.read(0, MIB)
    job = backup(layer, sync="none", **{"on-target-error": "enospc"})
    Failing(monkeypatch, target, "_write", 1, errno.ENOSPC)
    guest.write(0, b"x")
    layer.wait_event("BLOCK_JOB_ERROR", action="stop")
    with layer.control:
        job.user_resume()
    assert layer.wait_status("j", "running") is None
    deadline = threading.Event()
    while job.statistics()["held"] and not deadline.wait(0.005):
        pass
    assert (tmp_path / "target").read_bytes()[:65536] == before[:65536]
    with layer.control:
        job.user_cancel(True)


def test_held_data_that_is_lost_fails_the_job(layer, guest, target, monkeypatch):
    backup(layer, sync="none", **{"auto-dismiss": False})
    Failing(monkeypatch, target, "_write", 1)
    guest.write(0, b"x")
    layer.wait_status("j", "concluded")
    assert layer.wait_event("BLOCK_JOB_COMPLETED")["error"] == "Input/output error"


REFUSALS = [
    ({"target": "source"}, "Source and target cannot be the same"),
    ({"target": "small"}, "Source and target image have different sizes"),
    ({"sync": "bitmap"}, "must provide a valid bitmap name for 'bitmap' sync mode"),
    ({"bitmap": "x"}, "Bitmap 'x' could not be found"),
    ({"bitmap": "b"}, "Bitmap sync mode must be given when providing a bitmap"),
    ({"bitmap-mode": "always"}, "Cannot specify bitmap sync mode without a bitmap"),
    (
        {"sync": "incremental", "bitmap": "b", "bitmap-mode": "never"},
        "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
    ),
    (
        {"sync": "none", "bitmap": "b", "bitmap-mode": "always"},
        "sync mode 'none' does not produce meaningful bitmap outputs",
    ),
    (
        {"sync": "top", "bitmap": "b", "bitmap-mode": "never"},
        "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode 'top'",
    ),
    ({"compress": True}, "Compression is not supported for this drive "),
    ({"speed": -5}, "Parameter 'speed' expects a non-negative value"),
    ({"job-id": "1"}, "Invalid job ID '1'"),
    ({"x-perf": {"max-workers": 0}}, "max-workers must be between 1 and 2147483647"),
    ({"x-perf": {"max-chunk": -1}}, "max-chunk must be zero (which means no limit) or positive"),
    ({"x-perf": {"max-chunk": 100}}, "Required max-chunk (100) is less than backup cluster size (65536)"),
]


@pytest.mark.parametrize(
    ("state", "text"), [("read_only", "readonly and cannot be modified"), ("inconsistent", "inconsistent")]
)
def test_a_bitmap_that_cannot_be_changed_is_refused(layer, guest, target, state, text):
    bitmap = DirtyBitmap(guest.node, "b", 65536)
    setattr(bitmap, state, True)
    with pytest.raises(QobraError, match=f"Bitmap 'b' is {text}"):
        backup(layer, sync="bitmap", bitmap="b", **{"bitmap-mode": "on-success"})
    assert layer.jobs.all() == [] and not bitmap.busy


@pytest.mark.parametrize(("args", "text"), REFUSALS, ids=[text for _args, text in REFUSALS])
def test_refusals_leave_nothing(layer, guest, target, tmp_path, args, text):
    raw(layer, tmp_path / "small", "small", 65536)
    bitmap = DirtyBitmap(guest.node, "b", 65536)
    before = dict(layer.graph.nodes), layer.graph.state.roots.keys()
    with pytest.raises(QobraError) as error:
        backup(layer, **args)
    assert str(error.value) == text
    assert (layer.graph.nodes, layer.graph.state.roots.keys()) == before
    assert layer.jobs.all() == [] and not bitmap.busy


def test_fleecing_readers_see_the_point_in_time_while_it_is_overwritten(layer, tmp_path, qcow2, make_guest):
    writer = make_guest(qcow2("disk"))
    writer.fill()
    before = bytes(writer.model)
    fleece = qcow2("fleece", "disk")
    job = backup(layer, "drive", "fleece", sync="none")
    reader = BlockBackend(layer)
    reader.insert(fleece)
    wrong = []
    done = threading.Event()

    def read(seed):
        rng = random.Random(seed)
        while not done.is_set():
            offset = rng.randrange(MIB - 20000)
            if reader.read(offset, 20000) != before[offset : offset + 20000]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    rng = random.Random(1)
    for start in range(0, MIB, 16384):
        writer.write(start + rng.randrange(8000), rng.randbytes(8000))
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert reader.read(0, MIB) == before
    reader.remove()
    with layer.control:
        job.user_cancel(True)
    layer.wait_status("j", "null")
    writer.check()


def test_where_copying_is_slow_a_write_waits_for_a_small_part_only(layer, guest, target, monkeypatch):
    from qobra.block.job import backup as module

    monkeypatch.setattr(module, "SLOW_NS", 0)
    monkeypatch.setattr(module, "LIMIT", 0)  # where there is memory a write does not wait at all
    job = backup(layer, **{"x-perf": {"max-chunk": 131072}})
    layer.wait_status("j", "null")
    assert job._claim_size == job._once.cluster
