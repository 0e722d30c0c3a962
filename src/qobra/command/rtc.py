"""The clock of PCs over QMP."""

from __future__ import annotations

from typing import Any

from qobra.machine.machine import Machine
from qobra.qmp.registry import command


@command("rtc-reset-reinjection", needs="x86_64")
def rtc_reset_reinjection(machine: Machine, args: dict[str, Any]) -> None:
    """Forget periodic interrupts that the guest was slow to take: this clock never holds any back."""
