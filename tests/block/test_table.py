"""The flat table: what it keeps, and when it forgets."""

from __future__ import annotations

import os
import weakref
from array import array

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.bitmap import DirtyBitmap
from qobra.block.contracts import WriteTracker
from qobra.block.export.nbd.places import resolved
from qobra.block.extents import ABSENT, DATA, WRITABLE, ZERO, Extent, resolve
from qobra.block.filter.placing import insert_filter, remove_filter
from qobra.block.layer import BlockLayer
from qobra.block.node import BlockNode, drivers
from qobra.block.opening import Opening
from qobra.block.table import MAX_PAGES, PAGE_ENTRIES, ResolvedTable
from qobra.block.table_graph import MAX_MARKS
from qobra.native import compiled
from qobra.testing.images import ImageLab

UNIT = 65536


@drivers.register("test-scattered")
class _ScatteredNode(BlockNode):
    """Clusters of 64 KiB in the file in the order that ``places`` says; None is a hole."""

    driver = "test-scattered"

    def open(self, opening: Opening) -> None:
        opening.child("file", permissions.ROLE_DATA)
        self.places = [3, None, 1, 0]
        self.length = 4 * UNIT - 1000

    def map(self, offset, length, want_zero=True):
        extents = []
        end = offset + length
        while offset < end:
            size = min(UNIT - offset % UNIT, end - offset)
            place = self.places[offset // UNIT]
            if place is None:
                extents.append(Extent(size, ZERO))
            else:
                extents.append(Extent(size, DATA, self.file, place * UNIT + offset % UNIT, WRITABLE))
            offset += size
        return extents

    def _write(self, offset, data):
        raise AssertionError


@pytest.fixture
def backend(tmp_path):
    layer = BlockLayer()
    path = tmp_path / "image"
    path.write_bytes(b"".join(bytes([index]) * UNIT for index in range(4)))
    node = layer.add_node(
        {"driver": "test-scattered", "node-name": "s", "file": {"driver": "file", "filename": str(path)}}
    )
    made = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    made.insert(node)
    yield made
    made.remove()
    layer.close()


def _entries(table):
    page = table.pages.get(0)
    return list(page[:4]) if page else None


def test_fill_keeps_whole_units_with_their_place(backend):
    table = backend.table()
    table.fill(0, backend.length)
    leaf = 1 << 1
    assert _entries(table) == [3 * UNIT | leaf | 1, 1, 1 * UNIT | leaf | 1, 0 * UNIT | leaf | 1]
    assert table.fds[1] == backend.node.file.fd and table.linear is None


def test_moved_drops_just_what_it_touches(backend):
    table = backend.table()
    table.fill(0, backend.length)
    backend.node.places[2] = 2
    backend.node.moved(2 * UNIT + 5, 10)
    assert _entries(table)[2] == 0 and _entries(table)[3] != 0
    table.fill(2 * UNIT, 1)
    assert _entries(table)[2] >> 16 == 2


def test_what_a_write_would_make_the_file_longer_by_is_not_written_past_its_node(backend, tmp_path):
    (tmp_path / "image").write_bytes(bytes(3 * UNIT + 512))
    file = backend.node.file
    file.length = 3 * UNIT + 512
    table = backend.table()
    table.fill(0, backend.length)
    assert [entry & 1 for entry in _entries(table)] == [0, 1, 1, 1] and _entries(table)[0] == 3 * UNIT | 1 << 1
    file.write(4 * UNIT - 512, bytes(512))
    table.fill(0, UNIT)
    assert _entries(table)[0] & 1


def test_what_was_resolved_before_a_move_is_not_kept(backend, monkeypatch):
    table = backend.table()
    node = backend.node
    real = node.map

    def map_and_move(*args):
        extents = real(*args)
        node.moved(0, UNIT)
        return extents

    monkeypatch.setattr(node, "map", map_and_move)
    table.fill(0, UNIT)
    assert _entries(table) is None


def test_what_moved_elsewhere_meanwhile_does_not_matter(backend, monkeypatch):
    table = backend.table()
    node = backend.node
    real = node.map
    moves = 0

    def map_and_move(*args):
        extents = real(*args)
        for _ in range(moves):
            node.moved(2 * UNIT, UNIT)
        return extents

    monkeypatch.setattr(node, "map", map_and_move)
    for moves in (3, 1000):  # of so many, nobody knows where they were
        kept = moves == 3
        table.fill(0, 2 * UNIT)
        assert (table.pages.get(0, [0])[0] != 0) == kept
        node.moved(0, 2 * UNIT)


@pytest.mark.parametrize("compiled_form", [True, False])
def test_what_moves_below_leaves_alone_what_lies_above(backend, tmp_path, monkeypatch, compiled_form):
    if not compiled_form:
        monkeypatch.setattr("qobra.block.table._compiled", None)
    layer = backend.layer
    (tmp_path / "top").write_bytes(bytes(4 * UNIT))
    file = {"driver": "file", "filename": str(tmp_path / "top")}
    top = layer.add_node({"driver": "test-scattered", "node-name": "top", "file": file, "backing": None})
    top.map = lambda offset, length, want_zero=True: [
        each if each.kind == DATA else Extent(each.length, ABSENT)
        for each in _ScatteredNode.map(top, offset, length, want_zero)
    ]
    top.places = [2, None, None, 0]
    top.children["backing"] = backend.node
    table = ResolvedTable(top)
    table.fill(0, top.length)
    before = _entries(table)
    assert 0 not in before
    backend.node.places = [0, 2, None, 1]
    backend.node.moved(0, 4 * UNIT)
    assert _entries(table) == [before[0], 0, 0, before[3]]
    backend.node.moved(0, 4 * UNIT, may_look=True)  # of what nobody knows, nobody asked
    assert _entries(table) == [before[0], 0, 0, before[3]]
    table.fill(UNIT, UNIT)
    backend.node.places[1] = 3
    backend.node.moved(UNIT, 1, may_look=True)
    assert _entries(table) == [before[0], 3 * UNIT | 2 << 1, 0, before[3]]
    top.moved(0, top.length)
    assert _entries(table) == [0, 0, 0, 0]
    table.close()
    del top.children["backing"]


def test_looking_where_nobody_waits_for_it_fails_silently(backend, monkeypatch):
    table = backend.table()
    table.fill(0, backend.length)

    def failing(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(backend.node, "map", failing)
    backend.node.moved(0, UNIT, may_look=True)
    assert _entries(table)[0] == 0 and _entries(table)[1] == 1


def test_a_tracker_turns_direct_writes_off(backend):
    table = backend.table()
    assert table.writable

    class Tracker(WriteTracker):
        def mark(self, offset, length):
            pass

    tracker = Tracker()
    backend.node.add_tracker(tracker)
    assert not backend.table().writable and backend.table() is table
    table.fill(0, UNIT)
    assert resolved(table, 0, 9, to_write=True) is None and resolved(table, 0, 9, to_write=False) is not None
    assert table.places is None or not table.places.write(0, b"x")
    backend.node.remove_tracker(tracker)
    assert backend.table().writable and resolved(table, 0, 9, to_write=True) is not None
    assert table.places is None or table.places.write(0, b"x")


FILTERS = [
    {"driver": "copy-before-write", "target": "target"},
    {"driver": "mirror_top"},
    {"driver": "commit_top"},
    {"driver": "copy-on-read"},
]


@pytest.mark.parametrize("compiled_form", [True, False])
@pytest.mark.parametrize("options", FILTERS, ids=lambda options: options["driver"])
def test_a_filter_of_a_job_leaves_the_places_alone(backend, monkeypatch, options, compiled_form):
    if not compiled_form:
        monkeypatch.setattr("qobra.block.table._compiled", None)
    layer, below = backend.layer, backend.node
    layer.add_node({"driver": "null-co", "node-name": "target", "size": below.length})
    table = backend.table()
    table.fill(0, backend.length)
    before = _entries(table)
    child = "backing" if options["driver"].endswith("_top") else "file"

    def prepare(node):
        if options["driver"] == "copy-on-read":
            node.serve_job()

    node, holder = insert_filter(layer, below, {**options, child: below.node_name}, prepare=prepare)
    holder.remove()
    assert backend.node is node and backend.table() is table and table.root is node
    assert _entries(table) == before and 0 not in before
    below.places[1] = 2
    below.moved(UNIT, UNIT, may_look=True)
    assert _entries(table) == [before[0], 2 * UNIT | 1 << 1 | 1, *before[2:]]
    if table.places is not None:
        into = bytearray(UNIT)
        assert table.places.read(0, into) and into == bytes([3]) * UNIT
        assert table.places.write(UNIT, b"x") == (options["driver"] != "copy-before-write")
    remove_filter(layer, node)
    assert backend.table() is table and table.root is below
    assert _entries(table) == [before[0], 2 * UNIT | 1 << 1 | 1, *before[2:]]


def test_other_nodes_come_and_go_and_the_places_stay(backend):
    table = backend.table()
    table.fill(0, backend.length)
    before = _entries(table)
    backend.layer.add_node({"driver": "null-co", "node-name": "other", "size": UNIT})
    assert backend.table() is table and _entries(table) == before
    backend.layer.delete_node("other")
    assert backend.table() is table and _entries(table) == before


def test_what_lies_under_the_root_now_is_looked_for_anew(backend, tmp_path):
    table = backend.table()
    table.fill(0, backend.length)
    layer = backend.layer
    (tmp_path / "other").write_bytes(bytes(4 * UNIT))
    other = layer.add_node({"driver": "file", "node-name": "other", "filename": str(tmp_path / "other")})
    with layer.graph.change() as change:
        change.attach(backend.node, "file", other, permissions.ROLE_DATA)
    assert backend.table() is table and _entries(table) is None
    table.fill(0, backend.length)
    assert table.fds == [-1, other.fd]


def test_a_filter_that_has_to_see_what_is_read_takes_the_places_away(backend):
    layer, below = backend.layer, backend.node
    table = backend.table()
    table.fill(0, backend.length)
    _node, holder = insert_filter(layer, below, {"driver": "copy-on-read", "file": below.node_name})
    holder.remove()
    assert backend.table() is table and _entries(table) is None
    table.fill(0, backend.length)
    assert _entries(table) is None


def test_a_file_that_is_opened_anew_has_its_places_in_its_new_descriptor(backend):
    table = backend.table()
    table.fill(0, backend.length)
    before, file = _entries(table), backend.node.file
    old, file.fd = file.fd, os.dup(file.fd)
    os.close(old)
    os.pwrite(file.fd, b"new", 3 * UNIT)
    backend.layer.changed()
    assert backend.table() is table and table.fds == [-1, file.fd] and _entries(table) == before
    if table.places is not None:
        into = bytearray(3)
        assert table.places.read(0, into) and into == b"new"


def test_a_table_that_nobody_has_looked_over_since_is_not_filled(backend):
    table = backend.table()
    table.fill(0, backend.length)
    backend.layer.changed()
    backend.node.moved(0, UNIT, may_look=True)
    assert _entries(table)[0] == 0


class _Marked:
    """A bitmap's worth of what was marked, as it came."""

    def __init__(self):
        self.log = []

    def mark(self, offset, length):
        self.log.append((offset, length))


def _track(node):
    class Tracker(WriteTracker):
        def mark(self, offset, length):
            marked.mark(offset, length)

        def marks(self):
            return marked

    marked = _Marked()
    node.add_tracker(Tracker())
    return marked


def test_a_write_past_the_nodes_is_marked_for_all_that_it_passes(tmp_path, monkeypatch):
    monkeypatch.setattr("qobra.block.table._compiled", None)
    layer = BlockLayer()
    (tmp_path / "image").write_bytes(bytes(4 * UNIT))
    layer.add_node({"driver": "file", "node-name": "file", "filename": str(tmp_path / "image")})
    layer.add_node({"driver": "raw", "node-name": "raw", "file": "file", "offset": UNIT, "size": UNIT})
    top = layer.graph.find("raw")
    logs = [_track(node) for node in (layer.graph.find("file"), top)]
    table = ResolvedTable(top)
    assert table.writable and table.linear is not None and len(table.marks) == 2
    table.mark(5, 10)
    assert [log.log for log in logs] == [[(UNIT + 5, 10)], [(5, 10)]]
    table.close()
    layer.close()


def test_a_tracked_file_of_an_image_is_told_by_the_nodes(backend):
    _track(backend.node.file)
    assert not backend.table().writable and backend.table().marks == ()


def test_as_many_bitmaps_as_loops_can_mark(backend):
    bitmaps = [DirtyBitmap(backend.node, f"b{number}", 65536) for number in range(MAX_MARKS)]
    table = backend.table()
    assert table.writable and len(table.marks) == MAX_MARKS
    table.fill(0, backend.length)
    if table.places is not None:
        assert table.places.write(5, b"x") and all(bitmap.is_dirty(0) for bitmap in bitmaps)
    DirtyBitmap(backend.node, "one more", 65536)
    assert not backend.table().writable


def test_a_target_that_writes_do_not_pass_does_not_turn_direct_writes_off(tmp_path):
    layer = BlockLayer()
    for name in ("image", "copy"):
        (tmp_path / name).write_bytes(bytes(4 * UNIT))
        layer.add_node({"driver": "file", "node-name": name, "filename": str(tmp_path / name)})
    top = layer.add_node({"driver": "copy-before-write", "node-name": "top", "file": "image", "target": "copy"})
    told = _track(layer.graph.find("copy"))
    bitmap = DirtyBitmap(layer.graph.find("image"), "b", UNIT)
    table = ResolvedTable(top)
    table.fill(0, 4 * UNIT)
    assert table.writable and table.pages[0][0] & 1
    assert not table.keep(UNIT, 4)  # which asks first, and nothing of it is copied yet
    top.write(UNIT, b"new")
    assert [table.keep(unit * UNIT, 4) for unit in range(4)] == [False, True, False, False]
    if table.places is not None:
        assert [table.places.write(unit * UNIT, b"past") for unit in range(4)] == [False, True, False, False]
    told.log.clear()
    table.mark(UNIT + 9, 1)
    assert list(bitmap.dirty_ranges()) == [(UNIT, UNIT)] and told.log == []
    table.close()
    layer.close()


def test_what_a_backing_node_holds_is_not_written_in_place(backend, tmp_path):
    """Even where that node may be written by others."""
    layer = backend.layer
    (tmp_path / "top").write_bytes(bytes(4 * UNIT))
    file = {"driver": "file", "filename": str(tmp_path / "top")}
    top = layer.add_node({"driver": "test-scattered", "node-name": "top", "file": file, "backing": None})
    top.places = [2, None, None, 0]
    top.map = lambda offset, length, want_zero=True: [
        each if each.kind == DATA else Extent(each.length, ABSENT)
        for each in _ScatteredNode.map(top, offset, length, want_zero)
    ]
    top.children["backing"] = backend.node
    runs = resolve(top, 0, top.length)
    assert [(run.depth, run.flags & WRITABLE) for run in runs] == [(0, WRITABLE), (1, 0), (1, 0), (0, WRITABLE)]
    del top.children["backing"]


needs_compiled = pytest.mark.skipif(compiled("places") is None, reason="the compiled form was not built")


@needs_compiled
def test_loops_without_the_gil_see_what_the_table_knows(backend):
    table = backend.table()
    places = table.places
    into = bytearray(2 * UNIT)
    assert not places.read(0, into)  # nothing is known yet
    table.fill(0, backend.length)
    assert places.read(0, into) and into == bytes([3]) * UNIT + bytes(UNIT)
    assert places.read(2 * UNIT + 5, into[:10]) and not places.read(backend.length - 5, into)
    assert places.write(0, b"x" * 100) and not places.write(UNIT, b"x")  # a hole is not written in place
    assert backend.node.highest_write() == 100
    backend.node.moved(UNIT, 1)
    assert places.read(0, into[:UNIT]) and not places.read(UNIT, into[:1])
    backend.node.moved(0, 1 << 50)
    assert not places.read(2 * UNIT, into[:1])
    table.fill(0, backend.length)
    assert table.places is places and places.read(0, into)
    backend.layer.changed()
    assert backend.table().places is not places and backend.table().places.read(0, into)


@needs_compiled
def test_a_page_that_makes_room_is_kept_while_loops_may_read_it(backend):
    table = backend.table()
    table.fill(0, UNIT)
    page = weakref.ref(table.pages[0])
    slot = backend.new_slot()
    slot.enter()
    table._new_page(MAX_PAGES)  # which has the place of page 0
    assert 0 not in table.pages and page() is not None
    assert not table.places.read(0, bytearray(1))
    slot.leave()
    backend.layer.flight.reclaim()
    assert page() is None
    table.fill(0, UNIT)
    assert list(table.pages) == [0] and table.places.read(0, bytearray(1))
    slot.close()


@needs_compiled
@pytest.mark.parametrize(
    "call",
    [
        lambda places: places.put_page(0, array("q", bytes(8 * 5))),
        lambda places: places.put_page(1, array("q", bytes(8 * (PAGE_ENTRIES + 1)))),  # page 0 by its last entry
        lambda places: places.put_page(-1, array("q", bytes(8 * (PAGE_ENTRIES + 1)))),
        lambda places: places.add_leaf(0, 3),
        lambda places: [places.add_leaf(0) for _ in range(300)],
        lambda places: type(places)(0, 0, 16, True, None, [(compiled("marks").Marks(1, 9), 0)] * (MAX_MARKS + 1)),
        lambda places: places.__init__(0, 0, 16, True, None),
    ],
)
def test_places_take_nothing_that_loops_could_not_read(backend, call):
    with pytest.raises(ValueError):
        call(backend.table().places)


@needs_compiled
def test_a_root_that_lies_in_one_piece_needs_no_entries(backend):
    node = backend.node.file
    table = ResolvedTable(node)
    assert table.places.read(UNIT - 1, into := bytearray(2)) and into == b"\0\1"
    assert not table.places.read(node.length - 1, into)
    table.close()


def test_small_clusters_side_by_side_are_a_place_for_small_writes(tmp_path):
    """Those of 512 bytes never lie in one piece for 64 KiB: their tables are between them."""
    lab = ImageLab(tmp_path)
    lab.create("a", size=1 << 20, cluster_size=512)
    with lab.open("a") as disk:
        disk.write(0, bytes(range(1, 256)) * 2048)
        table = ResolvedTable(disk.node)
        plain = [resolved(table, offset, 4096, to_write=True) for offset in range(0, 1 << 18, 4096)]
        found = [pieces for pieces in plain if pieces is not None]
        assert len(found) > len(plain) // 2
        for offset, pieces in zip(range(0, 1 << 18, 4096), plain, strict=True):
            if pieces is not None:
                assert b"".join(os.pread(fd, size, host) for fd, host, size in pieces) == disk.read(offset, 4096)
