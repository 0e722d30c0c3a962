"""Clusters that loops without the GIL allocate by themselves."""

from __future__ import annotations

import os
import random
import threading
from typing import Any

import pytest

from qobra.block.table import ResolvedTable
from qobra.native import compiled

pytestmark = pytest.mark.skipif(compiled("reserve") is None, reason="there are no compiled forms")

CLUSTER = 65536
SIZE = 64 << 20


class Loop:
    """What a loop without the GIL does: writes by the flat table where that can be, else by the node."""

    def __init__(self, disk: Any) -> None:
        self.disk = disk
        self.alone = 0
        """Writes that went past the node."""

    def write(self, offset: int, data: bytes) -> bool:
        """Write; whether it went past the node."""
        table = self.disk.backend.table()
        if table.places.write(offset, data):
            self.alone += 1
            return True
        table.fill(offset, len(data))
        self.disk.write(offset, data)
        return False


@pytest.fixture
def disk(lab):
    lab.create("a", size=SIZE)
    with lab.open("a", discard="unmap") as disk:
        loop = Loop(disk)
        loop.disk.backend.table().fill(0, SIZE)
        loop.write(0, b"first")
        yield disk


def used(disk: Any) -> int:
    """How many clusters of the file have a count."""
    image = disk.node.image
    return sum(image.refcounts.get(cluster) for cluster in range(image.last_used_cluster() + 1))


def check(disk: Any) -> None:
    """See that nothing is wrong with the image, and that no cluster is counted that is not used."""
    disk.backend.flush()
    result = disk.node.check()
    assert not result.get("corruptions") and not result.get("leaks") and not result["check-errors"], result


def test_writes_to_new_clusters_go_past_the_node(disk: Any) -> None:
    loop = Loop(disk)
    assert loop.write(CLUSTER + 512, b"\1" * 512)
    assert loop.write(3 * CLUSTER - 512, b"\2" * (2 * CLUSTER))
    assert disk.read(0, 5) == b"first"
    expected = bytes(512) + b"\1" * 512 + bytes(2 * CLUSTER - 512 - 1024) + b"\2" * (2 * CLUSTER)
    assert disk.read(CLUSTER, len(expected)) == expected
    check(disk)


def test_what_was_not_taken_is_not_counted_after_a_flush(disk: Any) -> None:
    before = used(disk)
    assert before > 60
    check(disk)
    assert used(disk) < 10


def test_the_first_write_after_a_flush_is_the_drivers(disk: Any) -> None:
    loop = Loop(disk)
    disk.backend.flush()
    assert [loop.write(number * CLUSTER, b"x") for number in range(1, 4)] == [False, True, True]
    check(disk)


def test_clusters_follow_each_other_whoever_takes_them(lab: Any, disk: Any) -> None:
    loop = Loop(disk)
    for number in range(1, 200):
        loop.write(number * CLUSTER, number.to_bytes(2, "big") * 100)
        if number % 50 == 0:
            disk.backend.flush()
    assert loop.alone > 180
    check(disk)
    assert used(disk) == 200 + 5  # header, L1, refcount table and block, L2
    disk.close()
    assert os.path.getsize(lab.path("a")) == (200 + 5) * CLUSTER
    with lab.open("a", read_only=True) as again:
        for number in range(1, 200):
            assert again.read(number * CLUSTER, 200) == number.to_bytes(2, "big") * 100


def test_free_clusters_further_down_are_used_first(disk: Any) -> None:
    loop = Loop(disk)
    for number in range(1, 64):
        loop.write(number * CLUSTER, b"x" * CLUSTER)
    disk.backend.flush()
    disk.backend.discard(10 * CLUSTER, 20 * CLUSTER)
    disk.backend.flush()
    disk.backend.flush()
    end = disk.node.image.last_used_cluster()
    assert not any(loop.write((100 + number) * CLUSTER, b"y" * CLUSTER) for number in range(19))
    assert disk.node.image.last_used_cluster() == end
    assert [loop.write((200 + number) * CLUSTER, b"z") for number in range(2)] == [False, True]
    check(disk)


def test_the_writes_of_others_are_not_written_over(disk: Any) -> None:
    """While the driver allocates a cluster, loops do not; and where it has, they do not give it another."""
    loop, image = Loop(disk), disk.node.image
    with image.lock:
        image.take_off(5, 5)
    places = disk.backend.table().places
    assert not places.write(5 * CLUSTER, b"x")
    assert not places.write(4 * CLUSTER + 100, b"x" * CLUSTER)
    assert places.write(6 * CLUSTER, b"x")
    with image.lock:
        image.land(5, 5)
    disk.node.write(5 * CLUSTER + 512, b"node")
    loop.write(5 * CLUSTER, b"loop")
    assert disk.read(5 * CLUSTER, 516) == b"loop" + bytes(508) + b"node"
    check(disk)


def test_places_that_were_looked_up_before_are_not_put_in_place_of_newer_ones(
    disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qobra.block.table as table_module

    table = disk.backend.table()
    resolve = table_module.resolve

    def late(*arguments: Any) -> Any:
        found = resolve(*arguments)
        assert table.places.write(7 * CLUSTER, b"x" * 512)
        return found

    monkeypatch.setattr(table_module, "resolve", late)
    table.fill(0, SIZE)
    monkeypatch.undo()
    data = bytearray(512)
    assert table.places.read(7 * CLUSTER, data) and data == b"x" * 512


def test_another_table_ends_it(disk: Any) -> None:
    places = disk.backend.table().places
    assert places.write(CLUSTER, b"x")
    other = ResolvedTable(disk.node)
    try:
        other.fill(0, SIZE)
        assert not places.write(2 * CLUSTER, b"y")
        Loop(disk).write(2 * CLUSTER, b"y")
        data = bytearray(1)
        other.fill(2 * CLUSTER, 1)
        assert other.places is not None and other.places.read(2 * CLUSTER, data) and data == b"y"
    finally:
        other.close()
    check(disk)


def test_dirty_bitmaps_are_marked(disk: Any) -> None:
    from qobra.block.bitmap import DirtyBitmap

    bitmap = DirtyBitmap(disk.node, "b", CLUSTER)
    loop = Loop(disk)
    disk.backend.table().fill(0, SIZE)
    loop.write(CLUSTER, b"x")
    assert loop.write(9 * CLUSTER + 7, b"x")
    assert bitmap.next_dirty(2 * CLUSTER, SIZE) == 9 * CLUSTER


def test_two_loops_that_meet_in_a_new_cluster(disk: Any) -> None:
    half, count = CLUSTER // 2, 200
    meeting = threading.Barrier(2)

    def work(number: int) -> None:
        loop = Loop(disk)
        slot = disk.layer.flight.slot(disk.backend.gate)
        for cluster in range(1, count):
            meeting.wait()
            with slot:
                loop.write(cluster * CLUSTER + number * half, bytes((number + 1,)) * half)
        slot.close()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert disk.read(CLUSTER, (count - 1) * CLUSTER) == (b"\1" * half + b"\2" * half) * (count - 1)
    check(disk)


def test_an_overlay_has_no_reserve(lab: Any) -> None:
    lab.create("base", size=SIZE)
    with lab.open("base") as disk:
        disk.write(0, b"b" * (4 * CLUSTER))
    lab.create("a", size=SIZE)
    backing = {"driver": "qcow2", "file": {"driver": "file", "filename": lab.path("base")}}
    with lab.open("a", backing=backing) as disk:
        loop = Loop(disk)
        disk.backend.table().fill(0, SIZE)
        assert not any(loop.write(number * CLUSTER + 10, b"x") for number in range(3))
        assert disk.read(2 * CLUSTER, 12) == b"b" * 10 + b"xb"


def test_an_error_of_the_file_is_the_drivers_to_tell(lab: Any, disk: Any) -> None:
    image = disk.node.image
    spare = os.open(lab.path("a"), os.O_RDONLY)
    table = disk.backend.table()
    fd = os.dup(image.data.fd)
    os.dup2(spare, image.data.fd)  # it cannot be written to
    try:
        assert not table.places.write(CLUSTER, b"x")
    finally:
        os.dup2(fd, image.data.fd)
        os.close(fd)
        os.close(spare)
    assert Loop(disk).write(CLUSTER, b"x") is False
    assert disk.read(CLUSTER, 2) == b"x\0"
    check(disk)


@pytest.mark.soak
@pytest.mark.parametrize("cluster_size", [4096, CLUSTER])
def test_at_random_with_others(lab: Any, cluster_size: int, soak_scale: int) -> None:
    """Four threads, each with its own part of every cluster: loops, the driver's own writes, zeroes and flushes."""
    for seed in range(soak_scale):
        _at_random(lab, cluster_size, seed)


def _at_random(lab: Any, cluster_size: int, seed: int) -> None:
    unit, threads = 512, 4
    size = 256 * cluster_size
    lab.create("a", size=size, cluster_size=cluster_size)
    model = bytearray(size)
    failures: list[BaseException] = []
    with lab.open("a", discard="unmap") as disk:
        flight = disk.layer.flight

        def work(number: int) -> None:
            chosen = random.Random(seed * threads + number)
            loop = Loop(disk)
            slot = flight.slot(disk.backend.gate)
            try:
                for count in range(100):
                    # Whole units that leave the same rest are one thread's: all of them meet in each cluster.
                    at = chosen.randrange(size // unit // threads) * threads + number
                    data = bytes((chosen.randrange(1, 256),)) * unit
                    model[at * unit : (at + 1) * unit] = data
                    with slot:
                        if chosen.random() < 0.8:
                            loop.write(at * unit, data)
                        else:
                            disk.node.write(at * unit, data)
                    if count % 16 == 0:
                        with slot:
                            disk.node.flush()
                    if count % 10 == 3:
                        with slot:
                            disk.node.write_zeroes(at * unit, unit, may_unmap=True)
                        model[at * unit : (at + 1) * unit] = bytes(unit)
            except BaseException as error:
                failures.append(error)
            finally:
                slot.close()

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not failures, failures
        assert disk.content() == bytes(model)
        check(disk)
    with lab.open("a", read_only=True) as again:
        assert again.content() == bytes(model)
    os.unlink(lab.path("a"))
