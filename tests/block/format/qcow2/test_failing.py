"""Requests that fail in the middle (blkdebug makes them), what is on disk then, and what is said of damage."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qobra.block.export.nbd.places import unit_place
from qobra.block.format.qcow2 import layout, snapshot_ops
from qobra.block.node import drivers
from qobra.cli import io
from qobra.errors import QobraError
from qobra.testing.images import Disk

CLUSTER = 1024


def _broken(lab, event, *, once=True, state=None):
    """The image ``a`` over blkdebug, which fails what comes after ``event``."""
    rule = {"event": event, "errno": 5, "once": once}
    more = {}
    if state is not None:
        more["set-state"] = [{"event": event, "new_state": state}]
        rule["state"] = state
    file = {"driver": "file", "filename": lab.path("a")}
    return lab.open("a", file={"driver": "blkdebug", "image": file, "inject-error": [rule], **more})


def _check(lab):
    with lab.open("a", read_only=True) as disk:
        return disk.node.check()


@pytest.mark.parametrize(
    "event", ["l2_alloc_write", "refblock_load", "refblock_alloc", "cluster_alloc", "write_aio", "l2_update"]
)
def test_a_write_that_fails_leaves_nothing_behind(lab, event):
    lab.create("a", size=1 << 20, cluster_size=CLUSTER)
    disk = _broken(lab, event)
    disk.backend.writeback = False
    with pytest.raises((OSError, QobraError)):
        disk.write(0, b"x" * (4 * CLUSTER))
    disk.write(8 * CLUSTER, b"y" * CLUSTER)
    disk.close()
    result = _check(lab)
    assert "corruptions" not in result and "leaks" not in result
    with lab.open("a", read_only=True) as disk:
        assert disk.read(8 * CLUSTER, CLUSTER) == b"y" * CLUSTER


@pytest.mark.parametrize("external", [False, True])
def test_zeroes_that_fail_half_way_are_not_written_under(lab, monkeypatch, external):
    """What knows places must forget those of clusters that were freed before something went wrong."""
    lab.create("a", size=1 << 20, cluster_size=CLUSTER, **({"data_file": "data"} if external else {}))
    with lab.open("a", discard="unmap") as disk:
        disk.write(0, b"x" * (1 << 19))
        image = disk.node.image
        table = disk.backend.table()
        table.fill(0, 1 << 19)
        assert unit_place(table, 0, 512, to_write=True)[0] >= 0

        def fail(*_arguments):
            raise OSError(errno.EIO, "Input/output error")

        if external:
            monkeypatch.setattr(image.data, "discard", fail)
        else:
            calls = iter([lambda: None, fail])
            monkeypatch.setattr(image.writeback, "commit_if_crowded", lambda: next(calls)())
        with pytest.raises(OSError):
            disk.node.write_zeroes(0, 1 << 19, may_unmap=True)
        monkeypatch.undo()
        assert unit_place(table, 0, 512, to_write=True)[0] < 0
        assert disk.read(0, 512) == bytes(512)


def test_a_new_table_is_not_read_before_it_is_used(lab):
    lab.create("a", size=1 << 20, cluster_size=CLUSTER)
    with _broken(lab, "l2_load") as disk:
        disk.write(0, b"x" * CLUSTER)
    disk = _broken(lab, "l2_load")
    with pytest.raises(OSError):
        disk.read(0, CLUSTER)
    disk.close()


@pytest.mark.parametrize(
    ("event", "leaks"), [("l1_grow_alloc_table", 0), ("l1_grow_write_table", 0), ("l1_grow_activate_table", 1)]
)
def test_a_table_that_cannot_grow_stays_as_it_is(lab, event, leaks):
    lab.create("a", size=1 << 17, cluster_size=CLUSTER)
    with lab.open("a") as disk:
        disk.write(0, b"here")
    with _broken(lab, event) as disk:
        entries = disk.node.header.l1_entries
        with pytest.raises((OSError, QobraError)):
            disk.node.truncate(1 << 30)
        assert disk.node.header.l1_entries == entries == len(disk.node.image.tables.l1)
        disk.write(CLUSTER, b"there")
    result = _check(lab)
    assert "corruptions" not in result and bool(result.get("leaks")) == bool(leaks)
    with lab.open("a", read_only=True) as disk:
        assert disk.read(0, 4) == b"here" and disk.read(CLUSTER, 5) == b"there"


def test_what_was_written_is_flushed_when_the_image_is_closed(lab, capsys):
    lab.create("a", size=1 << 20)
    disk = _broken(lab, "write_aio", once=False)
    with pytest.raises(OSError):
        disk.write(0, b"x" * 512)
    with pytest.raises(QobraError, match="Failed to flush the L2 table cache: Input/output error") as caught:
        disk.close()
    assert caught.value.__notes__ == ["Failed to flush the refcount block cache: Input/output error"]
    assert not capsys.readouterr().err  # how much of it is told is for the program to say
    _broken(lab, "l2_load", once=False).close()  # nothing was written


def test_a_file_is_flushed_when_it_is_closed_if_it_was_written(lab, monkeypatch):
    lab.create("a", "raw", size=1 << 20)
    flushed = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    with lab.open("a", driver="raw") as disk:
        disk.read(0, 512)
    assert not flushed
    with lab.open("a", driver="raw") as disk:
        disk.write(0, b"x")
    assert flushed


def test_the_saved_state_is_written_through_where_all_is(lab, capsys):
    lab.create("a", size=1 << 20, cluster_size=CLUSTER)
    config = lab.path("rules")
    with open(config, "w") as file:
        file.write('[inject-error]\nevent = "l2_update"\nerrno = "5"\nonce = "on"\n')
    name = f"blkdebug:{config}:{lab.path('a')}"
    assert io.main(["-t", "writethrough", "-c", "write -b 0 4k", name]) == 1
    assert "write failed: Input/output error" in capsys.readouterr().out
    lab.create("a", size=1 << 20, cluster_size=CLUSTER)
    assert io.main(["-c", "write -b 0 4k", name]) == 1  # noticed when it is closed
    assert "wrote 4096/4096" in capsys.readouterr().out


def test_lazy_counts_of_tables_are_not_late(lab):
    """A process that was killed leaves at most its data uncounted."""
    lab.create("a", size=1 << 20, lazy_refcounts=True)
    disk = lab.open("a")
    disk.write(0, b"data" * 1000)
    disk.backend.flush()
    with open(lab.path("a"), "rb") as source, open(lab.path("b"), "wb") as copy:
        copy.write(source.read())
    disk.close()
    with lab.open("b", read_only=True) as disk:
        found = []
        assert disk.node.check(report=found.append)["corruptions"] == 2
        data = disk.node.map(0, 512)[0].offset >> 16
    entry = layout.COPIED | data << 16
    assert found == [
        f"ERROR cluster {data} refcount=0 reference=1",
        f"ERROR OFLAG_COPIED data cluster: l2_entry={entry:x} refcount=0",
    ]


def test_zero_clusters_between_data_are_written_where_they_lie_in_one_go(lab):
    lab.create("a", size=8 << 16)
    with lab.open("a") as disk:
        disk.write(0, b"a" * (4 << 16))
        before = disk.node.map(0, 4 << 16)
        disk.backend.write_zeroes(1 << 16, 2 << 16)
    # The second write to data would fail: there is none.
    file = {"driver": "file", "filename": lab.path("a")}
    rules = {
        "set-state": [{"event": "write_aio", "new_state": 2}],
        "inject-error": [{"event": "write_aio", "state": 2}],
    }
    with lab.open("a", file={"driver": "blkdebug", "image": file, **rules}) as disk:
        disk.write(512, b"b" * ((4 << 16) - 1024))
    with lab.open("a") as disk:
        after = disk.node.map(0, 4 << 16)
        assert [(each.length, each.offset) for each in after] == [(each.length, each.offset) for each in before]
        assert disk.read(0, 4 << 16) == b"a" * 512 + b"b" * ((4 << 16) - 1024) + b"a" * 512
    # From within a zero cluster into data, and out of data into a zero cluster.
    for start, end in ((3 << 15, 7 << 15), (1 << 15, 5 << 15)):
        with lab.open("a") as disk:
            disk.write(0, b"a" * (4 << 16))
            disk.backend.write_zeroes(1 << 16, 2 << 16)
            disk.write(start, b"c" * (end - start))
            want = bytearray(b"a" * (1 << 16) + bytes(2 << 16) + b"a" * (1 << 16))
            want[start:end] = b"c" * (end - start)
            assert disk.read(0, 4 << 16) == bytes(want)
    assert "leaks" not in _check(lab)


def test_the_clusters_of_an_outgrown_table_are_used_again(lab):
    """A table of one cluster of 512 bytes counts 2 MiB with 64-bit counts; a new one takes its place."""
    lab.create("a", size=4 << 20, cluster_size=512, refcount_bits=64)
    with lab.open("a") as disk:
        old = disk.node.header.reftable_offset >> 9
        disk.write(0, b"x" * (3 << 20))
        assert disk.node.header.reftable_offset >> 9 != old
        assert disk.node.image.refcounts.get(old) == 1
    assert "leaks" not in _check(lab)


def _zero(lab, offset, length):
    with open(lab.path("a"), "r+b") as file:
        file.seek(offset)
        file.write(bytes(length))


@pytest.mark.parametrize(
    ("lost", "before", "action", "text"),
    [
        ("block", 0, "write", "Preventing invalid allocation of L2 table at offset 0"),
        ("header", 1, "write", "Preventing invalid write on metadata (overlaps with qcow2_header)"),
        ("block", 1, "write_compressed", "Preventing invalid allocation of compressed cluster at offset 0"),
        ("table", 0, "write", "Preventing invalid write on metadata (overlaps with refcount table)"),
        ("table", 1, "write", "Preventing invalid allocation of refcount block at offset 0"),
    ],
)
def test_what_would_go_over_the_header_is_named(lab, lost, before, action, text):
    """``lost`` counts say that the header is free; ``before``: the first cluster has been written already."""
    lab.create("a", size=1 << 20)
    with lab.open("a") as disk:
        if before:
            disk.write(0, b"x" * (1 << 16))
        image = disk.node.image
        block, table = image.refcounts.table[0], image.header.reftable_offset
    _zero(lab, *{"block": (block, 1 << 16), "table": (table, 8), "header": (block, 2)}[lost])
    disk = lab.open("a")
    with pytest.raises(QobraError) as caught:
        if action == "write":
            disk.write(1 << 16 if lost == "header" else 0, b"y" * (1 << 17))
        else:
            disk.node.write_compressed(1 << 16, b"y" * (1 << 16))
    assert str(caught.value) == text
    disk.close()


def test_new_clusters_go_on_where_the_request_is(lab):
    lab.create("a", size=1 << 20)
    with lab.open("a") as disk:
        disk.write(0, b"x" * (3 << 16))
        disk.node.forget_range(1, 2)
        disk.write(1 << 19, b"y")  # takes the free one
        disk.node.forget_range(8, 9)
        disk.backend.flush()
        disk.backend.flush()
        disk.write(2 << 16, b"z" * (2 << 16))
        places = [each for each in disk.node.map(0, 4 << 16) if each.child is not None]
        assert [each.length >> 16 for each in places] == [1, 2]
    assert "leaks" not in _check(lab)


@pytest.mark.parametrize("bits", [1, 16, 64])
def test_refcount_blocks_lie_behind_what_they_were_made_for(lab, bits):
    lab.create("a", size=16 << 20, cluster_size=512, refcount_bits=bits)
    with lab.open("a") as disk:
        per_block = disk.node.image.refcounts.entries_per_block
        size = min(3 * per_block * 512, 8 << 20)
        disk.write(0, b"x" * size)
        disk.backend.flush()
        table = disk.node.image.refcounts.table
        assert all(entry >> 9 >= index * per_block for index, entry in enumerate(table) if entry)
    result = _check(lab)
    assert "leaks" not in result and "corruptions" not in result


def _put(lab, offset, data):
    with open(lab.path("a"), "r+b") as file:
        file.seek(offset)
        file.write(data)


def _repair(lab):
    found = []
    with lab.open("a", _check=True) as disk:
        result = disk.node.check(fix_leaks=True, fix_errors=True, report=found.append)
    return result, found


@pytest.mark.parametrize(
    ("offset", "counted", "said"),
    [
        (1 << 20, True, []),
        (1 << 20, False, ["ERROR cluster 16 refcount=0 reference=1", "Rebuilding refcount structure"]),
        (1 << 45, False, ["ERROR could not resize image: Invalid argument", "Rebuilding refcount structure"]),
        (0x7FFFFFFFFFFF0000, False, ["ERROR could not resize image: Invalid argument"]),
    ],
)
def test_a_refcount_block_past_the_end_is_given_its_place(lab, offset, counted, said):
    lab.create("a", size=1 << 20)
    with lab.open("a") as disk:
        table, block = disk.node.header.reftable_offset, disk.node.image.refcounts.table[0]
    _put(lab, table + 8, offset.to_bytes(8, "big"))
    if counted:
        _put(lab, block + 2 * (offset >> 16), b"\0\1")
    result, found = _repair(lab)
    assert found[0] == "Repairing refcount block 1 is outside image"
    assert found[1 : 1 + len(said)] == said
    assert "corruptions" not in result and "leaks" not in result
    assert os.path.getsize(lab.path("a")) < 1 << 22


def test_a_refcount_block_past_the_end_is_no_matter_where_only_leaks_are_repaired(lab):
    lab.create("a", size=1 << 20)
    with lab.open("a") as disk:
        table = disk.node.header.reftable_offset
    _put(lab, table + 40, (1 << 40).to_bytes(8, "big"))
    found = []
    with lab.open("a", _check=True) as disk:
        result = disk.node.check(fix_leaks=True, report=found.append)
    assert found == ["ERROR refcount block 5 is outside image"]
    assert result["corruptions"] == 1 and "leaks" not in result


def test_new_refcount_structures_fill_holes(lab):
    """A full image that cannot grow (as a device), but for one cluster at its beginning, and three further on."""
    lab.create("a", size=9 << 20, cluster_size=512)
    with lab.open("a") as disk:
        disk.write(0, b"x" * (8 << 20))
        disk.backend.flush()
        data = disk.node.map(4096, 512)[0].offset
        disk.node.discard_unmap = disk.node.pass_discard = False
        disk.node.forget_range(0, 1)
        disk.node.forget_range(8, 11)
        block = disk.node.image.refcounts.table[0]
    size = os.path.getsize(lab.path("a"))
    _put(lab, block, b"\0\0")
    result, found = _repair(lab)
    assert found[:2] == ["ERROR cluster 0 refcount=0 reference=1", "Rebuilding refcount structure"]
    assert "corruptions" not in result and "leaks" not in result
    with lab.open("a", read_only=True) as disk:
        assert disk.node.header.reftable_offset == data
        assert disk.node.image.refcounts.table[0] < data
        assert all(entry >> 9 >= index * 256 for index, entry in enumerate(disk.node.image.refcounts.table) if entry)
    assert os.path.getsize(lab.path("a")) - size < 512 * 70  # the blocks of what is full
    assert _check(lab).keys() & {"leaks", "corruptions"} == set()


def test_an_image_is_made_in_a_file_without_making_it_shorter(lab):
    with open(lab.path("old"), "wb") as file:
        file.write(b"old" * 1000000)
    layer_size = os.path.getsize(lab.path("old"))
    with lab.open("old", driver="raw") as disk:
        file = disk.node.file
        drivers.find("qcow2").create({"driver": "qcow2", "file": file.node_name, "size": 1 << 20}, file)
    assert os.path.getsize(lab.path("old")) == layer_size
    with lab.open("old") as disk:
        disk.write(100, b"new")
        assert disk.read(0, 512) == bytes(100) + b"new" + bytes(409)


def test_an_image_that_is_emptied_shrinks_to_its_tables(lab):
    lab.create("b", size=1 << 20)
    with lab.open("b") as disk:
        disk.write(0, b"below" * 1000)
    lab.create("a", size=1 << 20, cluster_size=4096, backing_file=lab.path("b"), backing_fmt="qcow2")
    with lab.open("a") as disk:
        disk.write(0, b"above" * 100000)
        disk.node.write_compressed(600 * 1024, b"c" * 4096)
        with disk.layer.drained():
            disk.node.make_empty()
        assert disk.read(0, 5) == b"below"
        disk.node.write_compressed(700 * 1024, b"d" * 4096)
        disk.write(8192, b"again")
        assert disk.read(8192, 5) == b"again"
        assert disk.read(5000, 100) == bytes(100)
        assert os.path.getsize(lab.path("a")) < 1 << 16
        with disk.layer.drained():
            disk.node.snapshot_create("kept")
            disk.node.make_empty()
        assert disk.read(8192, 5) == bytes(5)
    result = _check(lab)
    assert "leaks" not in result and "corruptions" not in result


@pytest.mark.parametrize("event", ["l1_update", "empty_image_prepare", "reftable_update", "refblock_alloc"])
def test_what_an_emptying_leaves_that_fails_is_repaired(lab, event):
    lab.create("a", size=1 << 20)
    with lab.open("a") as disk:
        disk.write(0, b"x" * 100000)
    with _broken(lab, event, once=False) as disk:
        with disk.layer.drained(), pytest.raises(OSError):
            disk.node.make_empty()
        with pytest.raises(QobraError):
            disk.read(0, 512)
    with lab.open("a") as disk:
        assert not disk.node.header.incompatible
        assert event == "l1_update" or disk.read(0, 512) == bytes(512)
    result = _check(lab)
    assert "leaks" not in result and "corruptions" not in result


@pytest.mark.parametrize(
    ("offset", "text"),
    [
        (0xFFFFFF00000000, "Refblock at 0xffffff00000000 is not covered by the refcount structures"),
        (0x10000000000, "Refblock at 0x10000000000 is not covered by the refcount structures"),
    ],
)
def test_an_image_does_not_shrink_over_a_refcount_block_that_cannot_be(lab, capsys, offset, text):
    lab.create("a", size=1 << 20)
    with lab.open("a") as disk:
        table = disk.node.header.reftable_offset
    _put(lab, table + 8, offset.to_bytes(8, "big"))
    with lab.open("a") as disk:
        with pytest.raises(QobraError, match="Failed to discard unused refblocks: Input/output error"):
            disk.node.truncate(1 << 19)
        assert disk.node.length == 1 << 20
    assert f"Marking image as corrupt: {text};" in capsys.readouterr().err
    result, _found = _repair(lab)  # all that is left is the mark
    assert "corruptions" not in result and "corruptions-fixed" not in result
    with lab.open("a") as disk:
        disk.node.truncate(1 << 19)
        assert disk.node.length == 1 << 19


def test_counts_in_a_block_past_the_end_are_not_changed(lab):
    lab.create("a", size=1 << 20)
    with lab.open("a") as disk:
        table = disk.node.header.reftable_offset
    _put(lab, table, (1 << 40).to_bytes(8, "big"))
    disk = lab.open("a")
    refcounts = disk.node.image.refcounts
    assert refcounts.get(5) == 0
    with pytest.raises(QobraError, match="Refblock offset 0x10000000000 is past the end of the image file"):
        refcounts.add(5, 1, 1)
    assert refcounts.get(5) == 0
    disk.close()
    assert os.path.getsize(lab.path("a")) < 1 << 20


def test_damage_in_an_image_that_is_another_process_s_is_not_marked(lab):
    lab.create("a", size=1 << 20)
    with lab.open("a") as disk:
        l1 = disk.node.header.l1_offset
    _put(lab, l1, (0x2A2A2A00).to_bytes(8, "big"))
    with open(lab.path("a"), "rb") as file:
        before = file.read()
    with lab.open("a") as disk:
        disk.node.inactive = True
        with pytest.raises(QobraError, match="unaligned"):
            disk.read(0, 512)
        disk.node.ready = False
    with open(lab.path("a"), "rb") as file:
        assert file.read() == before


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"iotype": "write"}, "Could not write qcow2 header: Input/output error"),
        ({"iotype": "write", "sector": 128}, "Could not write refcount table: Input/output error"),
        ({"iotype": "write", "sector": 256}, "Could not write refcount table: Input/output error"),
        (
            {"iotype": "write", "sector": 384},
            "Could not resize image: Failed to grow the L1 table: Input/output error",
        ),
        ({"iotype": "flush"}, "Could not resize image: Failed to grow the L1 table: Input/output error"),
        ({"iotype": "read"}, "Could not read qcow2 header: Input/output error"),
    ],
)
def test_making_an_image_says_what_of_it_could_not_be_written(lab, rule, told):
    open(lab.path("a"), "wb").close()
    image = {"driver": "file", "filename": lab.path("a")}
    options = {"driver": "blkdebug", "image": image, "inject-error": [{"event": "none", **rule}]}
    with Disk(options) as disk, pytest.raises(QobraError) as failure:
        drivers.find("qcow2").create({"size": 1 << 20}, disk.node)
    assert str(failure.value) == told


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("metadata", "Could not resize image: Cannot resize fixed-size raw disks"),
        ("full", "Could not resize image: Failed to resize underlying file: Cannot resize fixed-size raw disks"),
    ],
)
def test_what_cannot_be_preallocated_is_told_after_all_else(lab, mode, told):
    with open(lab.path("a"), "wb") as file:
        file.truncate(8 << 20)
    options = {"driver": "raw", "size": 1 << 18, "file": {"driver": "file", "filename": lab.path("a")}}
    with Disk(options) as disk, pytest.raises(QobraError) as failure:
        drivers.find("qcow2").create({"size": 1 << 20, "preallocation": mode}, disk.node)
    assert str(failure.value) == told


def test_a_snapshot_that_cannot_be_marked_changes_nothing(lab, monkeypatch):
    lab.create("a", size=1 << 20)
    with lab.open("a") as disk:
        disk.write(0, b"x" * 65536)
    before = Path(lab.path("a")).read_bytes()
    with lab.open("a") as disk:
        writeback = disk.node.image.writeback

        def broken():
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(writeback, "barrier", broken)
            with pytest.raises(OSError, match="Input/output error"):
                disk.node.snapshot_create("s")
        assert not disk.node.snapshots.entries
    after = Path(lab.path("a")).read_bytes()
    assert [at for at in range(len(before)) if before[at] != after[at]] in ([], [79])  # the dirty bit at most


@pytest.mark.parametrize(
    ("step", "change"),
    [
        ("clear_copied", lambda node: node.snapshot_create("new")),
        ("_write_table", lambda node: node.snapshot_create("new")),
        ("set_copied", lambda node: node.snapshot_delete(None, "old")),
        ("clear_copied", lambda node: node.snapshot_apply("old")),
    ],
)
def test_counts_that_are_left_half_way_are_counted_anew(lab, monkeypatch, step, change):
    lab.create("a", size=1 << 20, cluster_size=CLUSTER)
    with lab.open("a") as disk:
        disk.write(0, b"x" * 65536)
        disk.node.snapshot_create("old")
        disk.write(0, b"y" * 32768)

    def broken(*_arguments):
        raise OSError(errno.EIO, "Input/output error")

    with lab.open("a") as disk, monkeypatch.context() as patch:
        patch.setattr(snapshot_ops, step, broken)
        with pytest.raises(OSError, match="Input/output error"):
            change(disk.node)
        disk.write(32768, b"z" * 16384)  # it is of use all the same
    with lab.open("a", read_only=True) as disk:
        assert disk.node.header.incompatible & layout.DIRTY
    with lab.open("a") as disk:
        disk.write(1 << 19, b"more")
        assert disk.read(0, 65536) == b"y" * 32768 + b"z" * 16384 + b"x" * 16384
    with lab.open("a", read_only=True) as disk:
        assert not disk.node.header.incompatible & layout.DIRTY
    result = _check(lab)
    assert "corruptions" not in result and "leaks" not in result


def test_what_could_not_be_marked_dirty_is_marked_later(lab, monkeypatch):
    lab.create("a", size=1 << 20, cluster_size=CLUSTER, lazy_refcounts=True)
    with lab.open("a") as disk:
        image = disk.node.image
        with monkeypatch.context() as patch:
            patch.setattr(image.writeback, "barrier", lambda: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                image.before_allocating()
        assert not image.header.incompatible & layout.DIRTY
        disk.write(0, b"x")
        assert image.header.incompatible & layout.DIRTY


def test_a_header_that_cannot_be_written_is_not_taken_for_the_one_on_disk(lab, monkeypatch):
    lab.create("a", size=1 << 20, cluster_size=CLUSTER)
    with lab.open("a") as disk:
        disk.write(0, b"x" * 65536)
        disk.node.snapshot_create("old")
        image = disk.node.image
        before = image.header.pack()
        monkeypatch.setattr(image.writeback, "write_header", lambda: 1 // 0)
        for change in (
            lambda: disk.node.snapshot_create("new"),
            lambda: disk.node.snapshot_delete(None, "old"),
            lambda: disk.node.snapshot_apply("old"),
        ):
            with pytest.raises(ZeroDivisionError):
                change()
            image.header.incompatible = 0
            assert image.header.pack() == before
