"""The standard hot-plug controller of pci-bridge: the same guest on QEMU's and ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qobra.testing.guest import PciFunction
from qobra.testing.system import SystemProgram, peer_available

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_COMMANDS = (
    *((0x02, 4), (0x36, 4), (0x01, 4), (0x02, 9), (0x03, 9), (0x50, 1), (0x02, 0), (0x40, 1), (0x48, 0), (0x49, 0)),
    (0x03, 3),
)


def _script(program: SystemProgram) -> list[Any]:
    function = PciFunction(program.guest, 5 << 3)
    found: list[Any] = [[function.config(offset) for offset in range(0, 0x60, 4)]]
    function.set_config(0x10, 4, 0xE0000000)
    function.set_config(4, 2, 7)

    def registers() -> None:
        found.append([program.guest.load(0xE0000000 + at, 4) for at in range(0, 0xA0, 4)])
        found.append(function.config(4))

    def plug(id: str, slot: int) -> None:
        options = {"driver": "virtio-rng-pci", "bus": "br", "id": id, "addr": f"{slot:x}"}
        found.append(program.qmp("device_add", options))
        registers()

    registers()
    plug("r0", 0)
    plug("r4", 4)
    for code, slot in _COMMANDS:
        program.guest.store(0xE0000014, 2, code | slot << 8)
        registers()
    program.guest.store(0xE0000020, 4, 0)
    program.guest.store(0xE0000024 + 4 * 4, 4, 0)
    plug("r5", 5)
    for id in ("r3", "r5", "r5"):
        found.append(program.qmp("device_del", {"id": id}) if id == "r3" else None)
        registers()
    program.guest.store(0xE0000024 + 4 * 4, 4, 0x001F0000)
    registers()
    return found


def test_the_controller_of_a_bridge(tmp_path: Path) -> None:
    answers = []
    for peer in (False, True):
        arguments = (
            *("-machine", "pc", "-m", "64", "-global", "PIIX4_PM.acpi-pci-hotplug-with-bridge-support=off"),
            *("-device", "pci-bridge,chassis_nr=1,id=br,addr=5", "-device", "virtio-rng-pci,bus=br,addr=3,id=r3"),
        )
        with SystemProgram(tmp_path, "x86_64", *arguments, peer=peer) as program:
            answers.append(_script(program))
    for own, theirs in zip(*answers, strict=True):
        assert own == theirs
