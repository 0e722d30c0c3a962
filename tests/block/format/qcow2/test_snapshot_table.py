"""Snapshot tables that are not as they must be: what is refused, what a check says, and what it mends."""

from __future__ import annotations

import errno
import struct

import pytest

from qobra.block.format.qcow2 import layout
from qobra.errors import QobraError

MIB = 1 << 20


@pytest.fixture
def image(lab):
    """``image(change)``: the image ``a`` with two snapshots; ``change`` gets its bytes and the table's place."""

    def make(change):
        lab.create("a", size=MIB)
        with lab.open("a") as disk:
            for name in ("one", "two"):
                disk.write(0, name.encode())
                disk.node.snapshot_create(name)
        with open(lab.path("a"), "r+b") as file:
            data = bytearray(file.read())
            (place,) = struct.unpack_from(">Q", data, 64)
            change(data, place)
            file.seek(0)
            file.write(data)

    return make


def _check(lab, **options):
    said = []
    with lab.open("a", _check=True) as disk:
        result = disk.node.check(report=said.append, **options)
    return result, said


def _names(lab):
    with lab.open("a", read_only=True) as disk:
        return [each["name"] for each in disk.node.snapshot_list()]


def _set_extra(data, place, length):
    struct.pack_into(">I", data, place + layout.SNAPSHOT.size - 4, length)


def test_an_entry_of_version_2_in_an_image_of_version_3_is_completed(lab, image):
    def shorten(data, place):
        # The second entry is left out, so that what follows the first does not matter.
        start = place + layout.SNAPSHOT.size
        data[start : start + 28] = data[start + 24 : start + 28] + bytes(24)
        _set_extra(data, place, 0)
        struct.pack_into(">I", data, 60, 1)

    image(shorten)
    _check(lab, fix_leaks=True)  # of the second
    result, said = _check(lab)
    assert result["corruptions"] == 1 and said == ["ERROR snapshot table entry 0 is incomplete"]
    result, said = _check(lab, fix_leaks=True, fix_errors=True)
    assert result["corruptions-fixed"] == 1 and said == ["Repairing snapshot table entry 0 is incomplete"]
    result, said = _check(lab)
    assert "corruptions" not in result and "leaks" not in result and not said
    assert _names(lab) == ["one"]


def test_a_table_past_the_end_of_the_file_is_written_anew_with_nothing_to_free(lab, image):
    image(lambda data, place: struct.pack_into(">IQ", data, 60, 1, 0xFFFF00010000))
    result, _said = _check(lab, fix_leaks=True, fix_errors=True)
    assert result["corruptions-fixed"] >= 1
    result, said = _check(lab)
    assert "corruptions" not in result and not said
    assert len(_names(lab)) == 1


def test_too_much_extra_data_is_refused_and_can_be_removed(lab, image):
    def grow(data, place):
        _set_extra(data, place, 4096)
        rest = b"1one"
        at = place + layout.SNAPSHOT.size + 4096
        data[at : at + len(rest)] = rest
        struct.pack_into(">I", data, 60, 1)

    image(grow)
    with pytest.raises(QobraError, match="Too much extra metadata in snapshot table entry 0\nYou can force-remove"):
        lab.open("a", read_only=True)
    with pytest.raises(OSError, match=r"File too large") as failure:
        _check(lab)
    assert failure.value.errno == errno.EFBIG
    [reason] = failure.value.__notes__
    assert reason.startswith("ERROR failed to read the snapshot table: Too much extra metadata")
    result, said = _check(lab, fix_leaks=True, fix_errors=True)
    assert result["corruptions-fixed"] >= 1
    assert said[0] == "Discarding too much extra metadata in snapshot table entry 0 (4096 > 1024)"
    assert _names(lab) == ["one"]
    result, said = _check(lab)
    assert "corruptions" not in result and not said


def test_more_snapshots_than_there_may_be_are_refused_and_can_be_removed(lab, image, monkeypatch):
    image(lambda data, place: None)
    monkeypatch.setattr(layout, "MAX_SNAPSHOTS", 1)
    with pytest.raises(QobraError, match="Snapshot table too large"):
        lab.open("a", read_only=True)
    with pytest.raises(OSError, match="File too large") as failure:
        _check(lab)
    [reason] = failure.value.__notes__
    assert reason.startswith("ERROR snapshot table too large\nYou can force-remove all 1 overhanging snapshots with")
    _result, said = _check(lab, fix_leaks=True, fix_errors=True)
    assert said[0] == "Discarding 1 overhanging snapshots"
    assert _names(lab) == ["one"]
    result, said = _check(lab)
    assert "corruptions" not in result and "leaks" not in result


def test_a_table_that_is_too_big_loses_what_hangs_over(lab, image, monkeypatch):
    image(lambda data, place: None)
    monkeypatch.setattr(layout, "MAX_SNAPSHOT_TABLE_BYTES", 100)
    with pytest.raises(QobraError, match="Snapshot table is too big\nYou can force-remove all 1 overhanging"):
        lab.open("a", read_only=True)
    _result, said = _check(lab, fix_leaks=True, fix_errors=True)
    assert said[0] == "Discarding 1 overhanging snapshots (snapshot table is too big)"
    assert _names(lab) == ["one"]


def test_a_name_ends_where_it_has_a_zero_byte(lab, image):
    def cut(data, place):
        at = place + layout.SNAPSHOT.size + 24 + 1
        data[at : at + 3] = b"o\0e"

    image(cut)
    assert _names(lab) == ["o", "two"]
