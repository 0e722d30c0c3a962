"""What guests do to their machine: the same events and the same run states as with QEMU."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qobra.testing.guest import PciFunction
from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

Act = Callable[[SystemProgram], None]
_POWER = 0xB000
_PVPANIC, _IB700_SET = 0x505, 0x443


def _power_on(program: SystemProgram) -> None:
    """Switch the registers of ACPI on, as firmware does."""
    function = PciFunction(program.guest, 1 << 3 | 3)
    function.set_config(0x40, 4, _POWER | 1)
    function.set_config(0x80, 1, 1)


def _sleep(kind: int) -> Act:
    def act(program: SystemProgram) -> None:
        _power_on(program)
        program.guest.port_out(_POWER + 4, 2, 0x2000 | kind << 10)

    return act


def _out(port: int, value: int) -> Act:
    return lambda program: program.guest.port_out(port, 1, value)


def _qmp(command: str, **arguments: Any) -> Act:
    def act(program: SystemProgram) -> None:
        program.qmp(command, arguments or None)

    return act


def _i6300esb(program: SystemProgram) -> None:
    """Start the timer of the function in slot 4 with the shortest times."""
    function = PciFunction(program.guest, 4 << 3)
    function.enable()
    base = function.bars[0]
    function.set_config(0x60, 2, 0)
    for register in (0x00, 0x04):
        for unlock in (0x80, 0x86):
            program.guest.store(base + 0x0C, 2, unlock)
        program.guest.store(base + register, 4, 1)
    function.set_config(0x68, 1, 0x02)


_IB700 = ("-device", "ib700")
_PANIC = ("-device", "pvpanic")
_WATCHDOG_ACTIONS = ("reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi")


@pytest.mark.parametrize(
    ("arguments", "acts", "last"),
    [
        (_PANIC, [_out(_PVPANIC, 1)], "STOP"),
        (_PANIC, [_out(_PVPANIC, 2)], "GUEST_CRASHLOADED"),
        (_PANIC, [_out(_PVPANIC, 3)], "STOP"),
        ((*_PANIC, "-action", "panic=none"), [_out(_PVPANIC, 1)], "GUEST_PANICKED"),
        ((*_PANIC, "-action", "panic=pause"), [_out(_PVPANIC, 1)], "STOP"),
        ((), [_sleep(0)], "STOP"),
        ((), [_sleep(1)], "SUSPEND"),
        ((), [_sleep(1), _qmp("system_wakeup")], "WAKEUP"),
        ((), [_sleep(1), _qmp("system_reset")], "RESET"),
        ((), [_sleep(1), _qmp("cont"), _qmp("stop"), _qmp("system_wakeup")], "WAKEUP"),
        ((), [_sleep(2)], "SUSPEND_DISK"),
        ((), [_out(0x92, 1)], "RESET"),
        ((), [_out(0xCF9, 0x06)], "RESET"),
        (("-machine", "q35"), [_out(0xCF9, 0x0E)], "RESET"),
        (("-no-reboot",), [_out(0x92, 1)], "SHUTDOWN"),
        ((), [_out(0x64, 0xFE)], "RESET"),
        ((), [_qmp("system_powerdown")], "POWERDOWN"),
        ((), [_qmp("stop"), _qmp("system_reset"), _qmp("cont")], "RESUME"),
        (("-action", "shutdown=pause"), [_sleep(0), _qmp("cont"), _qmp("system_reset"), _qmp("cont")], "RESUME"),
        ((), [_qmp("inject-nmi"), _qmp("stop")], "STOP"),
        *(((*_IB700, "-action", f"watchdog={a}"), [_out(_IB700_SET, 0xF)], "WATCHDOG") for a in _WATCHDOG_ACTIONS),
        *(
            (("-device", "i6300esb,addr=4", "-action", f"watchdog={action}"), [_i6300esb], "WATCHDOG")
            for action in ("reset", "pause", "none")
        ),
    ],
)
def test_acts_of_guests(tmp_path: Path, arguments: tuple[str, ...], acts: list[Act], last: str) -> None:
    firmware = tmp_path / "halt"
    firmware.write_bytes(b"\xf4" * 65536)  # a CPU that runs shall not interfere
    found = []
    for peer in (False, True):
        options = ("-machine", "pc", "-m", "16", "-no-shutdown", "-bios", str(firmware), *arguments)
        with SystemProgram(tmp_path, "x86_64", *options, peer=peer) as program:
            program.qmp("cont")
            for act in acts:
                act(program)
            events: list[tuple[str, Any]] = []
            while not events or events[-1][0] != last:
                event = program.next_event()
                events.append((event["event"], event.get("data")))
            found.append((events, program.qmp("query-status")["status"] if last != "WATCHDOG" else None))
    assert found[0] == found[1]


@pytest.mark.parametrize("options", ["base=utc", "base=2020-01-01T00:00:00", "base=2020-01-01T00:00:00,clock=vm"])
@pytest.mark.parametrize("peer", [False, True])
def test_what_the_clock_lost_is_told(tmp_path: Path, options: str, peer: bool) -> None:
    """A guest stops its clock for two seconds: so far it is behind what -rtc says from then on."""
    firmware = tmp_path / "halt"
    firmware.write_bytes(b"\xf4" * 65536)
    arguments = ("-machine", "pc", "-m", "16", "-bios", str(firmware), "-rtc", options)
    with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
        program.qmp("cont")
        for value, seconds in ((0x82, 2.0), (0x02, 0.0)):
            program.guest.port_out(0x70, 1, 0x0B)
            program.guest.port_out(0x71, 1, value)
            time.sleep(seconds)
        assert program.wait_event("RTC_CHANGE")["data"]["offset"] in (-3, -2)
