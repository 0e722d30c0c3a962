"""throttle-group objects: limits as one value or member by member, and who keeps a group from being deleted."""

from __future__ import annotations

import pytest

from qobra.block.throttle import KINDS
from qobra.errors import QobraError
from qobra.machine.machine import Machine


@pytest.fixture
def objects():
    machine = Machine()
    with machine.control:
        yield machine.objects
    machine.close()


def _get(objects, name):
    return objects.find("tg").get(name)


def test_limits_of_a_group_change_member_by_member(objects):
    objects.create("throttle-group", "tg", {"limits": {"iops-total": 100, "bps-read": 5, "iops-size": 512}})
    group = objects.find("tg")
    assert _get(objects, "x-iops-total") == 100 and _get(objects, "x-iops-size") == 512
    group.set("limits", {"iops-total": 7})
    limits = _get(objects, "limits")
    assert limits.pop("iops-total") == 7 and limits.pop("bps-read") == 5 and limits.pop("iops-size") == 512
    assert limits == {f"{kind}-max": 0 for kind in KINDS} | {f"{kind}-max-length": 1 for kind in KINDS} | {
        kind: 0 for kind in KINDS if kind not in ("iops-total", "bps-read")
    }
    assert group.group.limits.average["iops-total"] == 7


def test_options_set_single_members_until_the_group_is_there(objects):
    objects.create("throttle-group", "tg", {"x-bps-write": 10, "x-bps-write-max": 20, "x-bps-write-max-length": 2})
    assert _get(objects, "limits")["bps-write-max"] == 20
    with pytest.raises(QobraError, match="Property cannot be set after initialization"):
        objects.find("tg").set("x-bps-write", 1)
    assert _get(objects, "x-bps-write") == 10


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"x-iops-total": -1}, "Property values cannot be negative"),
        ({"x-iops-total-max": 5}, "bps_max/iops_max require corresponding bps/iops values"),
        ({"x-iops-total-max-length": 0}, "the burst length cannot be 0"),
        ({"limits": {"iops-total": 1, "iops-read": 1}}, "cannot be used at the same time"),
        ({"limits": {"iops": 1}}, "Parameter 'limits.iops' is unexpected"),
        ({"limits": 5}, "Invalid parameter type for 'limits', expected: object"),
    ],
)
def test_limits_that_cannot_be(objects, options, text):
    with pytest.raises(QobraError) as caught:
        objects.create("throttle-group", "tg", options)
    assert text in str(caught.value)
    assert objects.find("tg") is None


def test_limits_that_cannot_be_leave_those_that_are(objects):
    objects.create("throttle-group", "tg", {"limits": {"iops-total": 100}})
    with pytest.raises(QobraError, match="cannot be used at the same time"):
        objects.find("tg").set("limits", {"iops-read": 1})
    assert _get(objects, "limits")["iops-read"] == 0


def test_a_group_with_members_stays(objects):
    objects.create("throttle-group", "tg", {"limits": {"iops-total": 100}})
    layer = objects.find("tg").machine.block
    node = {"driver": "throttle", "node-name": "t", "throttle-group": "tg", "file": {"driver": "null-co"}}
    layer.add_node(node)
    assert not objects.find("tg").can_be_deleted()
    layer.delete_node("t")
    assert objects.find("tg").can_be_deleted()
