"""Snapshots share clusters: both forms of the loops count and flag alike, in however many passes."""

from __future__ import annotations

import os
import random
import struct
from array import array

import pytest

from qobra.block.format.qcow2 import layout, references, sharing
from qobra.errors import QobraError
from qobra.native import compiled

_compiled = compiled("references")
NAMES = ("collect", "sort", "add", "free_of", "note_ones", "clear_flags", "set_flags")
PURE = {name: getattr(references, f"pure_{name}") for name in NAMES}
COMPILED = None if _compiled is None else {name: getattr(_compiled, name) for name in NAMES}
FORMS = [PURE, pytest.param(COMPILED, marks=pytest.mark.skipif(_compiled is None, reason="was not built"))]
needs_compiled = pytest.mark.skipif(_compiled is None, reason="the compiled form was not built")
BITS = 12
CLUSTER = 1 << BITS


@pytest.fixture(params=FORMS, ids=["pure", "compiled"])
def loops(request, monkeypatch):
    """The loops that snapshots use, in one of the forms."""
    for name, function in request.param.items():
        monkeypatch.setattr(sharing, name, function)
    return request.param


@pytest.fixture
def small_steps(monkeypatch):
    """Everything takes several passes, and counts are written in between."""
    monkeypatch.setattr(sharing, "_BATCH", 128)
    monkeypatch.setattr(sharing, "_FIRST_ROOM", 80)
    monkeypatch.setattr(sharing, "_GROUP_BYTES", 2 * CLUSTER)
    monkeypatch.setattr(sharing, "_WINDOW", 1)
    monkeypatch.setattr(sharing, "_MOST_BLOCKS", 1)


def _words(chosen, count, limit):
    """Entries of all kinds for a file of ``limit`` clusters, with stretches that go up; seldom an impossible one."""
    words = []
    while len(words) < count:
        first = chosen.randrange(1, limit) << BITS
        match chosen.randrange(12):
            case 0 | 1 | 2:
                length = chosen.choice((1, 2, 40))
                words += [
                    (first + (at << BITS)) | layout.COPIED for at in range(length) if (first >> BITS) + at < limit
                ]
            case 3 | 4:
                words.append(first | chosen.randrange(2))
            case 5:
                words.append(layout.compressed_entry(first + chosen.randrange(8) * 512, 900, BITS))
            case 6 if not chosen.randrange(20):
                words.append(chosen.choice((first | 512, (limit + 2) << BITS, chosen.getrandbits(64))))
            case _:
                words += [0] * chosen.choice((1, 9))
    return words[:count]


def _clusters(runs, count):
    """What runs refer to, in order of number."""
    found = []
    for word in runs[:count]:
        first = word >> references.COUNT_BITS
        found += range(first, first + (word & 0xFFFF) + 1)
    return sorted(found)


@needs_compiled
@pytest.mark.parametrize("step", [8, 16])
def test_both_forms_find_the_same_references(step):
    for seed in range(60):
        chosen = random.Random(seed)
        words = _words(chosen, 256, 3000)
        table = bytearray(struct.pack(">256Q", *words))
        found = []
        for form in (PURE, COMPILED):
            at, clusters = 0, []
            while at < len(table):
                runs = array("Q", bytes(8 * 9))
                before = at
                at, count = form["collect"](memoryview(table), at, step, BITS, 3000, 5, runs, 0)
                assert all((word >> 16 & 31) + (word & 0xFFFF) < 32 for word in runs[:count])
                form["sort"](runs, count)
                assert list(runs[:count]) == sorted(runs[:count])
                clusters += _clusters(runs, count)
                if count + 2 <= len(runs):
                    break
                assert at > before
            found.append((at, sorted(clusters)))
        assert found[0] == found[1]


@needs_compiled
@pytest.mark.parametrize("code", ["B", "H", "I", "Q"])
def test_both_forms_count_and_flag_alike(code):
    for seed in range(40):
        chosen = random.Random(seed)
        width = array(code).itemsize
        values = [chosen.choice((0, 1, 1, 1, 2, 2, 3)) for _ in range(256)]
        runs = array("Q", sorted(chosen.randrange(512, 768) << 16 for _ in range(9)) + [768 << 16])
        runs = array(
            "Q", [word | min(chosen.randrange(4), 767 - (word >> 16) if word >> 16 < 768 else 0) for word in runs]
        )
        table = struct.pack(">256Q", *_words(chosen, 256, 900))
        seen = []
        for form in (PURE, COMPILED):
            counts = bytearray(values) if code == "B" else array(code, values)
            up = form["add"](counts, width, 512, runs, 0, len(runs), 1, 3)
            down = form["add"](counts, width, 512, runs, 0, len(runs), -1, 3)
            into = array("Q", bytes(8 << 16))
            free = form["free_of"](counts, width, 512, runs, 0, len(runs), into)
            ones = bytearray(40)
            form["note_ones"](counts, width, ones, 64)
            flagged, cleared = bytearray(table), bytearray(table)
            set_range = form["set_flags"](memoryview(flagged), 8, BITS, ones, 448)
            assert flagged[: set_range[0]] == table[: set_range[0]] and flagged[set_range[1] :] == table[set_range[1] :]
            clear_range = form["clear_flags"](memoryview(cleared), 8)
            assert bool(clear_range[1]) == (cleared != table)
            seen.append((up, down, list(counts), free, list(into[: 2 * free[1]]), ones, flagged, cleared))
        assert seen[0] == seen[1]


@needs_compiled
def test_compiled_loops_stay_in_their_buffers():
    runs, table = array("Q", [5 << 16 | 3]), memoryview(bytearray(64))
    for at, step, bits, count in ((0, 7, BITS, 0), (0, 8, 40, 0), (-8, 8, BITS, 0), (4, 8, BITS, 0), (0, 8, BITS, -1)):
        with pytest.raises(ValueError, match="range"):
            COMPILED["collect"](table, at, step, bits, 9, 5, runs, count)
    table[:8] = (layout.COPIED | CLUSTER).to_bytes(8, "big")
    assert COMPILED["collect"](table, 0, 8, BITS, 9, 5, runs, 0) == (0, 0)
    assert COMPILED["collect"](table, 0, 8, BITS, 9, 5, runs, 7) == (0, 7)
    assert COMPILED["collect"](table, 72, 8, BITS, 9, 5, runs, 0) == (72, 0)
    with pytest.raises(ValueError, match="so many"):
        COMPILED["sort"](runs, 2)
    for at, end in ((0, 2), (-1, 1), (1, 0)):
        with pytest.raises(ValueError, match="range"):
            COMPILED["add"](bytearray(16), 1, 0, runs, at, end, 1, 3)
    assert COMPILED["add"](bytearray(7), 1, 0, runs, 0, 1, 1, 3) == 0
    assert COMPILED["add"](bytearray(16), 1, 6, runs, 0, 1, 1, 3) == 0
    with pytest.raises(ValueError, match="width"):
        COMPILED["add"](bytearray(16), 3, 0, runs, 0, 1, 1, 3)
    with pytest.raises(BufferError):
        COMPILED["add"](bytes(16), 1, 0, runs, 0, 1, 1, 3)
    ones = bytearray(1)
    COMPILED["note_ones"](bytearray(b"\1" * 64), 1, ones, 0)
    COMPILED["note_ones"](bytearray(b"\1" * 64), 1, ones, 64)
    assert ones == b"\xff"


def _fill(lab, chosen, options):
    """Scattered data of all kinds, in an image of several refcount blocks."""
    lab.create("a", size=12 << 20, **{"cluster_size": CLUSTER, **options})
    compress = options.get("refcount_bits", 16) > 4  # several compressed clusters lie in one, and count there
    with lab.open("a", discard="unmap") as disk:
        size = disk.node.cluster_size()
        for at in chosen.sample(range(0, 3072, size // CLUSTER), 6) if compress else ():
            disk.node.write_compressed(at * CLUSTER, memoryview(b"much the same " * 1171)[:size])
        for at in chosen.sample(range(3072), 80):
            size = min(chosen.choice((512, CLUSTER, 3 * CLUSTER)), (3072 - at) * CLUSTER)
            disk.write(at * CLUSTER, bytes((1 + at % 250,)) * size)
        disk.node.write_zeroes(100 * CLUSTER, 40 * CLUSTER, may_unmap=False)


@pytest.mark.usefixtures("loops", "small_steps")
@pytest.mark.parametrize(
    "options", [{}, {"refcount_bits": 64}, {"refcount_bits": 4}, {"extended_l2": True, "cluster_size": 16384}]
)
def test_snapshots_in_many_passes(lab, options):
    chosen = random.Random(len(options))
    _fill(lab, chosen, options)
    kept = {}
    with lab.open("a", discard="unmap") as disk:
        for name in ("one", "two", "three"):
            kept[name] = disk.content()
            disk.node.snapshot_create(name)
            for at in chosen.sample(range(3072), 30):
                disk.write(at * CLUSTER, name.encode())
        disk.node.snapshot_delete(None, "one")
        disk.node.snapshot_apply("two")
        assert disk.content() == kept["two"]
        disk.write(5 * CLUSTER, b"on")
        disk.node.snapshot_delete(None, "two")
    with lab.open("a", read_only=True) as disk:
        result = disk.node.check()
        assert "corruptions" not in result and "leaks" not in result
        disk.node.snapshot_load("three")
        assert disk.content() == kept["three"]


@pytest.mark.usefixtures("loops", "small_steps")
def test_what_only_a_deleted_snapshot_used_goes_back_to_the_host(lab):
    _fill(lab, random.Random(3), {})
    with lab.open("a", discard="unmap") as disk:
        disk.node.snapshot_create("s")
        disk.write(0, os.urandom(12 << 20))
        before = os.stat(lab.path("a")).st_blocks
        disk.node.snapshot_delete(None, "s")
        disk.backend.flush()
        assert os.stat(lab.path("a")).st_blocks < before - (80 * CLUSTER >> 9)
    with lab.open("a", read_only=True) as disk:
        assert "leaks" not in disk.node.check()


@pytest.mark.usefixtures("loops", "small_steps")
def test_a_snapshot_that_cannot_be_counted_changes_nothing(lab):
    """Two-bit counts hold three references: the fourth fails somewhere in the middle."""
    _fill(lab, random.Random(4), {"refcount_bits": 2})
    with lab.open("a") as disk:
        content = disk.content()
        disk.node.snapshot_create("one")
        disk.node.snapshot_create("two")
        for at in range(0, 1500, 7):  # these are the disk's own again, and have room
            disk.write(at * CLUSTER, content[at * CLUSTER : at * CLUSTER + 1])
        with pytest.raises(QobraError, match="overflow"):
            disk.node.snapshot_create("three")
        assert [each["name"] for each in disk.node.snapshot_list()] == ["one", "two"]
        assert disk.content() == content
    with lab.open("a", read_only=True) as disk:
        result = disk.node.check()
        assert "corruptions" not in result and "leaks" not in result


@pytest.mark.usefixtures("loops")
def test_a_reference_to_nowhere_is_refused_before_anything_changes(lab):
    _fill(lab, random.Random(5), {})
    with lab.open("a") as disk:
        disk.node.snapshot_create("s")
        image = disk.node.image
        table = next(entry for entry in image.tables.l1 if entry) & layout.OFFSET_MASK
    before = os.stat(lab.path("a")).st_size
    with open(lab.path("a"), "r+b") as file:
        file.seek(table)
        file.write(struct.pack(">Q", 1 << 40))
    with lab.open("a") as disk:
        for change in (lambda: disk.node.snapshot_create("t"), lambda: disk.node.snapshot_delete(None, "s")):
            with pytest.raises(QobraError, match="Table refers to host offset 0x10000000000, which cannot be"):
                change()
        assert [each["name"] for each in disk.node.snapshot_list()] == ["s"]
    assert os.stat(lab.path("a")).st_size - before < 8 * CLUSTER
