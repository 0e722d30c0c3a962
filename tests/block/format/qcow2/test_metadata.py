"""Refcounts in all widths, allocation and growth, check and repair, overlap protection."""

from __future__ import annotations

import errno
import random
import struct
from pathlib import Path

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.format.qcow2 import layout
from qobra.block.format.qcow2.counts import CompactCounts, differences
from qobra.block.format.qcow2.header import Header
from qobra.block.format.qcow2.options import cache_sizes
from qobra.block.format.qcow2.refcount import pack_counts, unpack_counts
from qobra.block.layer import BlockLayer
from qobra.errors import QobraError

CLUSTER = 65536


@pytest.mark.parametrize("order", range(7))
def test_counts_of_every_width(order):
    data = random.Random(order).randbytes(512)
    counts = unpack_counts(data, order)
    width = 1 << order
    assert len(counts) == 4096 // width
    for index in (0, 1, 7, len(counts) - 1):
        if width >= 8:
            want = int.from_bytes(data[index * width // 8 : (index + 1) * width // 8], "big")
        else:
            want = data[index * width // 8] >> (index * width % 8) & ((1 << width) - 1)
        assert counts[index] == want
    assert pack_counts(counts, order) == data


def test_compact_counts_keep_large_ones_aside():
    counts = CompactCounts(100)
    counts.add(10, 5, 200)
    counts.add(12, 1, 100)
    counts.add(12, 1)
    assert [counts.get(at) for at in range(9, 16)] == [0, 200, 200, 301, 200, 200, 0]
    other = CompactCounts(100)
    other.take_block(8, unpack_counts(struct.pack(">8H", 0, 0, 200, 200, 301, 200, 199, 0), 4))
    assert differences(counts, other) == [14]
    other.large[12] = 302
    assert differences(counts, other) == [12, 14]
    assert counts.last_used() == 14


@pytest.mark.parametrize(("cluster_size", "bits"), [(512, 64), (512, 1), (1024, 16)])
def test_refcount_structures_grow_with_the_image(lab, cluster_size, bits):
    """512-byte clusters with 64-bit counts: a table of one cluster counts 2 MiB, so it must grow."""
    lab.create("a", size=6 << 20, cluster_size=cluster_size, refcount_bits=bits)
    with lab.open("a") as disk:
        for offset in range(0, 6 << 20, 1 << 18):
            disk.write(offset, bytes((offset >> 18 or 99,)) * (1 << 18))
        assert disk.node.header.reftable_clusters > 1 or bits < 64
    with lab.open("a", read_only=True) as disk:
        assert all(disk.read(offset, 1)[0] == (offset >> 18 or 99) for offset in range(0, 6 << 20, 1 << 18))
        result = disk.node.check()
    assert "corruptions" not in result and "leaks" not in result


def test_a_table_larger_than_a_refcount_block_can_be_placed(lab):
    """An L1 table of 64 clusters, where a block counts 64: it needs blocks of its own in front."""
    lab.create("a", size=1 << 20, cluster_size=512, refcount_bits=64)
    with lab.open("a") as disk:
        disk.write(0, b"here" * 128)
        disk.node.truncate(128 << 20)
        assert disk.node.header.l1_entries == 4096
        disk.write((128 << 20) - 512, b"there" * 100)
        assert disk.read(0, 4) == b"here" and disk.read((128 << 20) - 512, 5) == b"there"
    with lab.open("a", read_only=True) as disk:
        result = disk.node.check()
    assert "corruptions" not in result and "leaks" not in result


def _patch(lab, offset, data):
    with open(lab.path("a"), "r+b") as file:
        file.seek(offset)
        file.write(data)


def _places(lab):
    with lab.open("a", read_only=True) as disk:
        image = disk.node.image
        block = image.refcounts.table[0]
        l2 = image.tables.l1[0] & layout.OFFSET_MASK
        data = [extent.offset for extent in disk.node.map(0, disk.node.length) if extent.child is not None]
    return block, l2, data[0] if data else 0


def _written(lab, **options):
    lab.create("a", size=1 << 20, **options)
    with lab.open("a") as disk:
        disk.write(0, b"data" * 1000)
    return _places(lab)


def test_check_tells_a_leak_from_damage(lab):
    block, _l2, data = _written(lab)
    _patch(lab, block + 2 * 9, b"\0\1")  # cluster 9 is nobody's
    _patch(lab, block + 2 * (data // CLUSTER), b"\0\0")  # the data's is not counted
    texts = []
    with open(lab.path("a"), "ab") as file:
        file.truncate(10 * CLUSTER)
    with lab.open("a", read_only=True, _check=True) as disk:
        result = disk.node.check(report=texts.append)
    assert result["leaks"] == 1 and result["corruptions"] == 2
    assert "Leaked cluster 9 refcount=1 reference=0" in texts
    assert f"ERROR cluster {data // CLUSTER} refcount=0 reference=1" in texts
    with lab.open("a", _check=True) as disk:
        with pytest.raises(OSError):
            disk.node.check(fix_leaks=True)  # nothing can be given back where counts are wrong as a whole
        result = disk.node.check(fix_errors=True)
        # With its count right, nothing is the matter with the flag that says so.
        assert result["corruptions-fixed"] == 1 and result["leaks-fixed"] == 1 and "corruptions" not in result
        assert "corruptions" not in disk.node.check()


def test_flags_are_repaired_after_the_counts_that_they_tell_of(lab):
    block, l2, data = _written(lab)
    _patch(lab, block + 2 * (data // CLUSTER), b"\0\2")
    _patch(lab, l2, data.to_bytes(8, "big"))  # not COPIED, as one of two
    texts = []
    with lab.open("a", read_only=True, _check=True) as disk:
        result = disk.node.check(report=texts.append)
    assert result["leaks"] == 1 and "corruptions" not in result
    with lab.open("a", _check=True) as disk:
        result = disk.node.check(fix_leaks=True, report=texts.append)
    assert texts[-1] == f"Repairing OFLAG_COPIED data cluster: l2_entry={data:x} refcount=1"
    assert result["leaks-fixed"] == 1 and result["corruptions-fixed"] == 1
    with lab.open("a") as disk:
        assert disk.node.check().keys().isdisjoint({"leaks", "corruptions"})


def test_a_flag_of_an_entry_for_what_is_past_the_end_of_the_file_is_wrong_too(lab):
    _block, l2, _data = _written(lab)
    far = layout.COPIED | 1 << 40
    _patch(lab, l2, far.to_bytes(8, "big"))
    text = f"OFLAG_COPIED data cluster: l2_entry={far:x} refcount=0"
    texts = []
    with lab.open("a", read_only=True, _check=True) as disk:
        assert disk.node.check(report=texts.append)["corruptions"] == 2
    assert texts[-1] == f"ERROR {text}"
    with lab.open("a", _check=True) as disk:
        result = disk.node.check(fix_errors=True, report=texts.append)
    assert result["corruptions-fixed"] == 1 and result["corruptions"] == 1 and f"Repairing {text}" in texts


def test_a_flag_of_an_entry_for_no_table_is_wrong(lab):
    """QEMU takes the header for the table then."""
    _written(lab)
    with lab.open("a", read_only=True) as disk:
        l1 = disk.node.image.header.l1_offset
    _patch(lab, l1, layout.COPIED.to_bytes(8, "big"))
    text = f"OFLAG_COPIED L2 cluster: l1_index=0 l1_entry={layout.COPIED:x} refcount=0"
    texts = []
    with lab.open("a", read_only=True, _check=True) as disk:
        assert disk.node.check(report=texts.append)["corruptions"] == 1
    assert f"ERROR {text}" in texts
    with lab.open("a", _check=True) as disk:
        result = disk.node.check(fix_errors=True, fix_leaks=True, report=texts.append)
    assert result["corruptions-fixed"] == 1 and f"Repairing {text}" in texts
    with lab.open("a") as disk:
        assert disk.node.check().keys().isdisjoint({"leaks", "corruptions"})
    assert Path(lab.path("a")).read_bytes()[l1 : l1 + 8] == bytes(8)


def test_a_compressed_cluster_lies_behind_its_table(lab):
    lab.create("a", size=1 << 20)
    with lab.open("a") as disk:
        disk.node.write_compressed(0, bytes(range(256)) * (CLUSTER // 256))
    with lab.open("a", read_only=True) as disk:
        image = disk.node.image
        table = image.tables.l1[0] & layout.OFFSET_MASK
        place, _size = layout.compressed_place(image.tables.find(0).words[0], 16)
    assert place == table + CLUSTER


@pytest.mark.parametrize("damage", ["table entry gone", "table entry wild", "block shared"])
def test_refcount_structures_are_rebuilt(lab, damage):
    block, _l2, data = _written(lab)
    content = {
        "table entry gone": 0,
        "table entry wild": block + 0x700,
        "block shared": data,
    }[damage]
    _patch(lab, CLUSTER, content.to_bytes(8, "big"))
    with lab.open("a", _check=True) as disk:
        assert disk.node.check().get("corruptions")
        texts = []
        disk.node.check(fix_leaks=True, fix_errors=True, report=texts.append)
        assert "Rebuilding refcount structure" in texts
        result = disk.node.check()
        assert "corruptions" not in result and "leaks" not in result
    with lab.open("a") as disk:
        assert disk.read(0, 4000) == b"data" * 1000
        disk.write(CLUSTER * 3, b"more")
        assert disk.read(CLUSTER * 3, 4) == b"more"


def test_a_write_that_would_hit_metadata_marks_the_image_corrupt(lab, capsys):
    block, l2, _data = _written(lab)
    _patch(lab, l2, (layout.COPIED | l2).to_bytes(8, "big"))  # guest cluster 0 lies in its own L2 table
    events = []
    with lab.open("a", node_name="disk") as disk:
        disk.layer.emit_from_request = lambda name, data: events.append((name, data))
        with pytest.raises(QobraError, match="overlaps with active L2 table"):
            disk.write(512, b"x" * 512)
        for request in (
            lambda: disk.read(0, 512),
            lambda: disk.write(5 * CLUSTER, b"x"),
            lambda: disk.backend.discard(CLUSTER, CLUSTER),
        ):
            with pytest.raises(QobraError, match="Image is corrupt"):
                request()
    assert events == [
        (
            "BLOCK_IMAGE_CORRUPTED",
            {
                "device": "",
                "node-name": "disk",
                "msg": "Preventing invalid write on metadata (overlaps with active L2 table)",
                "fatal": True,
                "offset": l2 + 512,
                "size": 512,
            },
        )
    ]
    assert "Marking image as corrupt" in capsys.readouterr().err
    with pytest.raises(QobraError, match="qcow2: Image is corrupt; cannot be opened read/write"):
        lab.open("a")
    with lab.open("a", read_only=True) as disk:
        assert disk.node.info()["format-specific"]["data"]["corrupt"]
    del block


@pytest.mark.parametrize("place", [0, 4096], ids=["where data is", "where none is yet"])
def test_a_subcluster_that_is_metadata_is_not_written(lab, place):
    _block, l2, _data = _written(lab, extended_l2=True)
    _patch(lab, l2, (layout.COPIED | l2).to_bytes(8, "big"))
    before = Path(lab.path("a")).read_bytes()[l2 : l2 + CLUSTER]
    with lab.open("a") as disk:
        disk.layer.emit_from_request = lambda _name, _data: None
        with pytest.raises(QobraError, match="overlaps with active L2 table"):
            disk.write(place, b"x" * 512)
    assert Path(lab.path("a")).read_bytes()[l2 : l2 + CLUSTER] == before


def test_places_that_were_found_before_an_image_was_marked_corrupt_are_not_used(lab):
    _block, l2, _data = _written(lab)
    _patch(lab, l2 + 8, (layout.COPIED | l2).to_bytes(8, "big"))
    with lab.open("a") as disk:
        disk.layer.emit_from_request = lambda _name, _data: None
        table = disk.backend.table()
        table.fill(0, 1)
        assert table.pages[0][0]
        with pytest.raises(QobraError, match="overlaps"):
            disk.write(CLUSTER, b"x")
        assert not table.pages or not table.pages[0][0]


def test_a_refcount_block_that_is_an_l2_table_too_is_not_changed(lab):
    block, _l2, _data = _written(lab)
    l1 = int.from_bytes(Path(lab.path("a")).read_bytes()[40:48], "big")
    _patch(lab, l1, (layout.COPIED | block).to_bytes(8, "big"))
    before = Path(lab.path("a")).read_bytes()[block : block + CLUSTER]
    with lab.open("a") as disk:
        disk.layer.emit_from_request = lambda _name, _data: None
        with pytest.raises(QobraError, match=r"invalid write on metadata \(overlaps with refcount block\)"):
            disk.write(CLUSTER, b"x")
    assert Path(lab.path("a")).read_bytes()[block : block + CLUSTER] == before


def test_the_overlap_check_can_be_switched_off(lab):
    _block, l2, _data = _written(lab)
    _patch(lab, l2, (layout.COPIED | l2).to_bytes(8, "big"))
    with lab.open("a", overlap_check="none") as disk:
        disk.write(0x1000, b"x" * 512)
    with pytest.raises(QobraError, match="Unsupported value 'some' for qcow2 option 'overlap-check'"):
        lab.open("a", overlap_check="some")


@pytest.mark.parametrize(("member", "value"), [(0, bytes(5) + b"\x40\x02\x00"), (8, b"\x10\x00\x00\x00")])
def test_nothing_is_written_where_the_l2_tables_of_a_snapshot_cannot_be_found(lab, capsys, member, value):
    _written(lab)
    with lab.open("a") as disk:
        disk.node.snapshot_create("s")
        table = disk.node.header.snapshot_offset
    _patch(lab, table + member, value)
    with lab.open("a") as disk:
        leaks = disk.node.check()["leaks"]
    with lab.open("a", overlap_check={"inactive-l2": True}) as disk:
        before = disk.read(0, 4096)
        for _ in range(2):
            with pytest.raises(QobraError, match="Snapshot L1 table"):
                disk.write(0, b"y" * 4096)
            with pytest.raises(QobraError, match="Snapshot L1 table"):
                disk.write(0x4000, b"y" * 4096)
        assert disk.read(0, 4096) == before
        assert not disk.node.info()["format-specific"]["data"]["corrupt"]
        assert disk.node.check()["leaks"] == leaks
    assert "Marking image as corrupt" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (layout.COPIED | 0x50200, r"Data cluster offset 0x50200 unaligned \(guest offset: 0x200\)"),
        (
            layout.COPIED | 0x50200 | 1,
            "Preallocated zero cluster offset 0x50200 unaligned",
        ),
        (layout.COPIED | 1 << 50, "past the end of the image file"),
    ],
)
def test_entries_that_cannot_be(lab, entry, text):
    _block, l2, _data = _written(lab)
    _patch(lab, l2, entry.to_bytes(8, "big"))
    with lab.open("a") as disk, pytest.raises(QobraError, match=text):
        disk.write(512, b"x" * 512)


def test_past_the_end_of_a_file_that_cannot_grow_is_no_space(lab):
    _written(lab)
    layer = BlockLayer()
    file = {"driver": "raw", "size": 0x50000, "file": {"driver": "file", "filename": lab.path("a")}}
    layer.add_node({"driver": "qcow2", "node-name": "short", "file": file})
    backend = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    backend.insert(layer.find_node("short"))
    with pytest.raises(OSError) as caught:
        backend.write(0, b"x" * 512)
    assert caught.value.errno == errno.ENOSPC
    backend.remove()
    layer.close()
    with lab.open("a") as disk:  # and the image is not corrupt
        disk.write(0, b"x" * 512)


def test_a_dirty_image_is_repaired_when_it_is_opened_for_writing(lab):
    lab.create("a", size=1 << 20, lazy_refcounts=True)
    with lab.open("a", recording=True) as disk:
        disk.write(0, b"data" * 1000)
        disk.backend.flush()
        assert disk.node.header.incompatible & layout.DIRTY
        with open(lab.path("a"), "rb") as file:
            crashed = file.read()
    with open(lab.path("a"), "wb") as file:
        file.write(crashed)
    with lab.open("a", read_only=True) as disk:
        assert disk.node.info()["dirty-flag"] and disk.node.check()["corruptions"]
    with lab.open("a") as disk:
        assert disk.read(0, 4000) == b"data" * 1000 and not disk.node.info()["dirty-flag"]
    with lab.open("a", read_only=True) as disk:
        result = disk.node.check()
    assert "corruptions" not in result and "leaks" not in result


CACHES = [
    (
        {
            "cache_size": 1 << 20,
            "l2_cache_size": 1 << 19,
            "refcount_cache_size": 1 << 19,
        },
        "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
    ),
    (
        {"cache_size": 1 << 16, "l2_cache_size": 1 << 20},
        "l2-cache-size may not exceed cache-size",
    ),
    (
        {"cache_size": 1 << 16, "refcount_cache_size": 1 << 20},
        "refcount-cache-size may not exceed cache-size",
    ),
    ({"cache_size": 1 << 62}, "Refcount cache size too big"),
    ({"cache_size": 1 << 62, "l2_cache_size": 1 << 62}, "Refcount cache size too big"),
    ({"cache_size": 1 << 62, "refcount_cache_size": 1 << 61}, "L2 cache size too big"),
    ({"refcount_cache_size": 1 << 62}, "Refcount cache size too big"),
    (
        {"l2_cache_entry_size": 1000},
        "L2 cache entry size must be a power of two between 512 and the cluster size",
    ),
]


@pytest.mark.parametrize(("options", "text"), CACHES)
def test_cache_sizes_that_contradict_one_another(lab, options, text):
    lab.create("a", size=1 << 20)
    with pytest.raises(QobraError, match=text):
        lab.open("a", **options)


def test_cache_sizes_share_what_there_is():
    """L2 tables come first, as far as the disk has such, but for the least that counts need."""
    header = Header()
    header.size = 1 << 30
    for total, expected in ((1 << 20, (128 << 10, (1 << 20) - (128 << 10))), (320 << 10, (64 << 10, 256 << 10))):
        sizes = cache_sizes(header, {"cache-size": total})
        assert (sizes.l2, sizes.refcount) == expected


def test_runs_in_a_table_are_what_a_slow_look_finds():
    from qobra.block.format.qcow2.runs import table_runs

    step = CLUSTER
    for seed in range(40):
        chosen = random.Random(seed)
        words = [0] * 256
        for _ in range(chosen.randrange(12)):
            at, length = chosen.randrange(256), chosen.randrange(1, 60)
            first = (
                chosen.choice([0, layout.COPIED])
                | chosen.choice([1 << 40, 1 << 48, 5 << 16, 1 << 55])
                | chosen.randrange(2)
            )
            for number in range(at, min(256, at + length)):
                words[number] = first + (number - at) * step
        slow, index = [], 0
        while index < 256:
            stop = index + 1
            if words[index]:
                while stop < 256 and words[stop] and words[stop] == words[stop - 1] + step:
                    stop += 1
                slow.append((index * 8, stop - index, words[index]))
            index = stop
        found = list(table_runs(struct.pack(">256Q", *words), step))
        assert found == slow


def test_refcounts_of_fragmented_snapshots(lab):
    """Clusters written in random order, shared, freed and written again."""
    chosen = random.Random(8)
    lab.create("a", size=8 << 20, cluster_size=4096)
    model = {}
    with lab.open("a", discard="unmap") as disk:
        for round in range(4):
            for at in chosen.sample(range(2048), 300):
                disk.write(at * 4096, bytes((round + 1,)) * 4096)
            model[f"s{round}"] = disk.content()
            disk.node.snapshot_create(f"s{round}")
        disk.node.snapshot_delete(None, "s1")
        disk.node.snapshot_apply("s2")
        disk.node.snapshot_delete(None, "s0")
        assert disk.content() == model["s2"]
        disk.write(0, b"on")
    with lab.open("a", read_only=True) as disk:
        result = disk.node.check()
        assert "corruptions" not in result and "leaks" not in result
        disk.node.snapshot_load("s3")
        assert disk.content() == model["s3"]


def test_an_image_that_lost_its_refcount_table_is_opened_to_be_repaired_only(lab):
    path = lab.create("a", size=1 << 20)
    with lab.open("a") as disk:
        disk.write(70000, b"kept")
    with open(path, "r+b") as file:
        file.seek(56)
        file.write(bytes(4))
    with pytest.raises(QobraError, match="Image does not contain a reference count table"):
        lab.open("a")
    with lab.open("a", _check=True) as disk:
        disk.node.check(fix_leaks=True, fix_errors=True)
    with lab.open("a") as disk:
        assert disk.read(70000, 4) == b"kept"
        assert disk.node.check().keys().isdisjoint({"leaks", "corruptions"})


def test_a_count_that_its_width_cannot_hold_needs_a_wider_one(lab):
    _block, l2, data = _written(lab, refcount_bits=1)
    _patch(lab, l2 + 8, (data | layout.COPIED).to_bytes(8, "big"))  # the next guest cluster lies there too
    texts = []
    with lab.open("a", _check=True) as disk:
        result = disk.node.check(fix_errors=True, fix_leaks=True, report=texts.append)
        assert result["corruptions"] and any(text.startswith("ERROR: overflow cluster offset=") for text in texts)
        disk.node.amend({"refcount-bits": 2})
    with lab.open("a", _check=True) as disk:
        disk.node.check(fix_errors=True, fix_leaks=True)
        assert disk.node.check().keys().isdisjoint({"leaks", "corruptions"})
    with lab.open("a") as disk:
        disk.write(0, b"own!")
        assert disk.read(65536, 4) == b"data"


@pytest.mark.parametrize("lies_on", ["refcount table", "refcount block", "active L1 table"])
def test_an_l2_table_that_is_other_metadata_too_is_not_changed(lab, lies_on):
    lab.create("a", size=1 << 20)
    with lab.open("a") as disk:
        disk.write(0, b"x")
        header = disk.node.header
        places = {"refcount table": header.reftable_offset, "active L1 table": header.l1_offset}
        place = places.get(lies_on, disk.node.image.refcounts.table[0])
    _patch(lab, header.l1_offset, (layout.COPIED | place).to_bytes(8, "big"))
    before = Path(lab.path("a")).read_bytes()
    with lab.open("a", discard="unmap") as disk:
        disk.layer.emit_from_request = lambda _name, _data: None
        with pytest.raises(QobraError, match=f"overlaps with {lies_on}"):
            disk.backend.discard(0, 1 << 16)
    assert Path(lab.path("a")).read_bytes()[1 << 16 :] == before[1 << 16 :]
