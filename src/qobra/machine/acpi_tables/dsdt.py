"""The DSDT of a PC: the PCI root and what hangs off it, CPUs, and the methods of hot-plug."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.acpi_cpuhp import GPE_BIT as CPU_EVENT
from qobra.machine.acpi_memhp import GPE_BIT as MEMORY_EVENT
from qobra.machine.acpi_pcihp import GPE_BIT as PCI_EVENT
from qobra.machine.acpi_tables import aml, cpus, ipmi, memory, pci_slots, resources, tpm
from qobra.machine.device import hpet
from qobra.machine.nvdimm_interface import GPE_BIT as NVDIMM_EVENT

if TYPE_CHECKING:
    from qobra.machine.acpi_pcihp import AcpiPciHotplug
    from qobra.machine.pc import PcBoard

_FOUR_GIB = 1 << 32
_LINKS = "ABCDEFGH"
_PARALLEL = (0x378, 0x278, 0x3BC)
_LINK_CHOICES = (5, 10, 11)
_MEMORY_END = 0xFEBFFFFF


class Layout:
    """Where the chipset has what the tables speak of.

    ``power_base`` is where firmware puts the power management registers; ``events`` the general-purpose events;
    ``enable`` and ``disable`` what hands them over; ``links`` the routing registers of the ISA bridge, in groups.
    """

    def __init__(
        self,
        *,
        express: bool,
        events: int,
        events_length: int,
        enable: int,
        disable: int,
        isa_place: int,
        links: tuple[int, ...],
        hotplug: AcpiPciHotplug,
        hotplug_base: int,
        ecam: int | None = None,
        power_base: int = 0x600,
    ) -> None:
        self.express = express
        self.events = events
        self.events_length = events_length
        self.enable = enable
        self.disable = disable
        self.isa_place = isa_place
        self.links = links
        self.hotplug = hotplug
        self.hotplug_base = hotplug_base
        self.ecam = ecam
        self.power_base = power_base
        self.reset_register = express


def dsdt(board: PcBoard, layout: Layout) -> bytes:
    """The terms of the table."""
    return b"".join(
        (
            aml.define("\\PICF", aml.ZERO),
            aml.method("\\_PIC", 1, aml.store(aml.ARGS[0], aml.name("\\PICF"))),
            aml.scope("\\_SB", _root(board, layout), pci_slots.registers(layout.hotplug_base)),
            aml.scope("\\_SB.PCI0", pci_slots.slots(board.pci_root, layout.hotplug), ipmi.smbus_devices(board)),
            aml.scope("\\_SB", _event_timer(board), _links(layout), cpus.devices(board), memory.devices(board)),
            _without_bus(board),
            _events(board, layout),
            _sleep_states(board),
        )
    )


def _root(board: PcBoard, layout: Layout) -> bytes:
    kind = "PNP0A08" if layout.express else "PNP0A03"
    terms = [aml.define("_HID", aml.eisa_id(kind))]
    if layout.express:
        terms.append(aml.define("_CID", aml.eisa_id("PNP0A03")))
    terms += [
        aml.define("_ADR", aml.ZERO),
        aml.define("_UID", aml.ZERO),
        aml.define("_CRS", _windows(board)),
        _routing(layout),
        _isa(board, layout),
    ]
    if layout.express:
        terms.append(_features())
    return aml.device("PCI0", *terms)


def _windows(board: PcBoard) -> bytes:
    low = max(board.low_memory_limit(), board.low_memory)
    slots = board.dimm_slots
    high = slots.end if slots is not None and slots.size else _FOUR_GIB + max(board.ram_size - board.low_memory, 0)
    high = (high + (1 << 30) - 1) >> 30 << 30
    return resources.template(
        resources.buses(0, 0xFF),
        resources.io(0xCF8, 8),
        resources.io_window(0, 0xCF7),
        resources.io_window(0xD00, 0xFFFF),
        resources.memory_window(0xA0000, 0xBFFFF),
        resources.memory_window(low, _MEMORY_END),
        resources.memory_window(high, high + (1 << 35) - 1, wide=True),
    )


def _features() -> bytes:
    """``_OSC``: the operating system may do all that it asks for, but native hot-plug, which ACPI does."""
    control = aml.name("CTRL")
    return aml.method(
        "_OSC",
        4,
        aml.dword_of(aml.ARGS[3], 8, "CTRL"),
        aml.both(control, aml.integer(0x1E), control),
        aml.give(aml.ARGS[3]),
    )


# -- interrupts


def _link_of(layout: Layout, slot: int, pin: int) -> int:
    if not layout.express:
        return (slot + pin - 1) % 4
    return (4 + (slot + pin) % 4) if slot < 25 else pin


def _routing(layout: Layout) -> bytes:
    """``_PRT``: which link each pin of each slot is on; on q35 with I/O APIC, which of its inputs."""
    linked, direct = [], []
    for slot in range(32):
        for pin in range(4):
            place, link = aml.integer(slot << 16 | 0xFFFF), _link_of(layout, slot, pin)
            linked.append(aml.package(place, aml.integer(pin), aml.name(f"\\_SB.LNK{_LINKS[link]}"), aml.ZERO))
            direct.append(aml.package(place, aml.integer(pin), aml.ZERO, aml.integer(16 + link)))
    if not layout.express:
        return aml.method("_PRT", 0, aml.give(aml.package(*linked)))
    return aml.method(
        "_PRT",
        0,
        aml.when(aml.name("\\PICF"), aml.give(aml.package(*direct))),
        aml.give(aml.package(*linked)),
    )


def _link_registers(layout: Layout) -> bytes:
    terms = []
    for group, base in enumerate(layout.links):
        names = _LINKS[4 * group : 4 * group + 4]
        terms.append(aml.region(f"PRR{group}", aml.PCI_CONFIG, base, 4))
        terms.append(aml.field(f"PRR{group}", aml.BYTE, aml.PRESERVE, *((f"PRQ{letter}", 8) for letter in names)))
    return b"".join(terms)


def _links(layout: Layout) -> bytes:
    """The link devices: each connects one line of the PCI bus with an ISA interrupt, as a register says."""
    devices = []
    for number, letter in enumerate(_LINKS[: 4 * len(layout.links)]):
        register = aml.name(f"\\_SB.PCI0.ISA.PRQ{letter}")
        chosen = aml.name("PRRI")
        devices.append(
            aml.device(
                f"LNK{letter}",
                aml.define("_HID", aml.eisa_id("PNP0C0F")),
                aml.define("_UID", aml.integer(number)),
                aml.define("_PRS", resources.template(resources.interrupt(*_LINK_CHOICES))),
                aml.method(
                    "_STA",
                    0,
                    aml.when(aml.both(register, aml.integer(0x80)), aml.give(aml.integer(0x09))),
                    aml.give(aml.integer(0x0B)),
                ),
                aml.method("_DIS", 0, aml.either(register, aml.integer(0x80), register)),
                aml.method(
                    "_CRS",
                    0,
                    aml.define("BUF", resources.template(resources.interrupt(0))),
                    aml.dword_of(aml.name("BUF"), 5, "PRRI"),
                    aml.when(aml.less(register, aml.integer(0x80)), aml.store(register, chosen)),
                    aml.give(aml.name("BUF")),
                    serialized=True,
                ),
                aml.method("_SRS", 1, aml.dword_of(aml.ARGS[0], 5, "PRRI"), aml.store(chosen, register)),
            )
        )
    return b"".join(devices)


# -- the devices of the ISA bus


def _isa(board: PcBoard, layout: Layout) -> bytes:
    terms = [aml.define("_ADR", aml.integer(layout.isa_place)), _link_registers(layout)]
    terms.append(_device("RTC", "PNP0B00", resources.io(0x70, 8), resources.irq(8)))
    if board.i8042:
        terms.append(_device("KBD", "PNP0303", resources.io(0x60, 1), resources.io(0x64, 1), resources.irq(1)))
        terms.append(_device("MOU", "PNP0F13", resources.irq(12)))
    if board.fdc is not None:
        ports = (resources.io(0x3F2, 4), resources.io(0x3F7, 1))
        terms.append(_device("FDC0", "PNP0700", *ports, resources.irq(6), resources.dma(2)))
    for number, chardev in enumerate(board.serial_chardevs[:2]):
        if chardev is not None:
            base, line = ((0x3F8, 4), (0x2F8, 3))[number]
            serial = _device(
                f"COM{number + 1}", "PNP0501", resources.io(base, 8), resources.irq(line), unique=number + 1
            )
            terms.append(serial)
    for number, chardev in enumerate(board.parallel_chardevs[: len(_PARALLEL)]):
        if chardev is not None:
            decode = resources.io(_PARALLEL[number], 8)
            terms.append(_device(f"LPT{number + 1}", "PNP0400", decode, resources.irq(7), unique=number + 1))
    terms += [tpm.isa_device(board), ipmi.isa_devices(board)]
    return aml.device("ISA", *terms)


def _without_bus(board: PcBoard) -> bytes:
    devices = tpm.root_device(board)
    return aml.scope("\\_SB", devices) if devices else b""


def _event_timer(board: PcBoard) -> bytes:
    if board.hpet_device is None:
        return b""
    return aml.device(
        "HPET",
        aml.define("_HID", aml.eisa_id("PNP0103")),
        aml.define("_UID", aml.ZERO),
        aml.define("_CRS", resources.template(resources.memory_fixed(hpet.BASE, hpet.SIZE))),
    )


def _device(label: str, kind: str, *decodes: bytes, unique: int | None = None) -> bytes:
    terms = [aml.define("_HID", aml.eisa_id(kind)), aml.define("_CRS", resources.template(*decodes))]
    if unique is not None:
        terms.append(aml.define("_UID", aml.integer(unique)))
    return aml.device(label, *terms)


# -- events and sleep


def _events(board: PcBoard, layout: Layout) -> bytes:
    handlers = [(CPU_EVENT, aml.call("\\_SB.CPUS.CSCN"))]
    if pci_slots.managed(layout.hotplug):
        handlers.append((PCI_EVENT, aml.call("\\_SB.PCI0.PCNT")))
    if memory.has_slots(board):
        handlers.append((MEMORY_EVENT, aml.call("\\_SB.MHPD.MSCN")))
    if board.nvdimm_interface is not None:
        handlers.append((NVDIMM_EVENT, aml.notify(aml.name("\\_SB.NVDR"), aml.integer(0x80))))
    methods = (aml.method(f"_E{number:02X}", 0, work) for number, work in handlers)
    return aml.scope("\\_GPE", aml.define("_HID", aml.string("ACPI0006")), *methods)


def _sleep_states(board: PcBoard) -> bytes:
    """What to write to the control register to suspend to memory and to disk, and to switch off."""
    assert board.power_manager is not None
    return b"".join(
        aml.define(f"\\_S{state}", aml.package(aml.integer(kind), aml.integer(kind), aml.ZERO, aml.ZERO))
        for state, kind in board.power_manager.sleep_kinds().items()
    )
