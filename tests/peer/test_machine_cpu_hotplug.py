"""CPUs that come and go: the guest's registers, the events and the answers are the same with QEMU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_CPU = {"driver": "qemu64-x86_64-cpu", "socket-id": 0, "thread-id": 0}
_EVENTS = 0x600  # where the power management of q35 is put


class _Guest:
    """What a guest does with the registers, and all that is to be seen of it."""

    def __init__(self, program: SystemProgram, board: str) -> None:
        self.program = program
        self._guest = program.guest
        self._base, self._gpe = (0xAF00, 0xAFE0) if board == "pc" else (0x0CD8, _EVENTS + 0x20)
        if board == "q35":
            for register, value in ((0x40, _EVENTS), (0x44, 0x80)):
                self._guest.port_out(0xCF8, 4, 0x8000F800 | register)
                self._guest.port_out(0xCFC, 4, value)
        self.seen: list[Any] = []

    def look(self) -> None:
        registers = [self._guest.port_in(self._base + offset, 1) for offset in range(13)]
        wide = [self._guest.port_in(self._base + offset, width) for offset, width in ((0, 4), (4, 2), (8, 4), (6, 2))]
        status = self.program.qmp("query-acpi-ospm-status")
        count = len(self.program.qmp("query-cpus-fast"))
        # QEMU tells of a CPU's local APIC that goes with it, and of the CPU itself at its leisure.
        events = [(e["event"], e["data"]) for e in self.program.events if e["event"] == "ACPI_DEVICE_OST"]
        self.program.events.clear()
        self.seen.append((registers, wide, self._guest.port_in(self._gpe, 1), status, count, events))
        self._guest.port_out(self._gpe, 1, 0xFF)

    def write(self, offset: int, width: int, value: int) -> None:
        self._guest.port_out(self._base + offset, width, value)
        self.look()

    def command(self, command: str, **arguments: Any) -> None:
        self.seen.append(self.program.qmp(command, {key.replace("_", "-"): value for key, value in arguments.items()}))
        self.look()

    def add(self, core: int, id: str) -> None:
        self.command("device_add", core_id=core, id=id, **_CPU)

    def reset(self) -> None:
        self.program.qmp("system_reset")
        self.program.wait_event("RESET")
        self.look()


def _unplug(guest: _Guest) -> None:
    guest.look()
    guest.add(3, "c3")
    guest.command("device_del", id="c3")
    guest.write(0, 1, 1)
    guest.write(0, 1, 0)
    guest.add(4, "c4")
    for offset, width, value in ((0, 4, 3), (5, 1, 0), (4, 1, 2), (5, 1, 0), (0, 4, 3), (5, 1, 3), (5, 1, 7)):
        guest.write(offset, width, value)
    for _ in range(2):
        guest.command("device_del", id="c3")
    for value in (0x10, 0x10, 0x04):
        guest.write(4, 1, value)
    for command, value in ((1, 0x103), (2, 0x84), (0, 5), (3, 7)):
        guest.write(5, 1, command)
        guest.write(8, 4, value)
    guest.write(0, 4, 3)
    guest.write(4, 1, 8)
    guest.write(4, 1, 8)
    for selected in (0, 1, 9):
        guest.write(0, 4, selected)
        guest.write(4, 1, 8)
        guest.write(5, 1, 1)
        guest.write(8, 4, 0x103)


def _resets(guest: _Guest) -> None:
    guest.write(0, 1, 0)
    guest.add(2, "c2")
    guest.add(5, "c5")
    guest.write(0, 4, 5)
    guest.reset()
    guest.command("device_del", id="c5")
    guest.write(4, 1, 6)
    guest.write(4, 1, 4)
    guest.reset()
    guest.command("device_del", id="c2")
    guest.reset()
    guest.write(5, 1, 0)


@pytest.mark.parametrize("script", [_unplug, _resets])
@pytest.mark.parametrize("board", ["pc", "q35"])
def test_registers(tmp_path: Path, board: str, script: Any) -> None:
    found = []
    for peer in (False, True):
        with SystemProgram(tmp_path, "x86_64", "-machine", board, "-smp", "2,maxcpus=6", peer=peer) as program:
            guest = _Guest(program, board)
            script(guest)
            found.append(guest.seen)
    for step, (own, theirs) in enumerate(zip(*found, strict=True)):
        assert own == theirs, step
