"""``-boot``: what the firmware is to boot from, and how long it waits."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.option_groups import boolean
from qobra.units import integer

_BOOLEANS, _NUMBERS, _DEVICES = ("menu", "strict"), ("splash-time", "reboot-timeout"), ("order", "once")


def parse(given: dict[str, str]) -> dict[str, Any]:
    """The options, typed. Raises QobraError."""
    options: dict[str, Any] = {}
    for key, value in given.items():
        if key in _BOOLEANS:
            options[key] = boolean(f"boot.{key}", value)
        elif key in _NUMBERS:
            options[key] = integer(value)
            if options[key] is None:
                raise QobraError(f"Parameter 'boot.{key}' expects integer")
        elif key in (*_DEVICES, "splash"):
            options[key] = value
        else:
            raise QobraError(f"Parameter 'boot.{key}' is unexpected")
    if any(key in options for key in _DEVICES):
        from qobra.machine.boot_devices import check

        for key in _DEVICES:
            check(options.get(key, ""))
    return options
