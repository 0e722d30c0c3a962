"""Jobs under stress: guests that write from several threads, pauses, speeds, cancels, errors and graph changes.

Everything follows from the seed but the interleaving of the threads. What must hold is exact all the same: each guest
reads what it wrote, and a backup is of the instant at which it began.
"""

from __future__ import annotations

import random
import threading
import time
from functools import partial

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.job import state
from qobra.block.job.backup import start_backup
from qobra.block.job.chain import root_node
from qobra.block.job.commit import start_commit
from qobra.block.job.start_mirror import mirror_plan, start_mirror
from qobra.block.job.stream import start_stream

MIB = 1 << 20
SIZE = 2 * MIB
GUESTS = 3


class Writers:
    """Threads that write to a drive, each in stripes of its own, and know what they wrote."""

    def __init__(self, layer, seed, count=GUESTS):
        self.backend = layer.backends["drive"]
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
                    self.backend.write_zeroes(offset, length)
                    self.model[offset : offset + length] = bytes(length)
                elif kind < 0.7:
                    data = rng.randbytes(length)
                    self.backend.write(offset, data)
                    self.model[offset : offset + length] = data
                elif self.backend.read(offset, length) != self.model[offset : offset + length]:
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
def stage(layer, qcow2, make_guest):
    rng = random.Random(7)
    for name, backing in (("base", None), ("mid", "base"), ("top", "mid")):
        writer = make_guest(qcow2(name, backing, SIZE), "writer")
        writer.random_requests(rng, 10, 200000)
        layer.backends.pop("writer").remove()
    backend = BlockBackend(layer, "drive", perm=permissions.CONSISTENT_READ | permissions.WRITE)
    backend.insert(layer.graph.find("top"))
    layer.backends["drive"] = backend
    return layer


def start_job(layer, kind, rng, qcow2, run):
    args = {"job-id": "j", "device": "drive", "sync": "full", "speed": rng.choice([0, 8 * MIB]), "auto-dismiss": False}
    if kind in ("backup", "mirror"):
        target = qcow2(f"target{run}", None, SIZE)
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
@pytest.mark.parametrize("kind", ["backup", "mirror", "commit", "stream"])
def test_jobs_under_stress(stage, qcow2, kind, soak_scale, tmp_path):
    for seed in range(2 * soak_scale):
        if seed and kind in ("commit", "stream") and len(list(chain_names(stage))) < 3:
            break  # the chain is used up
        print(f"seed {seed}")
        rng = random.Random(seed)
        writers = Writers(stage, seed)
        job, before = writers.frozen(partial(start_job, stage, kind, rng, qcow2, seed))
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
            copy = stage.graph.find(f"target{seed}")
            assert copy.read(0, SIZE) == before, f"seed {seed}"
            stage.delete_node(copy.node_name)
        elif not job.force_cancelled:
            assert error is None, error


def chain_names(layer):
    node = layer.backends["drive"].node
    while node is not None:
        yield node.node_name
        node = node.backing
