"""Reading and writing: copy-on-write, zeroes, discards, compression, subclusters, external data."""

from __future__ import annotations

import os
import random
import threading

import pytest

from qobra.block.backend import BlockBackend
from qobra.block.extents import ABSENT, COMPUTED, DATA, WRITABLE, ZERO, resolve
from qobra.errors import QobraError
from qobra.testing.waiting import wait_until

KIB, MIB = 1 << 10, 1 << 20
CLUSTER = 64 * KIB


def _noise(length, seed=1):
    return random.Random(seed).randbytes(length)


def _check(lab, name):
    """The image has neither damage nor leaks."""
    with lab.open(name, read_only=True) as disk:
        result = disk.node.check()
    assert "corruptions" not in result and "leaks" not in result, result
    return result


def _kinds(disk, offset=0, length=None):
    return [(extent.length, extent.kind) for extent in disk.node.map(offset, length or disk.node.length)]


@pytest.mark.parametrize("cluster_bits", range(9, 22))
def test_every_cluster_size_reads_back_what_was_written(lab, cluster_bits):
    cluster = 1 << cluster_bits
    size = 5 * cluster + 512
    lab.create("a", size=size, cluster_size=cluster)
    model = bytearray(size)
    with lab.open("a") as disk:
        for offset, length in (
            (0, 512),
            (cluster - 512, 1024),
            (2 * cluster + 512, 2 * cluster),
            (size - 512, 512),
        ):
            data = _noise(length, offset)
            disk.write(offset, data)
            model[offset : offset + length] = data
        assert disk.content() == model
    with lab.open("a", read_only=True) as disk:
        assert disk.content() == model
    _check(lab, "a")


def test_a_partial_write_keeps_the_backing_files_data_around_it(lab):
    base = _noise(3 * CLUSTER)
    with open(lab.path("base"), "wb") as file:
        file.write(base)
    lab.create("a", size=4 * CLUSTER, backing_file="base", backing_fmt="raw")
    with lab.open("a") as disk:
        disk.write(CLUSTER + 512, b"x" * 512)
        disk.write(3 * CLUSTER - 512, b"y" * 1024)  # across the end of the backing file
        want = bytearray(base + bytes(CLUSTER))
        want[CLUSTER + 512 : CLUSTER + 1024] = b"x" * 512
        want[3 * CLUSTER - 512 : 3 * CLUSTER + 512] = b"y" * 1024
        assert disk.content() == want
    assert _check(lab, "a")["allocated-clusters"] == 3


def test_map_names_places_and_merges_them(lab):
    lab.create("a", size=8 * CLUSTER)
    with lab.open("a") as disk:
        disk.write(CLUSTER, _noise(2 * CLUSTER))
        disk.backend.write_zeroes(4 * CLUSTER, CLUSTER)
        extents = disk.node.map(0, disk.node.length)
        assert [(each.length // CLUSTER, each.kind) for each in extents] == [
            (1, ABSENT),
            (2, DATA),
            (1, ABSENT),
            (1, ZERO),
            (3, ABSENT),
        ]
        data = extents[1]
        assert data.child is disk.node.file and data.flags == WRITABLE and data.offset % CLUSTER == 0
        assert disk.node.file.read(data.offset + 512, 512) == disk.read(CLUSTER + 512, 512)


def test_a_read_only_node_maps_nothing_writable(lab):
    lab.create("a", size=CLUSTER)
    with lab.open("a") as disk:
        disk.write(0, b"x" * 512)
    with lab.open("a", read_only=True) as disk:
        assert disk.node.map(0, CLUSTER)[0].flags == 0
        with pytest.raises(OSError, match="read-only"):
            disk.node.write(0, b"x")


@pytest.mark.parametrize("unmap", [False, True])
def test_zero_clusters_keep_or_give_back_their_space(lab, unmap):
    lab.create("a", size=4 * CLUSTER)
    with lab.open("a", discard="unmap") as disk:
        disk.write(0, _noise(4 * CLUSTER))
        disk.backend.write_zeroes(0, 2 * CLUSTER, may_unmap=unmap)
        first = disk.node.map(0, CLUSTER)[0]
        assert first.kind == ZERO and (first.child is None) == unmap
        assert disk.read(0, 2 * CLUSTER) == bytes(2 * CLUSTER)
        # A write to a kept zero cluster must not bring the old data back.
        disk.write(512, b"z" * 512)
        assert disk.read(0, CLUSTER) == bytes(512) + b"z" * 512 + bytes(CLUSTER - 1024)
    _check(lab, "a")


@pytest.mark.parametrize("extended_l2", [False, True])
@pytest.mark.parametrize("over_backing", [False, True])
def test_zeroes_are_held_where_nothing_was_and_a_discard_holds_them_only_over_a_backing_file(
    lab, extended_l2, over_backing
):
    more = {}
    if over_backing:
        lab.create("base", size=4 * CLUSTER)
        more = {"backing_file": "base", "backing_fmt": "qcow2"}
    lab.create("a", size=4 * CLUSTER, extended_l2=extended_l2, **more)
    with lab.open("a", discard="unmap") as disk:
        disk.backend.discard(0, CLUSTER)
        assert disk.node.map(0, CLUSTER)[0].kind == (ZERO if over_backing else ABSENT)
        disk.backend.write_zeroes(2 * CLUSTER, CLUSTER, may_unmap=True)
        disk.backend.write_zeroes(3 * CLUSTER, CLUSTER)
        assert _kinds(disk, 2 * CLUSTER, 2 * CLUSTER) == [(2 * CLUSTER, ZERO)]
        disk.backend.discard(2 * CLUSTER, CLUSTER)
        assert _kinds(disk, 2 * CLUSTER, CLUSTER) == [(CLUSTER, ZERO)]
    _check(lab, "a")


def test_zeroing_a_part_of_a_cluster_needs_no_data_where_the_rest_is_zero(lab):
    lab.create("a", size=4 * CLUSTER)
    with lab.open("a") as disk:
        disk.node.write_zeroes(512, 1024, no_fallback=True)
        assert _kinds(disk, 0, CLUSTER) == [(CLUSTER, ZERO)]
        disk.write(CLUSTER, b"x" * 512)
        with pytest.raises(OSError):
            disk.node.write_zeroes(CLUSTER + 512, 512, no_fallback=True)
        disk.backend.write_zeroes(CLUSTER, 512)
        assert disk.read(CLUSTER, CLUSTER) == bytes(CLUSTER)


def test_version_2_holds_nothing_for_zeroes_in_a_cluster_that_it_does_not_hold(lab):
    lab.create("a", size=4 * CLUSTER, version="v2")
    with lab.open("a") as disk:
        disk.backend.write_zeroes(512, 1024)
        assert not disk.node.image.tables.l1[0]
        with pytest.raises(OSError):
            disk.node.write_zeroes(512, 1024, no_fallback=True)
        disk.write(0, b"x" * 512)
        disk.backend.write_zeroes(512, 1024)
        assert disk.read(0, 1536) == b"x" * 512 + bytes(1024)
    _check(lab, "a")


def test_a_discard_reads_as_zeroes_and_hides_the_backing_file(lab):
    with open(lab.path("base"), "wb") as file:
        file.write(_noise(2 * CLUSTER))
    lab.create("a", size=2 * CLUSTER, backing_file="base", backing_fmt="raw")
    with lab.open("a", discard="unmap") as disk:
        disk.backend.discard(0, CLUSTER + 512)
        assert disk.read(0, CLUSTER) == bytes(CLUSTER)
        assert disk.read(CLUSTER, CLUSTER) == _noise(2 * CLUSTER)[CLUSTER:]
    _check(lab, "a")


def test_version_2_leaves_a_discard_alone_that_would_show_the_backing_file(lab):
    with open(lab.path("base"), "wb") as file:
        file.write(_noise(CLUSTER))
    lab.create("a", size=CLUSTER, version="v2", backing_file="base", backing_fmt="raw")
    with lab.open("a", discard="unmap") as disk:
        disk.write(0, b"n" * CLUSTER)
        disk.backend.discard(0, CLUSTER)
        assert disk.read(0, CLUSTER) == b"n" * CLUSTER


def test_discarded_space_is_used_again(lab):
    lab.create("a", size=64 * CLUSTER)
    with lab.open("a", discard="unmap") as disk:
        for round in range(6):
            disk.write(0, _noise(16 * CLUSTER, round))
            disk.backend.discard(0, 16 * CLUSTER)
            disk.backend.flush()
            disk.backend.flush()
    assert os.path.getsize(lab.path("a")) < 40 * CLUSTER
    _check(lab, "a")


def test_a_busy_neighbour_does_not_keep_freed_space(lab):
    lab.create("a", size=16 * CLUSTER)
    with lab.open("a", discard="unmap") as disk:
        disk.write(0, _noise(8 * CLUSTER))
        neighbour = BlockBackend(disk.layer)
        slot = neighbour.new_slot()
        with slot:
            disk.backend.discard(0, 8 * CLUSTER)
            disk.backend.flush()
            disk.backend.remove()
        slot.close()
    assert "allocated-clusters" not in _check(lab, "a")


@pytest.mark.parametrize("compression_type", ["zlib", "zstd"])
def test_compressed_clusters(lab, compression_type):
    size = 8 * CLUSTER + 512
    data = b"".join(bytes((index & 0xFF,)) * 512 for index in range(size // 512))
    lab.create("a", size=size, compression_type=compression_type)
    with lab.open("a") as disk:
        disk.node.write_compressed(0, data)
        assert disk.content() == data
        assert disk.node.map(0, CLUSTER)[0].kind == COMPUTED
        with pytest.raises(OSError):
            disk.node.write_compressed(0, data[:CLUSTER])  # never over what is there
        disk.write(CLUSTER + 512, b"plain" * 100)
        data = data[: CLUSTER + 512] + b"plain" * 100 + data[CLUSTER + 1012 :]
        assert disk.content() == data
    with lab.open("a", read_only=True) as disk:
        assert disk.content() == data
    assert _check(lab, "a")["compressed-clusters"] == 8
    assert os.path.getsize(lab.path("a")) < 8 * CLUSTER


def test_what_does_not_compress_is_written_as_it_is(lab):
    lab.create("a", size=2 * CLUSTER)
    data = _noise(CLUSTER) + b"a" * CLUSTER
    with lab.open("a") as disk:
        disk.node.write_compressed(0, data)
        assert disk.content() == data
        assert [kind for _length, kind in _kinds(disk)] == [DATA, COMPUTED]
    _check(lab, "a")


def test_subclusters_allocate_only_what_is_written(lab):
    sub = CLUSTER // 32
    lab.create("a", size=4 * CLUSTER, extended_l2=True)
    with lab.open("a") as disk:
        disk.write(sub, _noise(sub))
        disk.backend.write_zeroes(3 * sub, 2 * sub)
        assert _kinds(disk, 0, CLUSTER) == [
            (sub, ABSENT),
            (sub, DATA),
            (sub, ABSENT),
            (2 * sub, ZERO),
            (CLUSTER - 5 * sub, ABSENT),
        ]
    _check(lab, "a")


def test_an_external_data_file_holds_each_byte_at_its_own_offset(lab):
    lab.create("a", size=4 * CLUSTER, data_file="data", data_file_raw=True)
    data = _noise(3000)
    with lab.open("a", discard="unmap") as disk:
        disk.write(CLUSTER + 100 * 512, data)
        disk.backend.write_zeroes(CLUSTER + 102 * 512, 512)
    with open(lab.path("data"), "rb") as file:
        raw = file.read()
    want = bytearray(4 * CLUSTER)
    want[CLUSTER + 51200 : CLUSTER + 54200] = data
    want[CLUSTER + 52224 : CLUSTER + 52736] = bytes(512)
    assert raw == want
    with lab.open("a", read_only=True) as disk:
        assert disk.content() == want


def test_an_image_that_grows_shows_what_its_raw_data_file_holds(lab):
    lab.create("a", size=4 * CLUSTER, data_file="data", data_file_raw=True)
    with open(lab.path("data"), "r+b") as file:
        file.seek(4 * CLUSTER)
        file.write(b"d" * CLUSTER)
    with lab.open("a") as disk:
        disk.node.truncate(5 * CLUSTER)
        assert disk.node.read(4 * CLUSTER, CLUSTER) == b"d" * CLUSTER
    with lab.open("a", read_only=True) as disk:
        assert disk.content() == bytes(4 * CLUSTER) + b"d" * CLUSTER


def test_only_a_data_file_grows_with_its_image(lab):
    lab.create("external", size=4 * CLUSTER, data_file="data", data_file_raw=True)
    lab.create("plain", size=4 * CLUSTER)
    for name in ("external", "plain"):
        with lab.open(name) as disk:
            disk.node.truncate(64 * CLUSTER)
    assert os.path.getsize(lab.path("data")) == 64 * CLUSTER
    assert os.path.getsize(lab.path("plain")) < 16 * CLUSTER


def test_a_small_cache_changes_nothing(lab):
    """Slices of 512 bytes and a cache of four of them, over 64 L2 tables."""
    cluster = 4 * KIB
    lab.create("a", size=128 * MIB, cluster_size=cluster)
    chosen = random.Random(7)
    model = {}
    with lab.open("a", l2_cache_size=2048, l2_cache_entry_size=512, refcount_cache_size=512) as disk:
        for number in range(300):
            at = chosen.randrange(128 * MIB // cluster) * cluster
            model[at] = number.to_bytes(4, "big") * 128
            disk.write(at, model[at])
        assert all(disk.read(at, 512) == data for at, data in model.items())
        assert len(disk.node.image.tables.slices) <= 300
    with lab.open("a", read_only=True) as disk:
        assert all(disk.read(at, 512) == data for at, data in model.items())
    _check(lab, "a")


def test_a_write_waits_for_a_cluster_on_its_way_that_another_has_allocated(lab, monkeypatch):
    lab.create("a", size=8 * CLUSTER)
    with lab.open("a") as disk:
        disk.write(7 * CLUSTER, b"ready")
        begun, go, write = threading.Event(), threading.Event(), disk.node.file.write

        def slow(offset, data, **options):
            if bytes(data[:4]) == b"slow":
                begun.set()
                assert go.wait(30)
            write(offset, data, **options)

        monkeypatch.setattr(disk.node.file, "write", slow)
        threads = [
            threading.Thread(target=disk.node.write, args=(2 * CLUSTER, b"slow" * (CLUSTER // 4))),
            threading.Thread(target=disk.node.write, args=(CLUSTER, b"next" * (3 * CLUSTER // 4))),
        ]
        threads[0].start()
        assert begun.wait(30)
        threads[1].start()
        wait_until(lambda: disk.node.map(CLUSTER, CLUSTER)[0].kind == DATA)
        go.set()
        for thread in threads:
            thread.join()
        assert disk.read(CLUSTER, 3 * CLUSTER) == b"next" * (3 * CLUSTER // 4)
    _check(lab, "a")


def test_many_threads_write_to_the_same_clusters(lab):
    """Each thread owns every fourth sector, so that all meet in every allocation."""
    lab.create("a", size=64 * CLUSTER)
    order = list(range(64 * CLUSTER // 4096))
    failures = []

    def work(number):
        try:
            mine = order[number::4]
            random.Random(number).shuffle(mine)
            for index in mine[:128]:
                disk.write(index * 4096, bytes((number + 1,)) * 4096)
        except Exception as error:
            failures.append(error)

    with lab.open("a") as disk:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        content = disk.content()
    for number in range(4):
        mine = order[number::4]
        random.Random(number).shuffle(mine)
        for index in mine[:128]:
            assert content[index * 4096 : index * 4096 + 4096] == bytes((number + 1,)) * 4096
    assert sum(1 for at in range(0, len(content), 4096) if content[at]) == 512
    _check(lab, "a")


def test_threads_that_flush_discard_and_read_with_tiny_caches(lab, soak_scale):
    """Each thread owns every fourth unit of half a cluster; commits and evictions happen all the time."""
    unit, units = 1024, 2048
    lab.create("a", size=unit * units, cluster_size=2 * unit)
    model = bytearray(unit * units)
    failures = []

    def work(number):
        chosen = random.Random(number)
        try:
            for _ in range(200 * soak_scale):
                offset = (chosen.randrange(units // 4) * 4 + number) * unit
                action = chosen.random()
                if action < 0.5:
                    model[offset : offset + unit] = data = chosen.randbytes(unit)
                    disk.write(offset, data)
                elif action < 0.7:
                    disk.backend.write_zeroes(offset, unit, may_unmap=True)
                    model[offset : offset + unit] = bytes(unit)
                elif action < 0.95:
                    assert disk.read(offset, unit) == model[offset : offset + unit]
                else:
                    disk.backend.flush()
        except Exception as error:
            failures.append(error)

    caches = {"l2_cache_size": 2048, "l2_cache_entry_size": 512, "refcount_cache_size": 512}
    with lab.open("a", discard="unmap", **caches) as disk:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert disk.content() == model
    _check(lab, "a")


def test_a_failed_write_gives_its_clusters_back(lab, monkeypatch):
    lab.create("a", size=8 * CLUSTER)
    with lab.open("a") as disk:
        file = disk.node.file

        def full(_offset, _data):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(file, "_write", full)
        with pytest.raises(OSError):
            disk.write(0, b"x" * 512)
        monkeypatch.undo()
        assert not disk.node.image.in_flight
        disk.write(0, b"y" * 512)
        assert disk.read(0, 1024) == b"y" * 512 + bytes(512)
    _check(lab, "a")


def test_a_deep_chain_resolves_to_the_right_layers(lab):
    lab.create("0", size=16 * CLUSTER)
    for depth in range(1, 12):
        lab.create(
            str(depth),
            size=16 * CLUSTER,
            backing_file=str(depth - 1),
            backing_fmt="qcow2",
        )
        with lab.open(str(depth)) as disk:
            disk.write(depth * CLUSTER, bytes((depth,)) * CLUSTER)
    with lab.open("11", read_only=True) as disk:
        assert disk.content() == bytes(CLUSTER) + b"".join(bytes((d,)) * CLUSTER for d in range(1, 12)) + bytes(
            4 * CLUSTER
        )
        depths = [run.depth for run in resolve(disk.node, CLUSTER, 11 * CLUSTER)]
        assert depths == list(range(10, -1, -1))


def test_a_backing_file_that_names_itself_is_refused(lab):
    lab.create("a", size=CLUSTER, backing_file="b", backing_fmt="qcow2")
    lab.create("b", size=CLUSTER, backing_file="a", backing_fmt="qcow2")
    with pytest.raises(QobraError):
        lab.open("a", read_only=True)


@pytest.mark.parametrize(
    ("start", "length", "alloc", "zero"),
    [
        (2, 2, 0xFFFFFFFD, 0x2),  # a whole subcluster with data
        (0, 32, 0xFFFF0000, 0xFFFF),
        (1, 4, 0xFFFFFFFD, 0x2),  # the whole one in it; what is beside is written
        (1, 1, 0xFFFFFFFF, 0),  # none is whole
        (33, 31, 0x0001FFFF, 0xFFFE0000),
    ],
)
def test_whole_subclusters_are_zeroed_in_the_mapping(lab, start, length, alloc, zero):
    lab.create("a", size=1 << 20, extended_l2=True)
    with lab.open("a") as disk:
        disk.write(0, b"x" * 65536)
        disk.backend.write_zeroes(start * 1024, length * 1024)
        part = disk.node.image.tables.find(0)
        assert part.words[1] == zero << 32 | alloc
        want = b"x" * start * 1024 + bytes(length * 1024) + b"x" * (64 - start - length) * 1024
        assert disk.read(0, 65536) == want
