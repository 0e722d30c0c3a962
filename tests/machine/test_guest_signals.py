"""What guests say of themselves: panics, watchdogs, identities."""

from __future__ import annotations

from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.plug import add_device
from qobra.qmp import dispatch
from qobra.testing.guest import BoardAccess, PciFunction


@pytest.fixture
def machine() -> Any:
    machine = simple_machine("x86_64", "pc", memory=2 << 20)
    board: Any = machine.board
    board.ready = False  # as from the command line
    machine.events_seen = []  # type: ignore[attr-defined]
    machine.events.subscribe(lambda event: machine.events_seen.append((event["event"], event.get("data"))))  # type: ignore[attr-defined]
    with machine.control:
        machine.run_state.start()
    yield machine
    machine.close()


def _add(machine: Any, driver: str, **options: str) -> Any:
    with machine.control:
        return add_device(machine, {"driver": driver} | options, keyval=True)


@pytest.mark.parametrize("kind", ["pvpanic", "pvpanic-pci"])
def test_panics(machine: Any, kind: str) -> None:
    guest = BoardAccess(machine)
    machine.run_state.panic_action = "pause"
    if kind == "pvpanic":
        _add(machine, kind)

        def write(value: int) -> None:
            guest.port_out(0x505, 1, value)

        assert guest.port_in(0x505, 1) == 3
    else:
        _add(machine, kind, addr="5")
        function = PciFunction(guest, 5 << 3)
        function.enable()

        def write(value: int) -> None:
            guest.store(function.bars[0], 1, value)

        assert guest.load(function.bars[0], 1) == 3
    write(0)
    write(2)
    write(1)
    assert machine.events_seen[1:] == [
        ("GUEST_CRASHLOADED", {"action": "run"}),
        ("GUEST_PANICKED", {"action": "pause"}),
        ("STOP", None),
    ]
    assert machine.run_state.state == "guest-panicked"


@pytest.mark.parametrize(
    ("action", "events"),
    [
        ("reset", ["WATCHDOG", "RESET"]),
        ("shutdown", ["WATCHDOG", "POWERDOWN"]),
        ("poweroff", ["WATCHDOG", "SHUTDOWN"]),
        ("pause", ["WATCHDOG", "STOP"]),
        ("none", ["WATCHDOG"]),
        ("inject-nmi", ["WATCHDOG"]),
    ],
)
def test_the_watchdog(machine: Any, action: str, events: list[str]) -> None:
    guest = BoardAccess(machine)
    _add(machine, "i6300esb", addr="5", id="wd")
    with machine.control:
        dispatch.call(machine, "watchdog-set-action", {"action": action})
    function = PciFunction(guest, 5 << 3)
    function.enable()
    base = function.bars[0]

    def write(offset: int, width: int, value: int) -> None:
        guest.store(base + 0xC, 2, 0x80)
        guest.store(base + 0xC, 2, 0x86)
        guest.store(base + offset, width, value)

    guest.store(base, 4, 1)  # locked: it does not count
    write(0, 4, 1000)
    write(4, 4, 1000)
    function.set_config(0x60, 2, 0x03)
    function.set_config(0x68, 1, 0x02)
    guest.step(900_000_000)
    write(0xC, 2, 0x100)  # it is fed
    guest.step(900_000_000)
    assert machine.events_seen[1:] == []
    guest.step(100_000_000)
    guest.step(1_100_000_000)
    assert [name for name, _data in machine.events_seen[1:]] == events
    assert machine.events_seen[1] == ("WATCHDOG", {"action": action})
    assert guest.load(base + 0xC, 2) == 0x1200 or action in ("reset",)


def test_the_identity(machine: Any) -> None:
    guid = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"
    with machine.control, pytest.raises(QobraError, match="VM Generation ID device not found"):
        dispatch.call(machine, "query-vm-generation-id", {})
    with pytest.raises(QobraError, match="Property 'vmgenid.guid' doesn't take value 'x'"):
        _add(machine, "vmgenid", guid="x")
    _add(machine, "vmgenid", guid=guid, id="g")
    with machine.control:
        assert dispatch.call(machine, "query-vm-generation-id", {}) == {"guid": guid}
    with pytest.raises(QobraError, match="at most one vmgenid device is permitted"):
        _add(machine, "vmgenid")
    # The firmware tells where it put the page, by DMA.
    guest, board = BoardAccess(machine), machine.board
    assert board.fw_cfg.file("etc/vmgenid_addr") is not None  # all files are there now
    key = 0x20 + sorted(board.fw_cfg._files).index("etc/vmgenid_addr")
    guest.write(0x100000, (0x110000).to_bytes(8, "little"))
    request = (key << 16 | 8 | 16).to_bytes(4, "big") + (8).to_bytes(4, "big") + (0x100000).to_bytes(8, "big")
    guest.write(0x101000, request)
    guest.port_out(0x514, 4, int.from_bytes((0).to_bytes(4, "big"), "little"))
    guest.port_out(0x518, 4, int.from_bytes((0x101000).to_bytes(4, "big"), "little"))
    assert guest.read(0x101000, 4) == bytes(4)
    assert guest.read(0x110028, 16).hex() == "af6e4e32d1d1f64bbf41b9bb6c91fb87"


@pytest.mark.parametrize(("policy", "ticks"), [("discard", 1), ("slew", 4)])
def test_ticks_that_nobody_took_are_made_up_for(machine: Any, policy: str, ticks: int) -> None:
    guest = BoardAccess(machine)

    def register(index: int) -> int:
        guest.port_out(0x70, 1, index)
        return guest.port_in(0x71, 1)

    guest.port_out(0x70, 1, 0x0A)
    guest.port_out(0x71, 1, 0x26)  # 1024 ticks a second
    guest.port_out(0x70, 1, 0x0B)
    guest.port_out(0x71, 1, 0x42)
    machine.board.rtc.lost_tick_policy = policy
    for _ in range(4):
        guest.step(10**9 // 1024)
    assert [register(0x0C) & 0x40 for _ in range(6)] == [0x40] * ticks + [0] * (6 - ticks)
