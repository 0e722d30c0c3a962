"""``-icount``: the guest's time is counted in its instructions.

While no CPU runs, which is so as long as there is no engine, time passes with the host's unless ``sleep=off`` has it
leap from one timer to the next; ``shift``, the nanoseconds that an instruction takes, is checked and has no effect.
"""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.units import integer

_MAX_SHIFT = 10


def icount_sleeps(options: dict[str, Any]) -> bool:
    """Whether time passes while the CPUs are idle. Raises QobraError in QEMU's words."""
    shift, align, sleep = options.get("shift"), options.get("align", False), options.get("sleep", True)
    if "rr" in options:
        if options["rr"] not in ("record", "replay"):
            raise QobraError(f"Invalid icount rr option: {options['rr']}")
        if "rrfile" not in options:
            raise QobraError("File name not specified for replay")
        raise QobraError("executions cannot be recorded: no CPU runs")
    if shift is None:
        if align:
            raise QobraError("Please specify shift option when using align")
        return True
    if align and not sleep:
        raise QobraError("align=on and sleep=off are incompatible")
    number = 0 if shift == "auto" else integer(shift)
    if number is None or not 0 <= number <= _MAX_SHIFT:
        raise QobraError("icount: Invalid shift value")
    return bool(sleep)
