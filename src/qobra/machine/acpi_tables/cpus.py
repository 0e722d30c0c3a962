"""CPUs in the DSDT, with their hot-plug (the registers of acpi_cpuhp)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.acpi_cpuhp import SIZE
from qobra.machine.acpi_tables import aml, resources
from qobra.machine.acpi_tables.hotplug import CHECK, EJECT, method_on_one, notifier

if TYPE_CHECKING:
    from qobra.machine.pc import PcBoard

_COMMAND_NEXT, _COMMAND_EVENT, _COMMAND_STATUS = 0, 1, 2
_PRESENT = 0x0F


def madt_entry(index: int, id: int, *, present: bool) -> bytes:
    """The local APIC of a CPU, as the MADT lists it (ACPI 6.4, sections 5.2.12.2 and 5.2.12.12)."""
    enabled = int(present).to_bytes(4, "little")
    if id < 255:
        return bytes((0, 8, index, id)) + enabled
    return bytes((9, 16, 0, 0)) + id.to_bytes(4, "little") + enabled + index.to_bytes(4, "little")


def devices(board: PcBoard) -> bytes:
    """The registers with the methods that use them, and a device for each CPU that there can be."""
    assert board.topology is not None
    count = board.topology.max_cpus
    return aml.device(
        "CPUS",
        aml.define("_HID", aml.string("ACPI0010")),
        aml.define("_CID", aml.eisa_id("PNP0A05")),
        _registers(board.cpu_hotplug.port),
        aml.method("_INI", 0, aml.store(aml.ZERO, aml.name("CSEL"))),  # from the older registers to these
        _scan(),
        *(method_on_one("CPLK", "CSEL", label, arguments, *terms) for label, arguments, terms in _methods()),
        *(_cpu(board, index) for index in range(count)),
        notifier("CTFY", [f"C{index:03X}" for index in range(count)]),
    )


def _registers(port: int) -> bytes:
    return b"".join(
        (
            aml.define("_CRS", resources.template(resources.io(port, SIZE))),
            aml.region("CHPR", aml.SYSTEM_IO, port, SIZE),
            aml.field(
                "CHPR",
                aml.BYTE,
                aml.WRITE_AS_ZEROES,
                *(("", 32), ("CPEN", 1), ("CINS", 1), ("CRMV", 1), ("CEJ0", 1), ("", 4), ("CCMD", 8)),
            ),
            aml.field("CHPR", aml.DWORD, aml.PRESERVE, ("CSEL", 32), ("", 32), ("CDAT", 32)),
            aml.mutex("CPLK"),
        )
    )


def _scan() -> bytes:
    """As long as there is a CPU with something to tell: say that it came, or that it shall go."""
    more = aml.LOCALS[0]
    return aml.method(
        "CSCN",
        0,
        aml.acquire("CPLK"),
        aml.store(aml.ONE, more),
        aml.repeat(
            aml.equal(more, aml.ONE),
            aml.store(aml.ZERO, more),
            aml.store(aml.integer(_COMMAND_NEXT), aml.name("CCMD")),
            *_look("CINS", CHECK, more),
            *_look("CRMV", EJECT, more),
        ),
        aml.release("CPLK"),
    )


def _look(flag: str, event: int, more: bytes) -> tuple[bytes, ...]:
    return (
        aml.when(
            aml.equal(aml.name(flag), aml.ONE),
            aml.call("CTFY", aml.name("CDAT"), aml.integer(event)),
            aml.store(aml.ONE, aml.name(flag)),
            aml.store(aml.ONE, more),
        ),
    )


def _methods() -> tuple[tuple[str, int, tuple[bytes, ...]], ...]:
    state, release = aml.LOCALS[0], aml.release("CPLK")
    return (
        (
            "CSTA",
            1,
            (
                aml.store(aml.ZERO, state),
                aml.when(aml.equal(aml.name("CPEN"), aml.ONE), aml.store(aml.integer(_PRESENT), state)),
                release,
                aml.give(state),
            ),
        ),
        ("CEJT", 1, (aml.store(aml.ONE, aml.name("CEJ0")), release)),
        (
            "COST",
            3,
            (
                aml.store(aml.integer(_COMMAND_EVENT), aml.name("CCMD")),
                aml.store(aml.ARGS[1], aml.name("CDAT")),
                aml.store(aml.integer(_COMMAND_STATUS), aml.name("CCMD")),
                aml.store(aml.ARGS[2], aml.name("CDAT")),
                release,
            ),
        ),
    )


def _cpu(board: PcBoard, index: int) -> bytes:
    number, id = aml.integer(index), board.apic_ids.of(index)
    terms = [
        aml.define("_HID", aml.string("ACPI0007")),
        aml.define("_UID", number),
        aml.method("_STA", 0, aml.give(aml.call("CSTA", number))),
        # One that has come has this entry; _STA says whether it has.
        aml.method("_MAT", 0, aml.give(aml.buffer(madt_entry(index, id, present=True)))),
        aml.method("_OST", 3, aml.call("COST", number, aml.ARGS[0], aml.ARGS[1])),
    ]
    node = board.numa.node_of_cpu(index)
    if node is not None:
        terms.append(aml.define("_PXM", aml.integer(node)))
    if index:
        terms.append(aml.method("_EJ0", 1, aml.call("CEJT", number)))
    return aml.device(f"C{index:03X}", *terms)
