"""What the methods for CPUs and for memory modules that come and go have in common."""

from __future__ import annotations

from collections.abc import Sequence

from qobra.machine.acpi_tables import aml

CHECK, EJECT = 1, 3
"""What a device is notified of: it has come, or it shall go (ACPI 6.4, table 5.6)."""


def method_on_one(lock: str, selector: str, label: str, arguments: int, *terms: bytes) -> bytes:
    """A method that works on the one of its first argument, which no other selects meanwhile.

    ``terms`` release ``lock``; ``selector`` is the register that selects.
    """
    return aml.method(
        label, arguments, aml.acquire(lock), aml.store(aml.ARGS[0], aml.name(selector)), *terms, serialized=True
    )


def notifier(label: str, names: Sequence[str]) -> bytes:
    """A method of a number and an event: the device of that number among ``names`` is notified."""
    return aml.method(
        label,
        2,
        *(
            aml.when(aml.equal(aml.ARGS[0], aml.integer(number)), aml.notify(aml.name(name), aml.ARGS[1]))
            for number, name in enumerate(names)
        ),
    )
