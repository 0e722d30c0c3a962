"""Which packets a virtio-net card takes, by modes, tables and VLANs."""

from __future__ import annotations

import pytest

from qobra.machine.virtio.receive_filter import ReceiveFilter

_MINE, _OTHER = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
_GROUP, _ALL = bytes.fromhex("01005e000001"), b"\xff" * 6
_PROMISCUOUS, _ALL_MULTICAST, _ALL_UNICAST, _NO_MULTICAST, _NO_UNICAST, _NO_BROADCAST = range(6)


def _taken(filter: ReceiveFilter) -> set[bytes]:
    return {each for each in (_MINE, _OTHER, _GROUP, _ALL) if filter.accepts(each + bytes(54), _MINE)}


def _table(*addresses: bytes) -> bytes:
    return len(addresses).to_bytes(4, "little") + b"".join(addresses)


@pytest.fixture
def filter() -> ReceiveFilter:
    filter = ReceiveFilter()
    assert filter.set_mode(_PROMISCUOUS, b"\0")
    return filter


@pytest.mark.parametrize(
    ("mode", "taken"),
    [
        (_PROMISCUOUS, {_MINE, _OTHER, _GROUP, _ALL}),
        (_ALL_MULTICAST, {_MINE, _GROUP, _ALL}),
        (_ALL_UNICAST, {_MINE, _OTHER, _ALL}),
        (_NO_UNICAST, {_ALL}),
        (_NO_BROADCAST, {_MINE}),
    ],
)
def test_modes(filter: ReceiveFilter, mode: int, taken: set[bytes]) -> None:
    assert _taken(filter) == {_MINE, _ALL}
    assert filter.set_mode(mode, b"\1") and _taken(filter) == taken
    assert filter.set_mode(mode, b"\0") and _taken(filter) == {_MINE, _ALL}


def test_tables(filter: ReceiveFilter) -> None:
    assert filter.set_tables(_table(_OTHER) + _table(_GROUP))
    assert _taken(filter) == {_MINE, _OTHER, _GROUP, _ALL}
    assert filter.set_mode(_NO_MULTICAST, b"\1") and _GROUP not in _taken(filter)
    for wrong in (b"", b"\1\0\0", _table(_OTHER), _table(_OTHER)[:-1] + _table(), _table() + _table() + b"\0"):
        assert not filter.set_tables(wrong)
    assert not filter.set_tables(b"\xff\xff\xff\xff" + bytes(60))
    assert _OTHER in _taken(filter)


def test_a_table_that_is_too_long_holds_all(filter: ReceiveFilter) -> None:
    assert filter.set_tables(_table(*[_MINE] * 65) + _table(*[_GROUP] * 64))
    assert (filter.unicast_overflow, filter.unicast, filter.multicast_overflow) == (True, [], False)
    assert _OTHER in _taken(filter)
    assert filter.set_tables(_table(_MINE) + _table(*[_GROUP] * 64))
    assert (filter.unicast_overflow, filter.multicast_overflow, filter.multicast) == (False, True, [])


def test_vlans(filter: ReceiveFilter) -> None:
    packet = _MINE + _OTHER + b"\x81\x00\x20\x05" + bytes(46)
    assert not filter.accepts(packet, _MINE)
    assert filter.set_vlan(0, b"\5\0") and filter.accepts(packet, _MINE)
    assert not filter.set_vlan(0, b"\0\x10") and not filter.set_vlan(2, b"\5\0") and not filter.set_vlan(0, b"\5")
    assert filter.describe(vlans_filtered=True)["vlan-table"] == [5]
    assert filter.set_vlan(1, b"\5\0") and not filter.accepts(packet, _MINE)
