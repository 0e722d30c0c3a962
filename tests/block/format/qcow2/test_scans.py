"""Looking at all tables of an image: the compiled forms find what the pure ones do, in sound and damaged images."""

from __future__ import annotations

import random
import struct
from array import array

import pytest

from qobra.block.extents import ABSENT, COMPUTED, DATA, ZERO
from qobra.block.format.qcow2 import check, layout, packed
from qobra.native import compiled

_l2 = compiled("l2")
CLUSTER = 4096
TABLE = CLUSTER // 8
CLUSTERS = 3 * TABLE + 17

needs_compiled = pytest.mark.skipif(_l2 is None, reason="the compiled form was not built")


def _scattered(lab, chosen):
    """An image with data, zeroes with and without space, compressed clusters, shared ones and holes."""
    lab.create("a", size=CLUSTERS * CLUSTER, cluster_size=CLUSTER)
    with lab.open("a", discard="unmap") as disk:
        for at in chosen.sample(range(CLUSTERS), 10):
            disk.node.write_compressed(at * CLUSTER, memoryview(bytearray(b"much the same " * 512)[:CLUSTER]))
        for _ in range(60):
            at = chosen.randrange(CLUSTERS)
            length = min(CLUSTERS - at, chosen.choice([1, 1, 1, 5, 40]))
            what = chosen.randrange(4)
            if what < 2:
                disk.write(at * CLUSTER, bytes((chosen.randrange(1, 255),)) * (length * CLUSTER))
            else:
                disk.node.write_zeroes(at * CLUSTER, length * CLUSTER, may_unmap=what == 2)
        if chosen.random() < 0.5:
            disk.node.snapshot_create("s")
            disk.write(chosen.randrange(CLUSTERS) * CLUSTER, b"new")


def _damage(lab, chosen):
    with lab.open("a", read_only=True) as disk:
        tables = [entry & layout.OFFSET_MASK for entry in disk.node.image.tables.l1 if entry]
        end = disk.node.file.length
    with open(lab.path("a"), "r+b") as file:
        for _ in range(6):
            file.seek(chosen.choice(tables) + 8 * chosen.randrange(TABLE))
            place = chosen.randrange(0, end + 3 * CLUSTER, CLUSTER)
            word = chosen.choice(
                [
                    place,
                    place | layout.COPIED,
                    place | 1,
                    place | 0x200,
                    place | 1 << 60,
                    1 << 52,
                    layout.COPIED,
                    layout.COMPRESSED_FLAG | chosen.getrandbits(62),
                    layout.COMPRESSED_FLAG | layout.COPIED | place,
                    chosen.getrandbits(64),
                ]
            )
            file.write(struct.pack(">Q", word))


def _checked(lab, monkeypatch, form):
    monkeypatch.setattr(check, "_compiled", form)
    texts = []
    with lab.open("a", read_only=True, _check=True) as disk:
        return disk.node.check(report=texts.append), texts


@needs_compiled
@pytest.mark.parametrize("seed", range(12))
def test_both_forms_count_the_same(lab, monkeypatch, seed):
    chosen = random.Random(seed)
    _scattered(lab, chosen)
    sound, texts = _checked(lab, monkeypatch, _l2)
    assert not texts and (sound, texts) == _checked(lab, monkeypatch, None)
    _damage(lab, chosen)
    found = _checked(lab, monkeypatch, _l2)
    assert found[1] and found == _checked(lab, monkeypatch, None)


@needs_compiled
def test_counts_that_reach_the_limit_of_a_byte_are_left_to_the_slow_form():
    table = struct.pack(">4Q", 5 << 16, 0, 6 << 16, 7 << 16)
    seen, tally = bytearray(10), array("Q", bytes(32))
    seen[6] = 254
    assert _l2.count_entries(table, 0, seen, bytearray(10), 16, 10, 1, False, tally) == 2
    assert list(seen) == [0, 0, 0, 0, 0, 1, 254, 0, 0, 0] and list(tally) == [0, 0, 0, 0]
    assert _l2.count_entries(table, 3, seen, bytearray(10), 16, 7, 1, False, tally) == 3
    with pytest.raises(ValueError, match="out of range"):
        _l2.count_entries(table, 0, seen, bytearray(10), 70, 10, 1, False, tally)


@pytest.mark.parametrize("form", [None, pytest.param(_l2, marks=needs_compiled)], ids=["pure", "compiled"])
def test_a_cluster_that_is_not_aligned_is_out_of_its_row(lab, monkeypatch, form):
    lab.create("a", size=8 * CLUSTER, cluster_size=CLUSTER)
    with lab.open("a") as disk:
        disk.write(0, b"x" * (3 * CLUSTER))
        table = disk.node.image.tables.l1[0] & layout.OFFSET_MASK
        second = disk.node.map(CLUSTER, CLUSTER)[0].offset
    with open(lab.path("a"), "r+b") as file:
        file.seek(table + 8)
        file.write(struct.pack(">Q", second + 512 | layout.COPIED))
    result, _texts = _checked(lab, monkeypatch, form)
    assert result["allocated-clusters"] == 3 and result["fragmented-clusters"] == 2


@pytest.mark.parametrize(
    ("options", "entry", "texts"),
    [
        ({}, [layout.COPIED], []),  # no place at all
        ({}, [0x10200 | layout.COPIED], ["offset=10200: Data cluster is not properly aligned"]),
        ({}, [0x10201 | layout.COPIED], ["offset=10200: Preallocated cluster is not properly aligned"]),
        (
            {"extended_l2": True},
            [3 << 62 | 0x10001, 0xFFC],
            [
                "coffset=0x10001: copied flag",
                "cluster 0 with non-zero subcluster allocation bitmap, entry=0x4",
            ],
        ),
        ({"extended_l2": True}, [0, 0xFFC], ["ERROR: Unallocated cluster has non-zero subcluster allocation map"]),
        (
            {"extended_l2": True},
            [0x14000 | layout.COPIED, 1 << 32 | 1],
            ["offset=14000: Allocated cluster has corrupted subcluster allocation bitmap"],
        ),
        ({"extended_l2": True}, [0x10200, 1 << 32], ["offset=10200: Preallocated cluster is not properly aligned"]),
        ({"extended_l2": True}, [0x10200, 1], ["offset=10200: Data cluster is not properly aligned"]),
    ],
)
def test_what_is_wrong_with_an_entry_is_said_as_qemu_says_it(lab, options, entry, texts):
    size = 16384 if options else CLUSTER
    lab.create("a", size=1 << 20, cluster_size=size, **options)
    with lab.open("a") as disk:
        disk.write(0, b"data")
    with lab.open("a", read_only=True) as disk:
        table = disk.node.image.tables.l1[0] & layout.OFFSET_MASK
    with open(lab.path("a"), "r+b") as file:
        file.seek(table)
        file.write(struct.pack(f">{len(entry)}Q", *entry))
    with lab.open("a", read_only=True, _check=True) as disk:
        said = []
        disk.node.check(report=said.append)
    said = [text for text in said if "refcount" not in text and "counting" not in text]
    assert len(said) == len(texts)
    assert all(expected in text for expected, text in zip(texts, said, strict=True))


def _runs(disk, start=0, end=None):
    blocks = packed.packed_map(disk.node, start, disk.node.length if end is None else end)
    return [tuple(runs[at : at + 4]) for runs, count in blocks for at in range(0, 4 * count, 4)]


FORMS = [None] if _l2 is None else [None, _l2]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(6))
def test_packed_runs_are_the_map(lab, monkeypatch, seed, form):
    monkeypatch.setattr(packed, "_compiled", form)
    monkeypatch.setattr(packed, "_ROOM", 7)  # many blocks, whose ends have to meet
    chosen = random.Random(seed)
    _scattered(lab, chosen)
    with lab.open("a", read_only=True) as disk:
        for start, end in ((0, disk.node.length), (700, disk.node.length - 300), (CLUSTER, 9 * CLUSTER)):
            expected = []
            for extent in disk.node.map(start, end - start):
                place = packed.NOWHERE if extent.child is None else extent.offset
                expected.append((start, extent.length, extent.kind, place))
                start += extent.length
            assert _runs(disk, expected[0][0], end) == expected
        assert {kind for _start, _length, kind, _place in _runs(disk)} == {DATA, ZERO, ABSENT, COMPUTED}


@pytest.mark.parametrize("form", FORMS)
def test_packed_runs_tell_the_holes_of_a_preallocated_file(lab, monkeypatch, form):
    monkeypatch.setattr(packed, "_compiled", form)
    lab.create("a", size=64 * 65536, preallocation="metadata")
    with lab.open("a") as disk:
        disk.write(10 * 65536, b"x" * 65536)
        disk.write(30 * 65536, b"x" * 3 * 65536)
    with lab.open("a", read_only=True) as disk:
        runs = _runs(disk)
        assert [(start >> 16, length >> 16, kind) for start, length, kind, _place in runs] == [
            (0, 10, packed.HOLE),
            (10, 1, DATA),
            (11, 19, packed.HOLE),
            (30, 3, DATA),
            (33, 31, packed.HOLE),
        ]
        base = runs[0][3]
        assert all(place - base == start for start, _length, _kind, place in runs)


@pytest.mark.parametrize("form", FORMS)
def test_an_entry_that_cannot_be_ends_the_packed_map(lab, monkeypatch, form):
    from qobra.errors import QobraError

    monkeypatch.setattr(packed, "_compiled", form)
    _scattered(lab, random.Random(3))
    with lab.open("a", read_only=True) as disk:
        table = next(entry & layout.OFFSET_MASK for entry in disk.node.image.tables.l1 if entry)
    with open(lab.path("a"), "r+b") as file:
        file.seek(table)
        file.write(struct.pack(">Q", layout.COPIED | 0x50200))
    with lab.open("a", read_only=True) as disk, pytest.raises(QobraError, match="unaligned"):
        _runs(disk)


def test_bytes_of_clusters_with_data():
    runs = array("Q")
    for start, length, kind in ((0, 512, DATA), (512, 512, COMPUTED), (1024, 8192, ZERO), (9216, 100, DATA)):
        runs.extend((start, length, kind, packed.NOWHERE))
    assert packed.data_bytes(iter([(runs, 4)]), 4096) == 2 * 4096
    assert packed.data_bytes(iter([(runs, 3)]), 512) == 1024
    assert packed.data_bytes(iter([]), 512) == 0


@needs_compiled
def test_lines_of_json():
    import json

    runs = array("Q")
    for kind, place in ((DATA, 0), (ZERO, packed.NOWHERE), (ZERO, 7), (ABSENT, packed.NOWHERE), (packed.HOLE, 1 << 63)):
        runs.extend((1 << 63, (1 << 64) - 1, kind, place))
    entries = json.loads("[" + _l2.json_lines(runs, 5) + "]")
    assert [[entry[name] for name in ("present", "zero", "data")] for entry in entries] == [
        [True, False, True],
        [True, True, False],
        [True, True, False],
        [False, True, False],
        [True, True, True],
    ]
    assert [entry.get("offset") for entry in entries] == [0, None, 7, None, 1 << 63]
    assert entries[0]["start"] == 1 << 63 and entries[0]["length"] == (1 << 64) - 1
    assert _l2.json_lines(runs, 0) == ""
    with pytest.raises(ValueError, match="not so many"):
        _l2.json_lines(runs, 6)


@pytest.mark.parametrize("width", [1, 2])
def test_entries_are_filled(width):
    from qobra.block.format.qcow2.preallocation import pure_empty_entries, pure_fill_entries

    forms = [(pure_empty_entries, pure_fill_entries)]
    if _l2 is not None:
        forms.append((_l2.empty_entries, _l2.fill_entries))
    for empty, fill in forms:
        words = array("Q", bytes(8 * 12))
        fill(words, 2, 3, width, 1 << 63 | 5, 7)
        expected = [0] * 12
        expected[2 : 2 + 3 * width : width] = [1 << 63 | 5, 1 << 63 | 12, 1 << 63 | 19]
        assert list(words) == expected
        assert empty(words, 0, 12, width) == 2 // width and empty(words, 2, 12, width) == 0
        assert empty(words, 10, 12, width) == 2 // width and empty(words, 12, 12, width) == 0
    if _l2 is not None:
        for fill_wrong in ((11, 3, 1), (-1, 1, 1), (0, 7, 2)):
            with pytest.raises(ValueError, match="out of range"):
                _l2.fill_entries(words, *fill_wrong, 1, 1)
        with pytest.raises(ValueError, match="out of range"):
            _l2.empty_entries(words, 0, 13, 1)
