"""``qtest``: no CPU runs; a test drives memory, interrupts and time."""

from __future__ import annotations

from qobra.machine.accelerator import Accelerator, registry


@registry.register("qtest-accel")
class QtestAccel(Accelerator):
    """The machine as a test bench."""

    type_name = "qtest-accel"
    drives_clock = True
