"""Memory in the DSDT: the slots for modules with their hot-plug (the registers of acpi_memhp)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.acpi_memhp import PORT
from qobra.machine.acpi_tables import aml, resources
from qobra.machine.acpi_tables.hotplug import CHECK, EJECT, method_on_one, notifier

if TYPE_CHECKING:
    from qobra.machine.pc import PcBoard

_LAST_BYTE_OF_RANGE = (1 << 64) - 2


def has_slots(board: PcBoard) -> bool:
    """Whether modules can be plugged in."""
    return board.dimm_slots is not None and board.dimm_slots.count > 0


def devices(board: PcBoard) -> bytes:
    """The controller of the slots, and a device for each slot."""
    return _controller(board.dimm_slots.count) if board.dimm_slots is not None and has_slots(board) else b""


def _controller(count: int) -> bytes:
    return aml.device(
        "MHPD",
        aml.define("_HID", aml.eisa_id("PNP0A06")),
        aml.define("_UID", aml.string("Memory hotplug resources")),
        aml.define("_CRS", resources.template(resources.io(PORT, 24))),
        aml.region("HPMR", aml.SYSTEM_IO, PORT, 24),
        aml.field("HPMR", aml.DWORD, aml.PRESERVE, *((f"MR{letter}", 32) for letter in "BALHPX")),
        aml.field("HPMR", aml.BYTE, aml.WRITE_AS_ZEROES, ("", 160), ("MES", 1), ("MINS", 1), ("MRMV", 1), ("MEJ", 1)),
        aml.field("HPMR", aml.DWORD, aml.WRITE_AS_ZEROES, ("MSEL", 32), ("MOEV", 32), ("MOSC", 32)),
        aml.mutex("MLCK"),
        _scan(count),
        *(method_on_one("MLCK", "MSEL", label, arguments, *terms) for label, arguments, terms in _slot_methods()),
        *(_module(number) for number in range(count)),
        notifier("MTFY", [f"MP{number:02X}" for number in range(count)]),
    )


def _scan(count: int) -> bytes:
    """Look at every slot: say what came, and what shall go."""
    slot = aml.LOCALS[0]
    return aml.method(
        "MSCN",
        0,
        aml.acquire("MLCK"),
        aml.store(aml.ZERO, slot),
        aml.repeat(
            aml.less(slot, aml.integer(count)),
            aml.store(slot, aml.name("MSEL")),
            aml.when(
                aml.equal(aml.name("MINS"), aml.ONE),
                aml.call("MTFY", slot, aml.integer(CHECK)),
                aml.store(aml.ONE, aml.name("MINS")),
            ),
            aml.when(
                aml.equal(aml.name("MRMV"), aml.ONE),
                aml.call("MTFY", slot, aml.integer(EJECT)),
                aml.store(aml.ONE, aml.name("MRMV")),
            ),
            aml.increment(slot),
        ),
        aml.release("MLCK"),
    )


def _slot_methods() -> tuple[tuple[str, int, tuple[bytes, ...]], ...]:
    state, result = aml.LOCALS[0], aml.LOCALS[1]
    return (
        (
            "MRST",
            1,
            (
                aml.store(aml.ZERO, state),
                aml.when(aml.equal(aml.name("MES"), aml.ONE), aml.store(aml.integer(0x0F), state)),
                aml.release("MLCK"),
                aml.give(state),
            ),
        ),
        ("MPXM", 1, (aml.store(aml.name("MRP"), state), aml.release("MLCK"), aml.give(state))),
        ("MDEJ", 1, (aml.store(aml.ONE, aml.name("MEJ")), aml.release("MLCK"))),
        (
            "MOST",
            3,
            (
                aml.store(aml.ARGS[1], aml.name("MOEV")),
                aml.store(aml.ARGS[2], aml.name("MOSC")),
                aml.release("MLCK"),
            ),
        ),
        ("MCRS", 1, (*_current_range(), aml.release("MLCK"), aml.give(result))),
    )


def _current_range() -> tuple[bytes, ...]:
    """A template with the range of the slot: the halves of its base, its length and its end are put in."""
    # Offsets in a descriptor of 64-bit memory: minimum 14, maximum 22, length 38.
    low, high = (14, 22, 38), (18, 26, 42)
    names = ("MIN", "MAX", "LEN")
    return (
        aml.define("MR64", resources.template(resources.memory_window(0, _LAST_BYTE_OF_RANGE, wide=True))),
        *(aml.dword_of(aml.name("MR64"), at, f"{label}L") for label, at in zip(names, low, strict=True)),
        *(aml.dword_of(aml.name("MR64"), at, f"{label}H") for label, at in zip(names, high, strict=True)),
        aml.store(aml.name("MRB"), aml.name("MINL")),
        aml.store(aml.name("MRA"), aml.name("MINH")),
        aml.store(aml.name("MRL"), aml.name("LENL")),
        aml.store(aml.name("MRH"), aml.name("LENH")),
        # The end: base + length - 1, in halves with the carry between.
        aml.add(aml.name("MINL"), aml.name("LENL"), aml.name("MAXL")),
        aml.add(aml.name("MINH"), aml.name("LENH"), aml.name("MAXH")),
        aml.when(aml.less(aml.name("MAXL"), aml.name("MINL")), aml.increment(aml.name("MAXH"))),
        aml.when(aml.equal(aml.name("MAXL"), aml.ZERO), aml.subtract(aml.name("MAXH"), aml.ONE, aml.name("MAXH"))),
        aml.subtract(aml.name("MAXL"), aml.ONE, aml.name("MAXL")),
        aml.store(aml.name("MR64"), aml.LOCALS[1]),
    )


def _module(number: int) -> bytes:
    slot = aml.integer(number)
    return aml.device(
        f"MP{number:02X}",
        aml.define("_UID", aml.string(f"0x{number:02X}")),
        aml.define("_HID", aml.eisa_id("PNP0C80")),
        aml.method("_CRS", 0, aml.give(aml.call("MCRS", slot))),
        aml.method("_STA", 0, aml.give(aml.call("MRST", slot))),
        aml.method("_PXM", 0, aml.give(aml.call("MPXM", slot))),
        aml.method("_OST", 3, aml.call("MOST", slot, aml.ARGS[0], aml.ARGS[1])),
        aml.method("_EJ0", 1, aml.call("MDEJ", slot)),
    )
