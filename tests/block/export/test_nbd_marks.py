"""Guests that write through the batch loop, in both forms, while dirty bitmaps record and jobs copy: no write is lost.

Everything follows from the seed but how the threads interleave. What must hold is exact all the same: once the guests
rest, a copy that followed the bitmap equals the disk, and so does what a job made.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qobra.block.bitmap import DirtyBitmap
from qobra.block.job.start_backup import start_backup
from qobra.block.job.start_mirror import mirror_plan, start_mirror
from qobra.block.snapshot import create_image
from qobra.testing.waiting import wait_until

KIB = 1 << 10
MIB = 1 << 20
SIZE = 4 * MIB
GUESTS = 3
DEPTH = 16


class Guests:
    """Clients that write to an export, each to a third of its own, and know what they wrote."""

    def __init__(self, exporter: Any, export: str, seed: int, *, fill: bool) -> None:
        self.model = bytearray(SIZE)
        self.failures: list[BaseException] = []
        self.writes = 0
        self._pause = threading.Condition()
        self._paused = self._stopped = False
        self._resting = 0
        self._clients = [exporter.connect(export) for _ in range(GUESTS)]
        if fill:
            self.model[:] = random.Random(seed).randbytes(64 * KIB) * (SIZE // (64 * KIB))
            self._clients[0].pwrite(bytes(self.model), 0)
        self._threads = [threading.Thread(target=self._work, args=(n, seed * GUESTS + n)) for n in range(GUESTS)]
        for thread in self._threads:
            thread.start()

    def _work(self, number: int, seed: int) -> None:
        source = random.Random(seed)
        client = self._clients[number]
        third = SIZE // GUESTS & -4096
        try:
            while self._go_on():
                requests = []
                free = list(range(third // 4096))
                for _ in range(DEPTH):
                    first = source.choice(free)
                    blocks = 1
                    while blocks < 20 and source.random() < 0.2 and first + blocks in free:
                        blocks += 1
                    for block in range(first, first + blocks):
                        free.remove(block)  # requests in flight at the same time have no order
                    offset = number * third + first * 4096 + source.choice((0, 0, 512))
                    data = source.randbytes(512) * (blocks * 8 - (offset % 4096 // 512))
                    self.model[offset : offset + len(data)] = data
                    requests.append(client.aio_pwrite(data, offset))
                for request in requests:
                    request.result(60)
                self.writes += DEPTH
        except BaseException as error:
            self.failures.append(error)
        with self._pause:
            self._resting += 1
            self._pause.notify_all()

    def _go_on(self) -> bool:
        with self._pause:
            if self._paused:
                self._resting += 1
                self._pause.notify_all()
                while self._paused and not self._stopped:
                    self._pause.wait()
                self._resting -= 1
            return not self._stopped

    def rest(self) -> None:
        """Wait until no write is under way; none begins until :meth:`go`."""
        with self._pause:
            self._paused = True
            assert self._pause.wait_for(lambda: self._resting == GUESTS, 60)
        assert not self.failures

    def go(self) -> None:
        with self._pause:
            self._paused = False
            self._pause.notify_all()

    def run_for(self, seconds: float, writes: int = 300) -> None:
        """Let them write for a while, and at least so much."""
        end, wanted = time.monotonic() + seconds, self.writes + writes
        while time.monotonic() < end or self.writes < wanted:
            assert not self.failures and time.monotonic() < end + 60
            time.sleep(0.002)

    def stop(self) -> None:
        with self._pause:
            self._stopped = True
            self._pause.notify_all()
        for thread in self._threads:
            thread.join(60)
        assert not self.failures


def add_image(exporter: Any, name: str) -> Any:
    path = str(exporter.tmp_path / f"{name}.qcow2")
    with exporter.layer.control:
        create_image(exporter.layer, path, "qcow2", SIZE, None)
    return exporter.add({"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": path}})


@pytest.fixture(params=["clusters", "linear"])
def disk(request: pytest.FixtureRequest, exporter: Any) -> Any:
    """The node ``disk``: an image that allocates as it is written, or a file in one piece."""
    if request.param == "linear":
        return exporter.file("disk", bytes(SIZE))
    return add_image(exporter, "disk")


@pytest.fixture
def make_guests(exporter: Any) -> Iterator[Callable[..., Guests]]:
    made: list[Guests] = []

    def make(seed: int, *, fill: bool = True) -> Guests:
        made.append(Guests(exporter, "disk", seed, fill=fill))
        return made[-1]

    yield make
    for guests in made:
        guests.stop()


def follow(disk: Any, bitmap: DirtyBitmap, copy: bytearray) -> None:
    """What a job does, as often as it can: clear the marks, then read what was marked."""
    for offset in range(0, SIZE, 512 * KIB):
        for start, length in list(bitmap.dirty_ranges(offset, offset + 512 * KIB)):
            bitmap.clear(start, length)
            disk.read_into(start, memoryview(copy)[start : start + length])


def copy_beside(exporter: Any, disk: Any, guests: Guests, granularity: int, seconds: float) -> bytearray:
    """A copy of the disk that was kept up by a bitmap while the guests wrote; they rest now."""
    with exporter.layer.drained():  # writes that began before would not be marked
        bitmap = DirtyBitmap(disk, None, granularity)
    copy = bytearray(disk.read(0, SIZE))
    end, wanted = time.monotonic() + seconds, guests.writes + 600
    other = None
    while time.monotonic() < end or guests.writes < wanted:
        assert not guests.failures and time.monotonic() < end + 60
        follow(disk, bitmap, copy)
        # A generation of the flat tables with one more bitmap, and one without.
        if other is None:
            other = DirtyBitmap(disk, "other", 4096)
        else:
            other.remove()
            other = None
    guests.rest()
    follow(disk, bitmap, copy)
    bitmap.remove()
    if other is not None:
        other.remove()
    return copy


@pytest.mark.soak
@pytest.mark.parametrize("granularity", [512, 64 * KIB])
def test_a_copy_that_follows_a_bitmap_is_the_disk(
    exporter: Any, disk: Any, make_guests: Any, granularity: int, soak_scale: int
) -> None:
    exporter.export("disk")
    for seed in range(soak_scale):
        guests = make_guests(seed, fill=seed > 0)
        copy = copy_beside(exporter, disk, guests, granularity, 0.2)
        assert copy == guests.model == disk.read(0, SIZE), f"seed {seed}"
        guests.stop()


def test_a_mark_that_gets_lost_is_noticed(
    exporter: Any, disk: Any, make_guests: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above is one that fails: here, three marks in four are forgotten, or three looks at marks in four."""
    exporter.export("disk")
    source = random.Random(1)
    real = DirtyBitmap._take_marks

    def take(self: DirtyBitmap) -> None:
        for marks in self._marked:
            if marks.waiting and source.randrange(4):
                marks.take()
        real(self)

    def mark(self: DirtyBitmap, offset: int, length: int) -> None:
        if not source.randrange(4):
            self.set(offset, length)

    monkeypatch.setattr(DirtyBitmap, "_take_marks", take)
    monkeypatch.setattr(DirtyBitmap, "mark", mark)
    guests = make_guests(1)
    copy = copy_beside(exporter, disk, guests, 4096, 0.2)
    assert copy != guests.model == disk.read(0, SIZE)


def wait_for(job: Any, *statuses: str) -> None:
    wait_until(lambda: job.status in statuses, 60)


def finish(exporter: Any, job: Any) -> None:
    """The job ended well; forget it."""
    wait_for(job, "concluded")
    with exporter.layer.control:
        assert job.error is None
        job.dismiss()


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["background", "write-blocking"])
def test_a_mirror_of_a_disk_that_is_written_to_is_that_disk(
    exporter: Any, disk: Any, make_guests: Any, mode: str, soak_scale: int
) -> None:
    layer = exporter.layer
    exporter.export("disk")
    for seed in range(soak_scale):
        guests = make_guests(seed)
        bitmap = DirtyBitmap(disk, "b", 4096) if seed % 2 else None
        target = add_image(exporter, f"target{seed}")
        args = {"job-id": "j", "sync": "full", "copy-mode": mode, "granularity": (512, 4096, 65536)[seed % 3]}
        args["auto-dismiss"] = False
        with layer.control:
            source = layer.graph.find("disk")
            job = start_mirror(layer.jobs, source, target, mirror_plan(layer, source, target, args), args)
            job.start()
        guests.run_for(0.15)
        guests.rest()  # else they may well write faster than is copied
        wait_for(job, "ready")
        guests.go()
        guests.run_for(0.05)
        with layer.control:
            job.user_cancel(False)  # the target stays as it is, of the moment at which the job ended
        finish(exporter, job)
        guests.rest()
        # What was written since is in the disk only, so let it be mirrored once more, with nobody writing at its end.
        with layer.control:
            source = layer.graph.find("disk")
            job = start_mirror(layer.jobs, source, target, mirror_plan(layer, source, target, args), args)
            job.start()
        guests.go()
        guests.run_for(0.1)
        guests.rest()
        wait_for(job, "ready")
        with layer.control:
            job.user_cancel(False)
        finish(exporter, job)
        assert target.read(0, SIZE) == guests.model == disk.read(0, SIZE), f"seed {seed}"
        if bitmap is not None:
            bitmap.remove()
        with layer.control:
            layer.delete_node(target.node_name)
        guests.stop()


@pytest.mark.soak
def test_backups_of_a_disk_that_is_written_to_are_of_their_moments(
    exporter: Any, disk: Any, make_guests: Any, soak_scale: int
) -> None:
    """A full one, and then incremental ones into the same target by a bitmap that recorded all the time."""
    layer = exporter.layer
    exporter.export("disk")
    for seed in range(soak_scale):
        guests = make_guests(seed)
        target = add_image(exporter, f"target{seed}")
        bitmap = None
        for _ in range(4):
            guests.rest()
            before = bytes(guests.model)
            args: dict[str, Any] = {"job-id": "j", "sync": "full", "auto-dismiss": False}
            if bitmap is not None:
                args |= {"sync": "bitmap", "bitmap": "b", "bitmap-mode": "on-success"}
            with layer.control, layer.drained():
                job = start_backup(layer.jobs, layer.graph.find("disk"), target, args)
                job.start()
                if bitmap is None:
                    bitmap = DirtyBitmap(disk, "b", 64 * KIB)
            with layer.control:
                job.drain_over()
            guests.go()
            guests.run_for(0.05, 100)
            finish(exporter, job)
            assert target.read(0, SIZE) == before, f"seed {seed}"
        assert bitmap is not None
        bitmap.remove()
        with layer.control:
            layer.delete_node(target.node_name)
        guests.stop()
