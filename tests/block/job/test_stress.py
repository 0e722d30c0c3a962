"""Jobs under stress: guests that write from several threads, pauses, speeds, cancels, errors and graph changes.

Everything follows from the seed but the interleaving of the threads. What must hold is exact all the same: each guest
reads what it wrote, and a backup is of the instant at which it began. Some guests are NBD clients, so that the loops
without the GIL take part.

``make soak RUNS=1000 SEED=7`` makes that many runs of each kind of job, from that seed on; a failure names its seed.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from functools import partial

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.job import backup as backup_module
from qobra.block.job import failures, state
from qobra.block.job.chain import root_node
from qobra.block.job.commit import start_commit
from qobra.block.job.start_backup import start_backup
from qobra.block.job.start_mirror import mirror_plan, start_mirror
from qobra.block.job.stream import start_stream
from qobra.nbd import connect

MIB = 1 << 20
SIZE = 2 * MIB
GUESTS = 3
RUNS = int(os.environ.get("QOBRA_STRESS_RUNS", "2"))
SEED = int(os.environ.get("QOBRA_STRESS_SEED", "0"))


class Remote:
    """An NBD client, in the way of a backend."""

    def __init__(self, path):
        self.client = connect(f"nbd+unix:///drive?socket={path}")

    def read(self, offset, length):
        return self.client.pread(length, offset)

    def write(self, offset, data):
        self.client.pwrite(data, offset)

    def write_zeroes(self, offset, length):
        self.client.zero(length, offset)

    def close(self):
        self.client.close()


class Writers:
    """Threads that write to a drive, each in stripes of its own, and know what they wrote; all but one by NBD."""

    def __init__(self, layer, seed, socket, count=GUESTS):
        self.backend = layer.backends["drive"]
        self.remotes = [Remote(socket) for _ in range(count - 1)]
        self.model = bytearray(self.backend.read(0, SIZE))
        self.failures = []
        self.stopping = False
        self._hold = threading.Condition()
        self._held = False
        self._idle = 0
        self.threads = [
            threading.Thread(target=self._run, args=(random.Random(seed * 10 + n), n)) for n in range(count)
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, rng, number):
        disk = (self.backend, *self.remotes)[number]
        try:
            while not self.stopping:
                with self._hold:
                    self._idle += 1
                    self._hold.notify_all()
                    while self._held:
                        self._hold.wait()
                    self._idle -= 1
                # Stripes of 5000 bytes by turns, so that neighbours share clusters but no bytes.
                stripe = rng.randrange(SIZE // 5000 // GUESTS) * GUESTS + number
                offset = stripe * 5000 + rng.randrange(1000)
                length = rng.randrange(1, 4000)
                kind = rng.random()
                if kind < 0.15:
                    disk.write_zeroes(offset, length)
                    self.model[offset : offset + length] = bytes(length)
                elif kind < 0.7:
                    data = rng.randbytes(length)
                    disk.write(offset, data)
                    self.model[offset : offset + length] = data
                elif disk.read(offset, length) != self.model[offset : offset + length]:
                    raise AssertionError(f"guest {number} read other data at {offset}")
        except BaseException as error:
            self.failures.append(error)
        with self._hold:
            self._idle += 1
            self._hold.notify_all()

    def frozen(self, call):
        """What ``call`` returns, made while no guest is between a write and its model, and the model then."""
        with self._hold:
            self._held = True
            while self._idle < len(self.threads):
                self._hold.wait()
            try:
                return call(), bytes(self.model)
            finally:
                self._held = False
                self._hold.notify_all()

    def stop(self):
        self.stopping = True
        for thread in self.threads:
            thread.join(30)
        for remote in self.remotes:
            remote.close()
        assert not self.failures, self.failures
        assert self.backend.read(0, SIZE) == self.model


def disturb(layer, rng, job, deadline):
    """Pause, resume, change the speed and the graph at random until the job is ready or over."""
    extra = 0
    while time.monotonic() < deadline:
        with layer.control:
            if job.status in ("ready", "standby", "pending", "concluded", "null", "waiting", "aborting"):
                resume(job)
                return
            kind = rng.random()
            if kind < 0.3 and not job.user_paused:
                job.user_pause()
            elif kind < 0.6 and job.user_paused:
                job.user_resume()
            elif kind < 0.8:
                job.set_speed(rng.choice([0, 4 * MIB, 64 * MIB]))
            else:
                extra += 1
                other = layer.add_node({"driver": "null-co", "node-name": f"extra{extra}", "size": MIB})
                backend = BlockBackend(layer)
                backend.insert(other)
                backend.remove()
                layer.delete_node(other.node_name)
        time.sleep(rng.random() * 0.01)
    with layer.control:
        resume(job)
        if job.status == "running":
            job.set_speed(0)


def resume(job):
    # A pause that came too late for a job that was about to end is over with it.
    if job.user_paused and job.status in state.ACCEPTS["resume"]:
        job.user_resume()


def end(layer, job, rng, deadline):
    """Let the job end: complete or cancel one that is ready."""
    while job.status not in ("concluded", "null"):
        assert time.monotonic() < deadline + 60, job
        with layer.control:
            if job.status == "ready" and not job.cancelled and not getattr(job, "_should_complete", False):
                choice = rng.random()
                if choice < 0.6:
                    job.complete()
                else:
                    job.user_cancel(choice < 0.8)
        time.sleep(0.002)


@pytest.fixture
def stage(layer, qcow2, make_guest, tmp_path):
    rng = random.Random(7)
    for name, backing in (("base", None), ("mid", "base"), ("top", "mid")):
        writer = make_guest(qcow2(name, backing, SIZE), "writer")
        writer.random_requests(rng, 10, 200000)
        layer.backends.pop("writer").remove()
    backend = BlockBackend(layer, "drive", perm=permissions.CONSISTENT_READ | permissions.WRITE)
    backend.insert(layer.graph.find("top"))
    layer.backends["drive"] = backend
    with layer.control:
        layer.exports.start_nbd_server({"type": "unix", "path": str(tmp_path / "nbd")})
        layer.exports.add({"type": "nbd", "id": "e", "node-name": "top", "name": "drive", "writable": True})
    return layer


def failing(rng, node, layer):
    """Let a few of the node's writes fail, until it is the guest's disk: then they would be errors of the guest's."""
    original = node._write
    left = iter(range(5))

    def replaced(*args, **kwargs):
        is_target = layer.backends["drive"].node is not node
        if is_target and rng.random() < 0.1 and next(left, None) is not None:
            raise OSError(errno.EIO, "injected")
        return original(*args, **kwargs)

    node._write = replaced


def start_job(layer, kind, rng, qcow2):
    args = {"job-id": "j", "device": "drive", "sync": "full", "speed": rng.choice([0, 8 * MIB]), "auto-dismiss": False}
    if kind in ("backup", "mirror"):
        target = qcow2("target", None, SIZE)
        # Little memory, and errors of the target, would be errors of the guest's writes.
        backup_module.LIMIT = rng.choice([0, 32768, 256 << 20])
        if kind == "mirror" or backup_module.LIMIT > SIZE:
            args["on-target-error"] = "ignore"
            if rng.random() < 0.3:
                failing(random.Random(rng.random()), target, layer)
    with layer.control, layer.drained():
        if kind == "backup":
            args["x-perf"] = {"max-chunk": 65536, "max-workers": rng.choice([1, 4])}
            job = start_backup(layer.jobs, layer.find_device_or_node("drive"), target, args)
        elif kind == "mirror":
            args["copy-mode"] = rng.choice(["background", "write-blocking"])
            args["granularity"] = rng.choice([512, 4096, 65536])
            source = root_node(layer, "drive")
            plan = mirror_plan(layer, source, target, args)
            plan.zero_target = True
            job = start_mirror(layer.jobs, source, target, plan, args)
        elif kind == "commit":
            where = rng.choice([{"top-node": "mid", "base-node": "base"}, {"base-node": "mid"}, {}])
            job = start_commit(layer.jobs, {**args, **where})
        else:
            job = start_stream(layer.jobs, {**args, **rng.choice([{}, {"base-node": "base"}, {"bottom": "mid"}])})
        job.start()
    if kind == "backup":
        with layer.control:
            job.drain_over()
    return job


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(SEED, SEED + RUNS))
@pytest.mark.parametrize("kind", ["backup", "mirror", "commit", "stream"])
def test_jobs_under_stress(stage, qcow2, kind, seed, tmp_path, monkeypatch):
    print(f"kind {kind}, seed {seed}")
    monkeypatch.setattr(failures, "RETRY_NS", 2_000_000)
    monkeypatch.setattr(backup_module, "LIMIT", backup_module.LIMIT)
    rng = random.Random(seed)
    writers = Writers(stage, seed, tmp_path / "nbd")
    job, before = writers.frozen(partial(start_job, stage, kind, rng, qcow2))
    deadline = time.monotonic() + 2
    disturb(stage, rng, job, deadline)
    end(stage, job, rng, deadline)
    time.sleep(0.01)
    writers.stop()
    with stage.control:
        error = job.error
        if job.status == "concluded":
            job.dismiss()
    if kind == "backup":
        assert error is None
        copy = stage.graph.find("target").read(0, SIZE)
        wrong = [start for start in range(0, SIZE, 4096) if copy[start : start + 4096] != before[start : start + 4096]]
        assert not wrong, f"seed {seed}: {wrong}"
    elif not job.force_cancelled:
        assert error is None, error
    with stage.control:
        stage.exports.stop_nbd_server()
    shutil.rmtree(tmp_path, ignore_errors=True)
