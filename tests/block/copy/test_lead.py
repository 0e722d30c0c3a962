"""Who leads and when: what a job says of what it has copied, with and without what keeps it in step."""

from __future__ import annotations

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.bitmap import DirtyBitmap
from qobra.block.copy.follow import can_follow
from qobra.block.copy.lead import Leader
from qobra.testing.images import ImageLab
from qobra.testing.jobs import RecordingLayer

MIB = 1 << 20
UNIT = 65536


@pytest.fixture
def layer():
    made = RecordingLayer()
    yield made
    with made.control:
        made.close()


def disk(layer, tmp_path, name):
    path = ImageLab(tmp_path).create(name, size=MIB)
    node = layer.add_node({"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": path}})
    backend = BlockBackend(layer, perm=permissions.CONSISTENT_READ | permissions.WRITE)
    backend.insert(node)
    return backend


@pytest.fixture
def ends(layer, tmp_path):
    source, target = disk(layer, tmp_path, "source"), disk(layer, tmp_path, "target")
    for end in (source, target):
        end.write(0, bytes([end is source]) * MIB)
    source.table().look(0, MIB)
    return source, target


def test_where_nothing_keeps_it_in_step_nothing_leads(ends):
    leader = Leader(ends[1], DirtyBitmap(ends[0].node, None, UNIT))
    assert not leader.may_lead
    leader.hold(0, MIB)
    leader.release(0, MIB, True)
    leader.start()
    leader.stop()


@pytest.mark.skipif(not can_follow(), reason="the compiled form is not built")
def test_guests_write_what_was_released_between_start_and_stop(layer, ends):
    source, target = ends
    dirty = DirtyBitmap(source.node, None, UNIT, enabled=False)
    dirty.keep_in_step()
    dirty.enable()
    leader = Leader(target, dirty)

    def goes_to_both(offset, data):
        table = source.table()
        table.look(offset, len(data))
        assert table.places.write(offset, data)
        return target.read(offset, len(data)) == data

    assert leader.may_lead
    leader.hold(0, MIB)
    leader.release(0, MIB // 2, True)
    leader.start()
    assert goes_to_both(5, b"one") and not dirty.count()
    assert not goes_to_both(MIB // 2, b"two") and dirty.count() == UNIT
    leader.hold(0, UNIT)
    assert not goes_to_both(5, b"six")
    leader.release(0, UNIT, False)
    leader.stop()
    assert not goes_to_both(UNIT, b"ten")


@pytest.mark.skipif(not can_follow(), reason="the compiled form is not built")
def test_only_what_was_copied_beside_guests_is_asked_for(ends):
    source, target = ends
    dirty = DirtyBitmap(source.node, None, UNIT, enabled=False)
    dirty.keep_in_step()
    leader = Leader(target, dirty)
    leader.release(0, UNIT, True)
    leader.release(UNIT, UNIT, False)
    leader.start()
    assert target.table().places.write(0, b"known") and not target.table().places.write(UNIT, b"new")


@pytest.mark.skipif(not can_follow(), reason="the compiled form is not built")
def test_what_is_copied_while_nobody_may_lead_is_not_kept_in_mind(ends):
    dirty = DirtyBitmap(ends[0].node, None, UNIT, enabled=False)
    dirty.keep_in_step()
    leader = Leader(ends[1], dirty)
    for _ in range(100):
        leader.release(0, UNIT, True)
        leader.stop()  # as a job with a speed does between two pieces
    assert len(leader._unknown) <= 1
