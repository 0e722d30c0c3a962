"""Creating, resizing, amending, snapshots and stored bitmaps."""

from __future__ import annotations

import errno
import os
import random

import pytest

from qobra.block.bitmap import DirtyBitmap
from qobra.block.extents import DATA, ZERO
from qobra.block.format.qcow2 import Qcow2Node, layout
from qobra.block.layer import BlockLayer
from qobra.block.reopen import reopen
from qobra.errors import QobraError

CLUSTER = 65536
MIB = 1 << 20


def _noise(length, seed=1):
    return random.Random(seed).randbytes(length)


def _clean(lab, name="a"):
    with lab.open(name, read_only=True) as disk:
        result = disk.node.check()
    assert "corruptions" not in result and "leaks" not in result, result
    return result


REFUSED = [
    ({"size": 1000}, "Image size must be a multiple of 512 bytes"),
    (
        {"cluster_size": 3000},
        "Cluster size must be a power of two between 512 and 2048k",
    ),
    (
        {"cluster_size": 512, "extended_l2": True},
        "Extended L2 entries are only supported with cluster sizes of at",
    ),
    (
        {"version": "v2", "lazy_refcounts": True},
        "Lazy refcounts only supported with compatibility level 1.1 and above",
    ),
    (
        {"version": "v2", "refcount_bits": 8},
        "Different refcount widths than 16 bits require compatibility level 1.1",
    ),
    (
        {"refcount_bits": 7},
        "Refcount width must be a power of two and may not exceed 64 bits",
    ),
    ({"backing_fmt": "raw"}, "Backing format cannot be used without backing file"),
    ({"data_file_raw": True}, "data-file-raw requires data-file"),
    (
        {"preallocation": "full", "backing_file": "b"},
        "Backing file and preallocation can only be used at the same",
    ),
    (
        {"size": 1 << 50, "cluster_size": 512},
        "Could not resize image: Failed to grow the L1 table: File too large",
    ),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_creation_refuses(lab, options, text):
    with pytest.raises(QobraError) as error:
        lab.create("a", **{"size": MIB, **options})
    assert str(error.value).startswith(text)


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
def test_preallocation_maps_everything(lab, mode):
    lab.create("a", size=4 * MIB + 512, preallocation=mode)
    with lab.open("a") as disk:
        extents = disk.node.map(0, disk.node.length)
        assert [(extent.kind, extent.length) for extent in extents] == [(DATA, 4 * MIB + 512)]
        assert disk.content() == bytes(4 * MIB + 512)
    assert os.path.getsize(lab.path("a")) >= 4 * MIB
    if mode != "metadata":
        assert os.stat(lab.path("a")).st_blocks * 512 >= 4 * MIB
    assert _clean(lab)["allocated-clusters"] == 65


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_growing_reserves_the_rest_of_a_cluster_that_is_a_hole(lab, mode):
    size, more = 4 * MIB + 512, 32 << 10
    lab.create("a", size=size, preallocation="metadata")
    with lab.open("a") as disk:
        disk.node.truncate(size + more, preallocation=mode)
        before = os.stat(lab.path("a")).st_blocks
        disk.node.write(size, b"\1" * more)
        disk.node.flush()
        assert os.stat(lab.path("a")).st_blocks == before
        assert disk.content() == bytes(size) + b"\1" * more
    _clean(lab)


def test_growing_hides_what_a_longer_backing_file_has(lab):
    with open(lab.path("base"), "wb") as file:
        file.write(_noise(8 * CLUSTER))
    for version in ("v2", "v3"):
        lab.create(
            "a",
            size=2 * CLUSTER + 512,
            version=version,
            backing_file="base",
            backing_fmt="raw",
        )
        with lab.open("a") as disk:
            disk.node.truncate(10 * CLUSTER)
            assert disk.content() == _noise(8 * CLUSTER)[: 2 * CLUSTER + 512].ljust(10 * CLUSTER, b"\0")
        _clean(lab)


def test_shrinking_gives_space_back_and_forgets(lab):
    lab.create("a", size=32 * MIB, cluster_size=4096)
    with lab.open("a") as disk:
        disk.write(0, _noise(16 * MIB))
        before = os.path.getsize(lab.path("a"))
        disk.node.truncate(MIB + 512)
        assert os.path.getsize(lab.path("a")) < before // 4
        disk.node.truncate(4 * MIB)
        assert disk.content() == _noise(16 * MIB)[: MIB + 512].ljust(4 * MIB, b"\0")
        with pytest.raises(QobraError, match="Preallocation can't be used for shrinking an image"):
            disk.node.truncate(MIB, preallocation="full")
        with pytest.raises(QobraError, match="The new size must be a multiple of 512"):
            disk.node.truncate(MIB + 1)
    _clean(lab)


def test_snapshots_keep_and_bring_back(lab):
    lab.create("a", size=16 * CLUSTER)
    with lab.open("a") as disk:
        disk.write(0, _noise(4 * CLUSTER, 1))
        first = disk.content()
        disk.node.snapshot_create("one", now_ns=1_700_000_000_123_456_789)
        disk.write(CLUSTER, _noise(4 * CLUSTER, 2))
        disk.backend.write_zeroes(0, CLUSTER)
        second = disk.content()
        disk.node.snapshot_create("two")
        disk.node.snapshot_apply("one")
        assert disk.content() == first
        disk.write(0, b"z" * CLUSTER)
        disk.node.snapshot_apply("two")
        assert disk.content() == second
        listed = disk.node.snapshot_list()
        assert [(each["id"], each["name"]) for each in listed] == [
            ("1", "one"),
            ("2", "two"),
        ]
        assert (listed[0]["date-sec"], listed[0]["date-nsec"]) == (
            1_700_000_000,
            123_456_789,
        )
        with pytest.raises(QobraError, match="Can't find the snapshot"):
            disk.node.snapshot_apply("three")
    _clean(lab)
    with lab.open("a", read_only=True) as disk:
        disk.node.snapshot_load("1")
        assert disk.content() == first
    with lab.open("a") as disk:
        disk.node.snapshot_delete("1", None)
        disk.node.snapshot_delete(None, "two")
        assert disk.content() == second
        disk.write(5 * CLUSTER, b"in place again")
    _clean(lab)


def test_a_snapshot_leaves_no_place_that_was_found_before(lab):
    lab.create("a", size=4 * CLUSTER)
    with lab.open("a") as disk:
        disk.write(0, b"then" * 128)
        table = disk.backend.table()
        for change in (disk.node.snapshot_create, disk.node.snapshot_apply):
            table.fill(0, 1)
            assert table.pages[0][0]
            change("s")
            assert not table.pages or not table.pages[0][0]
            disk.write(0, b"now" * 171)


def test_what_only_a_deleted_snapshot_shared_is_written_in_place(lab):
    lab.create("a", size=4 * CLUSTER)
    with lab.open("a") as disk:
        disk.write(0, _noise(2 * CLUSTER))
        disk.node.snapshot_create("s")
        place = disk.node.map(0, CLUSTER)[0].offset
        disk.node.snapshot_delete(None, "s")
        disk.write(0, b"x")
        assert disk.node.map(0, CLUSTER)[0].offset == place
    _clean(lab)


def test_a_table_that_the_file_ends_in_is_zero_behind_its_end(lab):
    lab.create("a", size=4 * CLUSTER)
    with lab.open("a") as disk:
        disk.backend.write_zeroes(0, CLUSTER)
        table = disk.node.image.tables.l1[0] & layout.OFFSET_MASK
    os.truncate(lab.path("a"), table + 512)
    with lab.open("a") as disk:
        disk.node.snapshot_create("s")
        disk.write(CLUSTER, b"x" * CLUSTER)
        disk.node.snapshot_apply("s")
        assert disk.content() == bytes(4 * CLUSTER)
    _clean(lab)


def test_a_snapshot_may_have_another_size_and_a_machines_state(lab):
    lab.create("a", size=4 * CLUSTER)
    state = _noise(200_000, 9)
    with lab.open("a") as disk:
        disk.write(0, b"small")
        for start in range(0, len(state), 32768):
            disk.node.write_vm_state(start, state[start : start + 32768])
        disk.node.snapshot_create("s", vm_state_size=len(state), vm_clock=5_000_000_000)
        disk.node.truncate(64 * CLUSTER)
        disk.write(60 * CLUSTER, b"large")
        disk.node.snapshot_apply("s")
        assert disk.node.length == 4 * CLUSTER and disk.read(0, 5) == b"small"
        assert disk.node.read_vm_state(0, len(state)) == state
        assert disk.node.snapshot_list()[0]["vm-clock-sec"] == 5
    _clean(lab)


def test_one_bit_refcounts_have_no_room_for_snapshots(lab):
    lab.create("a", size=MIB, refcount_bits=1)
    with lab.open("a") as disk:
        disk.write(0, b"x")
        with pytest.raises(QobraError, match="overflow"):
            disk.node.snapshot_create("s")
        disk.write(CLUSTER, b"y")
    _clean(lab)


def test_the_name_of_a_data_file_can_be_changed_and_taken_away(lab):
    lab.create("a", size=MIB, data_file="data", data_file_raw=True)
    for name in ("elsewhere", ""):
        with lab.open("a") as disk:
            disk.node.amend({"data-file": name})
            assert disk.node.info()["format-specific"]["data"].get("data-file") == (name or None)
        with lab.open("a", data_file={"driver": "file", "filename": lab.path("data")}) as disk:
            assert disk.node.info()["format-specific"]["data"].get("data-file") == (name or None)
            disk.node.amend({"data-file": lab.path("data")})


def test_amend_changes_versions_and_widths(lab):
    with open(lab.path("base"), "wb") as file:
        file.write(_noise(MIB))
    lab.create("a", size=MIB, backing_file="base", backing_fmt="raw")
    with lab.open("a") as disk:
        disk.write(0, _noise(3 * CLUSTER))
        disk.backend.write_zeroes(CLUSTER, CLUSTER)
        disk.backend.write_zeroes(8 * CLUSTER, CLUSTER)
        disk.node.snapshot_create("s")
        disk.write(0, b"after")
        want = disk.content()
        disk.node.amend({"refcount-bits": 64})
        with pytest.raises(QobraError, match="compat=0.10 requires refcount_bits=16"):
            disk.node.amend({"version": "v2"})
        with pytest.raises(QobraError, match="Cannot decrease refcount entry width to 1 bits"):
            disk.node.amend({"refcount-bits": 1})
        disk.node.amend({"refcount-bits": 16, "lazy-refcounts": True})
        disk.node.amend({"version": "v2"})
        assert disk.content() == want and disk.node.info()["format-specific"]["data"]["compat"] == "0.10"
    _clean(lab)
    with lab.open("a") as disk:
        disk.node.amend({"version": "v3", "size": 2 * MIB})
        assert disk.content() == want + bytes(MIB)
        with pytest.raises(QobraError, match="Cannot amend the backing file"):
            disk.node.amend({"backing-file": "other"})
    _clean(lab)


def test_the_backing_file_can_be_changed(lab):
    lab.create("a", size=MIB, backing_file="base", backing_fmt="raw")
    open(lab.path("base"), "wb").close()
    with lab.open("a") as disk:
        disk.node.change_backing_file("elsewhere", "qcow2")
        with pytest.raises(QobraError, match="Backing file name too long"):
            disk.node.change_backing_file("x" * 1024, "raw")
    with lab.open("a", read_only=True, backing=None) as disk:
        assert (disk.node.backing_filename, disk.node.backing_format) == (
            "elsewhere",
            "qcow2",
        )


def _bitmap(disk, name, granularity=65536, **options):
    disk.node.check_new_bitmap(name, granularity)
    return DirtyBitmap(disk.node, name, granularity, persistent=True, **options)


def test_bitmaps_are_kept(lab):
    lab.create("a", size=64 * MIB, cluster_size=512)
    with lab.open("a") as disk:
        _bitmap(disk, "auto", 512)
        _bitmap(disk, "idle", 1 << 20, enabled=False).set(5 * MIB, MIB)
        _bitmap(disk, "gone")
        disk.write(32 * MIB - 512, b"x" * 1024)
    _clean(lab)
    with lab.open("a") as disk:
        bitmaps = disk.node.bitmaps
        assert list(bitmaps["auto"].dirty_ranges()) == [(32 * MIB - 512, 1024)] and bitmaps["auto"].enabled
        assert list(bitmaps["idle"].dirty_ranges()) == [(5 * MIB, MIB)] and not bitmaps["idle"].enabled
        disk.node.remove_stored_bitmap("gone")
        bitmaps["gone"].remove()
        disk.node.snapshot_create("s")
        disk.node.truncate(128 * MIB)
        disk.write(127 * MIB, b"y")
    _clean(lab)
    with lab.open("a", read_only=True) as disk:
        bitmaps = disk.node.bitmaps
        assert list(bitmaps) == ["idle", "auto"] and bitmaps["auto"].read_only
        assert list(bitmaps["auto"].dirty_ranges()) == [
            (32 * MIB - 512, 1024),
            (127 * MIB, 512),
        ]


@pytest.mark.parametrize("mode", ["off", "metadata"])
def test_growth_over_a_longer_backing_file_is_zero_to_its_end(lab, mode):
    with open(lab.path("base"), "wb") as file:
        file.write(_noise(4 * CLUSTER))
    lab.create("a", size=2 * CLUSTER, backing_file=lab.path("base"), backing_fmt="raw")
    with lab.open("a") as disk:
        disk.node.truncate(6 * CLUSTER, preallocation=mode)
        assert all(each.kind == ZERO for each in disk.node.map(2 * CLUSTER, 4 * CLUSTER))
        assert sum(each.length for each in disk.node.map(2 * CLUSTER, 4 * CLUSTER)) == 4 * CLUSTER
        if mode == "metadata":
            assert os.stat(lab.path("a")).st_size == 9 * CLUSTER  # five of metadata, and the new ones
    _clean(lab)


def test_a_table_goes_where_the_one_that_was_too_short_lay(lab):
    lab.create("a", size=MIB, cluster_size=512)
    with lab.open("a") as disk:
        freed = disk.node.header.l1_offset
        disk.node.truncate(64 * MIB)
        disk.write(0, b"x")
        assert disk.node.image.tables.l1[0] & layout.OFFSET_MASK == freed
    _clean(lab)


def test_the_image_ends_where_its_bitmap_directory_ends(lab):
    lab.create("a", size=4 * MIB, cluster_size=2 * MIB)
    with lab.open("a") as disk:
        _bitmap(disk, "b")
        header = disk.node.header
    assert os.stat(lab.path("a")).st_size == header.bitmaps[1] + header.bitmaps[2]
    _clean(lab)


def test_an_image_of_no_bytes_has_no_bitmaps(lab):
    """Nobody could read their tables; what they took is given back."""
    lab.create("a", size=4 * MIB)
    with lab.open("a") as disk:
        _bitmap(disk, "b").set(0, MIB)
    with lab.open("a") as disk:
        disk.node.truncate(0)
    _clean(lab)
    with lab.open("a") as disk:
        assert not disk.node.bitmaps


@pytest.mark.parametrize("passes", [False, True])
def test_space_that_is_freed_for_another_reason_goes_back_where_that_is_wanted(lab, passes):
    """A bitmap's table; its bits go back in any case."""
    lab.create("a", size=4 * MIB)
    with lab.open("a") as disk:
        _bitmap(disk, "b")
        disk.write(MIB, b"x")
    file = {"driver": "file", "filename": lab.path("a"), "discard": "unmap"}
    with lab.open("a", file=file, pass_discard_other=passes) as disk:
        table = disk.node.stored_bitmaps.entries[0].table_offset
        bits = int.from_bytes(disk.node.read_file(table, 8), "big")
        disk.node.bitmaps["b"].remove()
        disk.node.stored_bitmaps.remove("b")
    with open(lab.path("a"), "rb") as image:
        holes = {place: os.lseek(image.fileno(), place, os.SEEK_HOLE) == place for place in (table, bits)}
    assert holes == {table: passes, bits: True}


def test_bitmaps_are_inconsistent_after_a_crash(lab):
    lab.create("a", size=MIB)
    with lab.open("a") as disk:
        _bitmap(disk, "b")
    with lab.open("a") as disk:
        disk.write(0, b"x")
        disk.backend.flush()
        with open(lab.path("a"), "rb") as file:
            crashed = file.read()
    with open(lab.path("a"), "wb") as file:
        file.write(crashed)
    for _ in range(2):
        with lab.open("a") as disk:
            bitmap = disk.node.bitmaps["b"]
            assert bitmap.inconsistent and not bitmap.enabled
            with pytest.raises(QobraError, match="Bitmap 'b' is inconsistent"):
                disk.node.truncate(2 * MIB)
    with lab.open("a") as disk:
        disk.node.remove_stored_bitmap("b")
        disk.node.bitmaps["b"].remove()
    with lab.open("a", read_only=True) as disk:
        assert not disk.node.bitmaps
    _clean(lab)


def test_bitmaps_that_cannot_be_stored(lab):
    lab.create("a", size=MIB, version="v2")
    with lab.open("a", node_name="n") as disk:
        with pytest.raises(QobraError) as error:
            disk.node.check_new_bitmap("b", 65536)
        assert str(error.value) == (
            "Can't make bitmap 'b' persistent in 'n': Cannot store dirty bitmaps in qcow2 v2 files"
        )


def test_only_so_many_bitmaps_are_stored(lab, monkeypatch):
    lab.create("a", size=MIB)
    with lab.open("a", node_name="n") as disk:

        def refused(name):
            with pytest.raises(QobraError) as error:
                disk.node.check_new_bitmap(name, 65536)
            return str(error.value).removeprefix(f"Can't make bitmap '{name}' persistent in 'n': ")

        _bitmap(disk, "a")
        DirtyBitmap(disk.node, "not stored", 65536)
        monkeypatch.setattr(layout, "MAX_BITMAPS", 2)
        disk.node.check_new_bitmap("b", 65536)
        _bitmap(disk, "b")
        assert refused("c") == "Maximum number of persistent bitmaps is already reached"
        monkeypatch.setattr(layout, "MAX_BITMAPS", 3)
        monkeypatch.setattr(layout, "MAX_BITMAP_DIRECTORY_BYTES", 3 * 32)
        disk.node.check_new_bitmap("c" * 8, 65536)
        assert refused("c" * 9) == "Not enough space in the bitmap directory"


def test_reopening_read_only_stores_everything(lab):
    lab.create("a", size=MIB)
    file = {"driver": "file", "filename": lab.path("a"), "node-name": "file"}
    layer = BlockLayer()
    node = layer.add_node({"driver": "qcow2", "node-name": "n", "file": file})
    assert isinstance(node, Qcow2Node)
    DirtyBitmap(node, "b", 65536, persistent=True)
    node.write(0, b"x" * 512)
    options = {"driver": "qcow2", "node-name": "n", "file": "file"}
    reopen(layer, [{**options, "read-only": True}])
    with lab.open("a", read_only=True) as disk:
        assert disk.read(0, 512) == b"x" * 512 and list(disk.node.bitmaps["b"].dirty_ranges()) == [(0, 65536)]
    reopen(layer, [options])
    node.write(CLUSTER, b"y" * 512)
    layer.close()
    with lab.open("a", read_only=True) as disk:
        assert list(disk.node.bitmaps["b"].dirty_ranges()) == [(0, 2 * CLUSTER)]
    _clean(lab)


def test_caches_and_lazy_refcounts_can_be_changed_by_reopening(lab):
    lab.create("a", size=16 * MIB, cluster_size=4096)
    layer = BlockLayer()
    file = {"driver": "file", "filename": lab.path("a"), "node-name": "file"}
    node = layer.add_node({"driver": "qcow2", "node-name": "n", "file": file})
    assert isinstance(node, Qcow2Node)
    options = {"driver": "qcow2", "node-name": "n", "file": "file"}
    node.write(0, b"a" * MIB)
    reopen(layer, [{**options, "l2-cache-size": 4096, "l2-cache-entry-size": 512, "lazy-refcounts": True}])
    node.write(8 * MIB, b"b" * MIB)
    assert node.image.tables.slice_bytes == 512 and node.info()["dirty-flag"]
    with pytest.raises(QobraError, match="L2 cache entry size must be a power of two"):
        reopen(layer, [{**options, "l2-cache-entry-size": 700}])
    reopen(layer, [options])
    assert not node.info()["dirty-flag"] and node.read(8 * MIB, MIB) == b"b" * MIB
    layer.close()
    _clean(lab)


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("size", [10000, 31 << 10, 100 << 10, 200 << 10])
def test_growing_with_space_neither_hides_what_the_backing_file_has_nor_shows_more_of_it(lab, extended, size):
    with open(lab.path("base"), "wb") as file:
        file.write(b"b" * size)
    old, new = 31 << 10, 130 << 10
    lab.create("a", size=old, extended_l2=extended, backing_file=lab.path("base"), backing_fmt="raw")
    with lab.open("a") as disk:
        disk.node.truncate(new, preallocation="metadata")
        seen = min(size, old)
        assert disk.content() == b"b" * seen + bytes(new - seen)
        assert extended or all(extent.child is not None for extent in disk.node.map(0, new))
        assert disk.node.check().keys().isdisjoint({"leaks", "corruptions"})


def test_a_bitmap_that_has_not_changed_stays_where_it_is(lab):
    lab.create("a", size=64 * MIB)
    with lab.open("a") as disk:
        for name in ("one", "two"):
            _bitmap(disk, name, 512, enabled=False).set(5 * MIB, MIB)

    def places(disk):
        return {entry.name: entry.table_offset for entry in disk.node.stored_bitmaps.entries}

    for stored in (True, False):
        with lab.open("a", **({"_stored-bitmaps": True} if stored else {})) as disk:
            before = places(disk)
            disk.node.bitmaps["two"].set(0, MIB)
            disk.node.bitmaps["one"].enable()
        with lab.open("a", read_only=True) as disk:
            assert places(disk)["one"] == before["one"] and places(disk)["two"] != before["two"]
            assert list(disk.node.bitmaps["one"].dirty_ranges()) == [(5 * MIB, MIB)]
            assert disk.node.bitmaps["one"].enabled and not disk.node.bitmaps["two"].enabled
            assert list(disk.node.bitmaps["two"].dirty_ranges()) == [(0, MIB), (5 * MIB, MIB)]
        _clean(lab)
        with lab.open("a") as disk:
            disk.node.bitmaps["one"].disable()
            disk.node.bitmaps["two"].clear(0, MIB)
    with lab.open("a") as disk:
        disk.node.bitmaps["one"].enable()
        disk.write(0, b"x")
    with lab.open("a", read_only=True) as disk:
        assert list(disk.node.bitmaps["one"].dirty_ranges()) == [(0, 512), (5 * MIB, MIB)]


def test_bitmaps_that_have_not_changed_outlive_a_full_disk(lab, monkeypatch):
    """They are in use while the image is open, and what says that they are not any more needs no room."""
    lab.create("a", size=64 * MIB)
    with lab.open("a") as disk:
        for name in ("one", "two"):
            _bitmap(disk, name, 512).set(5 * MIB, MIB)
    with lab.open("a") as disk:
        file, stored = disk.node.image.file, disk.node.stored_bitmaps
        stored.mark_in_use()
        length, write = file.length, file.write

        def full(offset, data, **options):
            if offset >= length:
                raise OSError(errno.ENOSPC, "full")
            write(offset, data, **options)

        monkeypatch.setattr(file, "write", full)
        with pytest.raises(OSError, match="full"):
            disk.node.remove_stored_bitmap("one")
    with lab.open("a", read_only=True) as disk:
        assert [each["flags"] for each in disk.node.info()["format-specific"]["data"]["bitmaps"]] == [["auto"]] * 2
        assert list(disk.node.bitmaps["two"].dirty_ranges()) == [(5 * MIB, MIB)]


def test_preallocation_in_a_file_that_cannot_grow_says_so(lab, monkeypatch):
    from qobra.block.protocol.file import FileNode

    def refuse(_file, length, _preallocation, exact):
        assert not exact  # a file that is longer will do
        if length:
            raise QobraError("Cannot grow")

    monkeypatch.setattr(FileNode, "_truncate", refuse)
    with pytest.raises(QobraError, match="^Could not resize image: Cannot grow$"):
        lab.create("a", size=4 * MIB, preallocation="metadata")


def test_the_file_holds_all_of_its_last_cluster(lab):
    lab.create("a", size=4 * MIB)
    with lab.open("a") as disk:
        disk.write(MIB, _noise(512))
        place = disk.node.map(MIB, 512)[0].offset
    assert os.path.getsize(lab.path("a")) == place + CLUSTER
    with lab.open("a") as disk:
        assert disk.read(MIB, CLUSTER) == _noise(512) + bytes(CLUSTER - 512)
    _clean(lab)


def test_compressed_clusters_need_no_more_of_the_file_than_was_written(lab):
    lab.create("a", size=4 * MIB)
    before = os.path.getsize(lab.path("a"))
    with lab.open("a") as disk:
        disk.node.write_compressed(0, bytes(1000) + _noise(1000) + bytes(CLUSTER - 2000))
    assert before < os.path.getsize(lab.path("a")) % CLUSTER + before < before + 2000
