"""What is taken up from below beside writes: they are not kept waiting, what they wrote stays, and nothing is lost."""

from __future__ import annotations

import threading

import pytest

from qobra.block.copy.carrier import DIRECT
from qobra.block.copy.take_up import take_up
from qobra.block.extents import ZERO, resolve
from qobra.testing.waiting import wait_until

CLUSTER = 65536
SIZE = 8 * CLUSTER


@pytest.fixture
def chain(lab):
    """A function that opens an empty image over ``content``, with options of either's creation."""
    opened = []

    def make(content, base=None, **options):
        lab.create("below", size=SIZE, **(base or {}))
        with lab.open("below") as disk:
            for offset, data in content:
                disk.write(offset, data)
        lab.create("top", size=options.pop("size", SIZE), **options)
        below = {"driver": "qcow2", "file": {"driver": "file", "filename": lab.path("below")}}
        opened.append(lab.open("top", backing=below))
        return opened[-1]

    yield make
    for disk in opened:
        disk.close()


def check(lab, disk):
    """Close the image, and look for leaks and damage; what it holds without what is below."""
    disk.close()
    with lab.open("top", backing=None) as alone:
        result = alone.node.check()
        assert not result.get("corruptions") and not result.get("leaks") and not result["check-errors"]
        return alone.content()


def held(disk):
    """The clusters that the image holds itself."""
    runs = resolve(disk.node, 0, disk.node.length)
    clusters = range(0, disk.node.length, CLUSTER)
    return [
        offset // CLUSTER
        for offset in clusters
        for run in runs
        if run.start <= offset < run.start + run.length and run.depth == 0
    ]


def test_a_write_on_the_way_stays(lab, chain, monkeypatch):
    disk = chain([(0, b"b" * SIZE)])
    write = disk.node.file.write

    def meanwhile(offset, data, **more):
        monkeypatch.undo()
        disk.write(2 * CLUSTER + 512, b"guest")
        disk.backend.write_zeroes(4 * CLUSTER, CLUSTER)
        write(offset, data, **more)

    monkeypatch.setattr(disk.node.file, "write", meanwhile)
    take_up(disk.node, disk.node.linking(), 0, SIZE, None, DIRECT)
    assert held(disk) == list(range(8))
    expected = bytearray(b"b" * SIZE)
    expected[2 * CLUSTER + 512 : 2 * CLUSTER + 517] = b"guest"
    expected[4 * CLUSTER : 5 * CLUSTER] = bytes(CLUSTER)
    assert check(lab, disk) == expected


def test_a_file_is_not_asked_for_holes_where_the_image_holds_all_itself(lab, chain, monkeypatch):
    disk = chain([(0, b"b" * SIZE)])
    disk.write(0, b"guest" * (4 * CLUSTER // 5 + 1))
    asked = []
    monkeypatch.setattr(disk.node.file, "next_data", lambda offset: asked.append(offset) or offset)
    monkeypatch.setattr(disk.node.file, "next_hole", lambda offset: asked.append(offset) or SIZE)
    take_up(disk.node, disk.node.linking(), 0, 4 * CLUSTER, None, DIRECT)
    assert held(disk) == [0, 1, 2, 3, 4] and not asked
    take_up(disk.node, disk.node.linking(), 0, SIZE, None, DIRECT)
    assert held(disk) == list(range(8)) and not asked


def test_a_write_under_way_that_fails_leaves_no_gap(lab, chain):
    disk = chain([(0, b"b" * SIZE)])
    image = disk.node.image
    with image.lock:
        image.take_off(3, 3)
    copying = threading.Thread(
        target=take_up, args=(disk.node, disk.node.linking(), 0, SIZE, None, DIRECT), daemon=True
    )
    copying.start()
    wait_until(lambda: image.waiting)
    with image.lock:
        image.land(3, 3)  # and nothing was mapped
    copying.join()
    assert held(disk) == list(range(8)) and not image.in_flight
    assert check(lab, disk) == b"b" * SIZE


def test_a_copy_that_fails_gives_its_clusters_back(lab, chain, monkeypatch):
    disk = chain([(0, b"b" * SIZE)])
    disk.write(CLUSTER, b"guest")

    def fail(offset, data, **more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(disk.node.file, "write", fail)
        take_up(disk.node, disk.node.linking(), 0, SIZE, None, DIRECT)
    assert held(disk) == [1]
    check(lab, disk)


@pytest.mark.parametrize("version", ["v2", "v3"])
@pytest.mark.parametrize("base", [{}, {"cluster_size": 4096}, {"cluster_size": 4096, "version": "v2"}])
def test_zeroes_and_parts_of_clusters(lab, chain, version, base):
    content = [
        (0, b"a" * 4096),
        (CLUSTER + 8192, b"b" * 4096),
        (5 * CLUSTER, b"c" * CLUSTER),
        (SIZE - 4096, b"d" * 4096),
    ]
    disk = chain(content, base, version=version, size=SIZE)
    disk.write(5 * CLUSTER + 100, b"guest")
    before = disk.content()
    take_up(disk.node, disk.node.linking(), 0, SIZE, None, DIRECT)
    assert {0, 1, 5, 7} <= set(held(disk))
    assert check(lab, disk) == before


def test_a_disk_that_ends_in_a_cluster(lab, chain):
    disk = chain([(0, b"b" * SIZE)], size=2 * CLUSTER + 1024)
    take_up(disk.node, disk.node.linking(), 0, 3 * CLUSTER, None, DIRECT)
    assert check(lab, disk) == b"b" * (2 * CLUSTER + 1024)


def test_what_is_known_to_be_zero_takes_no_space(lab, chain):
    chain([]).close()
    with lab.open("below") as disk:
        disk.backend.write_zeroes(0, 4 * CLUSTER)
    below = {"driver": "qcow2", "file": {"driver": "file", "filename": lab.path("below")}}
    with lab.open("top", backing=below) as disk:
        take_up(disk.node, disk.node.linking(), 0, SIZE, None, DIRECT)
        runs = resolve(disk.node, 0, SIZE)
        assert [(run.length // CLUSTER, run.kind, run.depth) for run in runs] == [(4, ZERO, 0), (4, ZERO, -1)]
        assert runs[0].leaf is None
    check(lab, disk)


@pytest.mark.parametrize("options", [{"extended_l2": True}, {"data_file": "data"}])
def test_not_for_every_image(chain, options):
    assert chain([], **options).node.linking() is None
