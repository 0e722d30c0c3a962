"""Slots of PCI buses in the DSDT: which there are, and how devices come and go (the registers of acpi_pcihp)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.acpi_tables import aml
from qobra.machine.acpi_tables.hotplug import CHECK, EJECT

if TYPE_CHECKING:
    from qobra.machine.acpi_pcihp import AcpiPciHotplug
    from qobra.machine.pci.bus import PciBus


def managed(hotplug: AcpiPciHotplug) -> bool:
    """Whether any bus has its hot-plug by ACPI."""
    return bool(hotplug.buses)


def registers(base: int) -> bytes:
    """The registers, and the methods that select a bus before they use them."""
    return b"".join(
        (
            aml.region("PCST", aml.SYSTEM_IO, base, 8),
            aml.field("PCST", aml.DWORD, aml.WRITE_AS_ZEROES, ("PCIU", 32), ("PCID", 32)),
            aml.region("SEJ", aml.SYSTEM_IO, base + 8, 4),
            aml.field("SEJ", aml.DWORD, aml.WRITE_AS_ZEROES, ("B0EJ", 32)),
            aml.region("BNMR", aml.SYSTEM_IO, base + 0x10, 4),
            aml.field("BNMR", aml.DWORD, aml.WRITE_AS_ZEROES, ("BNUM", 32)),
            aml.mutex("BLCK"),
            aml.method(
                "PCEJ",
                2,
                aml.acquire("BLCK"),
                aml.store(aml.ARGS[0], aml.name("BNUM")),
                aml.shift_left(aml.ONE, aml.ARGS[1], aml.name("B0EJ")),
                aml.release("BLCK"),
                aml.give(aml.ZERO),
            ),
        )
    )


def slots(bus: PciBus, hotplug: AcpiPciHotplug) -> bytes:
    """What is in the scope of a bus: its slots, the bridges among them with their own, and ``PCNT``, which looks."""
    number = hotplug.buses.index(bus) if bus in hotplug.buses else None
    terms: list[bytes] = []
    if number is not None:
        terms.append(aml.define("BSEL", aml.integer(number)))
    below: list[str] = []
    notified: list[tuple[int, str]] = []
    for slot in range(1 if bus.one_slot else 32):
        device = bus.functions.get(slot << 3)
        label = f"S{slot << 3:02X}"
        inner: list[bytes] = []
        if device is not None and device.secondary is not None:
            inner.append(slots(device.secondary, hotplug))
            if _has_counter(device.secondary, hotplug):
                below.append(label)
        if number is not None and (device is None or (device.pluggable and device.hotpluggable_class)):
            notified.append((slot, label))
            inner.append(aml.define("_SUN", aml.integer(slot)))
            eject = aml.call("\\_SB.PCEJ", aml.name("BSEL"), aml.name("_SUN"))
            inner.append(aml.method("_EJ0", 1, eject))
        if inner:
            terms.append(aml.device(label, aml.define("_ADR", aml.integer(slot << 16)), *inner))
    if number is not None:
        tell = (
            aml.when(aml.both(aml.ARGS[0], aml.integer(1 << slot)), aml.notify(aml.name(label), aml.ARGS[1]))
            for slot, label in notified
        )
        terms.append(aml.method("DVNT", 2, *tell))
    if _has_counter(bus, hotplug):
        look: list[bytes] = []
        if number is not None:
            look += [
                aml.acquire("\\_SB.BLCK"),
                aml.store(aml.name("BSEL"), aml.name("\\_SB.BNUM")),
                aml.store(aml.name("\\_SB.PCIU"), aml.LOCALS[0]),
                aml.store(aml.name("\\_SB.PCID"), aml.LOCALS[1]),
                aml.release("\\_SB.BLCK"),
                aml.call("DVNT", aml.LOCALS[0], aml.integer(CHECK)),
                aml.call("DVNT", aml.LOCALS[1], aml.integer(EJECT)),
            ]
        look += [aml.call(f"^{label}.PCNT") for label in below]
        terms.append(aml.method("PCNT", 0, *look))
    return b"".join(terms)


def _has_counter(bus: PciBus, hotplug: AcpiPciHotplug) -> bool:
    return bus in hotplug.buses or any(
        _has_counter(device.secondary, hotplug) for device in bus.functions.values() if device.secondary is not None
    )
