"""xHCI controllers as a whole: interrupts, models, hostile guests, migration, an adapter with several units."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qobra.machine.plug import add_device
from qobra.machine.usb.xhci import ring
from qobra.migration import machine_state
from qobra.migration.ram import ram_blocks
from qobra.testing import xhci
from qobra.testing.usb import key_event
from qobra.testing.xhci_pc import DISK, IN, INPUT, OUT, SUPER_PORT, XhciPc

_MS = 10**6


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[XhciPc]:
    guest = XhciPc(tmp_path)
    guest.driver.start()
    yield guest
    guest.machine.close()


# -- interrupts


def test_messages(guest: XhciPc) -> None:
    driver, function = guest.driver, guest.function
    base, message = function.bars[0], 0x3000
    guest.access.write(0x8000, bytes(4))
    guest.access.store(base + message, 4, 0x8000)
    guest.access.store(base + message + 8, 4, 0x4321)
    guest.access.store(base + message + 12, 4, 0)
    ((_, at),) = [each for each in function.capabilities() if each[0] == 0x11]
    function.set_config(at + 2, 2, 0x8000)
    driver.start(interrupts=True)
    driver.commands.put(0, 0, xhci.COMMAND_NO_OP << 10)
    driver.ring(0, 0)
    assert guest.access.load(0x8000, 4) == 0x4321 and driver.operational(4) & 8
    assert driver.runtime(0x20) & 1 == 0  # the message says it
    # Until the guest has seen to that one, no other is sent.
    guest.access.store(0x8000, 4, 0)
    driver.commands.put(0, 0, xhci.COMMAND_NO_OP << 10)
    driver.ring(0, 0)
    assert guest.access.load(0x8000, 4) == 0
    assert driver.event(consume=True) is not None  # there is one more
    assert guest.access.load(0x8000, 4) == 0x4321
    driver.all_events()
    guest.access.store(0x8000, 4, 0)
    driver.acknowledge()
    assert guest.access.load(0x8000, 4) == 0


def test_the_pin(guest: XhciPc) -> None:
    driver, function = guest.driver, guest.function
    driver.start(interrupts=True)
    assert not function.config(4) & 0x80000
    driver.command(xhci.COMMAND_NO_OP)
    assert function.config(4) & 0x80000
    driver.runtime(0x20, 3)
    assert not function.config(4) & 0x80000 and driver.operational(4, 8) & 8 == 0


@pytest.mark.parametrize(("options", "kinds"), [({}, [0x11, 0x05]), ({"msi": "off"}, [0x11]), ({"msix": "off"}, [5])])
def test_what_nec_has(tmp_path: Path, options: dict[str, str], kinds: list[int]) -> None:
    guest = XhciPc(tmp_path, "nec-usb-xhci", p2="6", p3="1", slots="8", intrs="5", **options)
    assert [kind for kind, _ in guest.function.capabilities()] == kinds
    base = guest.function.bars[0]
    assert guest.access.load(base + 4, 4) == 7 << 24 | 4 << 8 | 8
    assert guest.access.load(base + 0x28, 4) == 0x0602 and guest.access.load(base + 0x38, 4) == 0x0101
    guest.driver.start()
    place = guest.driver.commands.put(0, 0, 49 << 10)
    guest.driver.ring(0, 0)
    assert [(e.kind, e.pointer, e.length) for e in guest.driver.all_events()] == [(48, place, 0x3034)]
    assert [guest.driver.command(xhci.ENABLE_SLOT).code for _ in range(9)] == [ring.SUCCESS] * 8 + [ring.NO_SLOTS]
    guest.machine.close()


def test_microframes(guest: XhciPc) -> None:
    driver = guest.driver
    driver.operational(0, 0x401)
    before = driver.runtime(0)
    guest.access.step(10 * _MS)
    assert (driver.runtime(0) - before) % 0x4000 == 80
    guest.access.step(0x4000 * 125_000)
    assert [e.kind for e in driver.all_events()] == [ring.MFINDEX_WRAP]
    driver.operational(0, 0)
    assert driver.operational(4) & 1 and driver.runtime(0) == 0


# -- guests that mean harm

_PLACES = st.sampled_from([0, 0x100000, 0x101000, 0x102000, 0x103000, 0xE0000000, (1 << 64) - 16])
_NUMBER = st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from([0, 1, 2, 5, 0x3F, 0xFF, 0x10000, 0x1FFFF]))
_REGISTERS = st.sampled_from([
    *(0x40 + at for at in (0, 0, 4, 0x14, 0x18, 0x1C, 0x30, 0x34, 0x38)),
    *(0x440 + 16 * port + at for port in (0, 3, 4, 7) for at in (0, 4)),
    *(0x1020 + 32 * n + at for n in (0, 1, 15) for at in (0, 4, 8, 16, 20, 24, 28)),
    *(0x2000 + 4 * slot for slot in (0, 1, 1, 1, 2, 64)),
])  # fmt: skip
_REQUEST = st.tuples(
    st.one_of(_PLACES, st.integers(0, (1 << 64) - 1)), _NUMBER, st.sampled_from([*range(1, 24), 48, 63]), _NUMBER
)
_ACT = st.one_of(
    st.tuples(st.just("register"), _REGISTERS, _NUMBER),
    st.tuples(st.just("command"), _REQUEST, st.just(0)),
    st.tuples(st.just("transfer"), _REQUEST, st.sampled_from([1, IN, OUT])),
    st.tuples(st.just("memory"), st.integers(0x100000, 0x110000), _NUMBER),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_ACT, max_size=40))
def test_hostile_guests(tmp_path_factory: Any, acts: list[Any]) -> None:
    guest = XhciPc(tmp_path_factory.mktemp("usb"))
    driver = guest.driver
    try:
        driver.start()
        guest.plug("usb-storage", drive="disk", port="1")
        guest.plug("usb-kbd", port="2")
        slot = guest.begin(SUPER_PORT, DISK)
        for kind, what, value in acts:
            if kind == "register":
                guest.access.store(driver.base + what, 4, value)
            elif kind == "memory":
                guest.access.store(what & ~3, 4, value)
            else:
                parameter, status, type_, flags = what
                at = driver.commands if kind == "command" else driver.rings[slot, value]
                at.put(parameter, status, type_ << 10 | flags & 0x3FF | slot << 24 | OUT << 16)
                driver.ring(0 if kind == "command" else slot, value)
            guest.access.step(_MS // 4)
        driver.start()
        assert driver.command(xhci.COMMAND_NO_OP).code == ring.SUCCESS
        assert driver.port(SUPER_PORT) & 1
    finally:
        guest.machine.close()


# -- migration


def test_what_is_under_way_goes_on_elsewhere(tmp_path: Path) -> None:
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    source, target = (XhciPc(tmp_path / name) for name in ("from", "to"))
    try:
        driver = source.driver
        driver.start()
        for guest in (source, target):
            guest.plug("usb-storage", drive="disk", port="1", id="stick")
            guest.plug("usb-kbd", port="2", id="keys")
        disk, keys = source.begin(SUPER_PORT, DISK), source.begin(6, INPUT)
        buffer = driver.memory.take(8)
        place = driver.rings[keys, IN].put(buffer, 8, ring.NORMAL << 10 | ring.ON_COMPLETION)
        driver.ring(keys, IN)
        driver.send(disk, OUT, source.command_block(b"\x25" + bytes(9), 8, to_host=True))
        driver.receive(disk, IN, 8)
        driver.receive(disk, IN, 13)
        with source.machine.control:
            source.machine.run_state.stop("paused")
            source.machine.run_state.settle()
            (_kind, head), *sections = machine_state.save_devices(source.machine, "paused")
        with target.machine.control:
            target.machine.run_state.stop("paused")
            for block, there in zip(ram_blocks(source.board), ram_blocks(target.board), strict=True):
                there.ram.view[:] = block.ram.view
            machine_state.load_devices(target.machine, bytes(head), [bytes(payload) for _kind, payload in sections])
            target.machine.run_state.start()
        ports = [driver.port(n) for n in range(1, 9)]
        driver.move(target.access)
        target.driver = driver
        assert [driver.port(n) for n in range(1, 9)] == ports
        target.send(key_event("a", True))
        assert [e.pointer for e in driver.all_events()] == [place]
        assert target.access.read(buffer, 3) == b"\0\0\x04"
        assert target.scsi(disk, b"\x28\0\0\0\0\3\0\0\1\0", room=512)[2] == bytes([3]) * 512
    finally:
        source.machine.close()
        target.machine.close()


# -- an adapter for bulk-only transport


def test_units_behind_one_plug(guest: XhciPc) -> None:
    driver = guest.driver
    bot = guest.plug("usb-bot", port="1", id="bot")
    assert not driver.port(SUPER_PORT) & 1  # it waits until its units are there
    with guest.machine.control:
        guest.machine.block.add_node({"driver": "null-co", "size": 1 << 20, "node-name": "null"})
        for node, lun in (("disk", "0"), ("null", "2")):
            place = {"bus": "bot.0", "scsi-id": "0", "lun": lun}
            add_device(guest.machine, {"driver": "scsi-hd", "drive": node, "id": node} | place, keyval=True)
        bot.set("attached", True)
    slot = guest.begin(SUPER_PORT, DISK)
    assert driver.control(slot, bytes((0xA1, 0xFE, 0, 0, 0, 0, 1, 0))) == (ring.SUCCESS, b"\2")
    assert guest.scsi(slot, b"\x28\0\0\0\0\3\0\0\1\0", room=512) == (0, 0, bytes([3]) * 512)

    def command(lun: int, cdb: bytes, room: int) -> int:
        block = bytearray(guest.command_block(cdb, room, to_host=True))
        block[13] = lun
        return driver.send(slot, OUT, bytes(block)).code

    assert command(2, bytes(6), 0) == ring.SUCCESS and driver.receive(slot, IN, 13)[1][12] == 1
    assert command(2, b"\x03\0\0\0\x12\0", 18) == ring.SUCCESS
    assert driver.receive(slot, IN, 18)[1][12] == 0x29 and driver.receive(slot, IN, 13)[1][12] == 0
    assert command(1, bytes(6), 0) == ring.STALL_ERROR
