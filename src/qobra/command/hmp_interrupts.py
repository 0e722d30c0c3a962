"""Interrupt controllers for people: their state, and how often their inputs rose."""

from __future__ import annotations

from typing import Any

from qobra.machine.board import find_devices
from qobra.machine.device.ioapic import IoApic
from qobra.machine.device.isa_i8259 import I8259
from qobra.machine.machine import Machine
from qobra.qmp.hmp import hmp_command


def _controllers(machine: Machine) -> tuple[list[IoApic], list[I8259]]:
    """Those of a PC, of 8259As the slave first; other boards tell of none."""
    assert machine.board is not None
    apics = [each for each in find_devices(machine.board, IoApic.type_name) if isinstance(each, IoApic)]
    pics = [each for each in find_devices(machine.board, I8259.type_name) if isinstance(each, I8259)]
    return apics, sorted(pics, key=lambda pic: bool(pic.master))


@hmp_command("info pic", help="the state of interrupt controllers", needs="board")
def info_pic(machine: Machine, args: dict[str, Any]) -> str:
    """What each controller is set to, and has to do."""
    apics, pics = _controllers(machine)
    return "".join(each.describe() for each in (*apics, *pics))


@hmp_command("info irq", help="how often each interrupt line rose", needs="board")
def info_irq(machine: Machine, args: dict[str, Any]) -> str:
    """The lines that rose, by controller; the two 8259As count as one of 16 inputs."""
    apics, pics = _controllers(machine)
    counted = [("ioapic", each.rises.counts) for each in apics]
    if pics:
        counted.append(("isa-i8259", [count for pic in reversed(pics) for count in pic.rises.counts]))
    lines = []
    for title, counts in counted:
        lines.append(f"IRQ statistics for {title}:\n")
        lines += [f"{number:2}: {count}\n" for number, count in enumerate(counts) if count]
    return "".join(lines)
