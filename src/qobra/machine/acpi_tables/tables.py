"""The tables that are plain data: FADT, FACS, MADT, MCFG, SRAT, SLIT, HMAT, NFIT, RSDT (ACPI 6.4, section 5.2).

MCFG is of the PCI Firmware Specification 3.0, section 4.1.2.
"""

from __future__ import annotations

from struct import Struct, pack
from typing import TYPE_CHECKING

from qobra.machine.acpi_tables import cpus, erst, hmat, nvdimm, tpm
from qobra.machine.acpi_tables.dsdt import Layout, dsdt
from qobra.machine.acpi_tables.loader import Tables
from qobra.machine.device.hpet import BASE as HPET_BASE

if TYPE_CHECKING:
    from qobra.machine.device.hpet import Hpet
    from qobra.machine.pc import PcBoard

_FOUR_GIB = 1 << 32
_LOCAL_APIC, _IO_APIC = 0xFEE00000, 0xFEC00000
_SCI = 9
_FACS_SIZE = 64
_FADT = Struct("<IIBBHI4B8I8B4H5BHBI12sBHBQQ96s")
_FLAGS = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 7 | 1 << 15
_RESET_SUPPORTED = 1 << 10
_LEGACY_DEVICES, _KEYBOARD = 1 << 0, 1 << 1
_ENABLED, _HOT_PLUGGABLE, _NON_VOLATILE = 1, 2, 4


def build(board: PcBoard, layout: Layout) -> dict[str, bytes]:
    """The files of fw_cfg that hold the tables of ``board``."""
    tables = Tables(board.x_oem_id, board.x_oem_table_id)
    facs = tables.add_raw(b"FACS" + pack("<I", _FACS_SIZE) + bytes(_FACS_SIZE - 8))
    code = tables.add(b"DSDT", 1, dsdt(board, layout))
    found = [tables.add(b"FACP", 3, _fadt(layout), pointers=((0, 4, facs), (4, 4, code)))]
    found.append(tables.add(b"APIC", 3, _madt(board)))
    if layout.ecam is not None:
        found.append(tables.add(b"MCFG", 1, bytes(8) + pack("<QHBB4x", layout.ecam, 0, 0, 0xFF)))
    if board.hpet_device is not None:
        found.append(tables.add(b"HPET", 1, _hpet(board.hpet_device)))
    found += erst.add_table(tables, board)
    found += tpm.add_table(tables, board)
    if board.numa.nodes:
        found.append(tables.add(b"SRAT", 1, _srat(board)))
        if board.numa.distances:
            found.append(tables.add(b"SLIT", 1, _slit(board)))
        if board.numa.has_hmat:
            found.append(tables.add(b"HMAT", hmat.REVISION, hmat.body(board.numa)))
    if board.nvdimm_interface is not None:
        found.append(tables.add(b"NFIT", 1, bytes(4) + board.nvdimm_interface.fit()))
        tables.add_room(nvdimm.PAGE_FILE, nvdimm.PAGE, nvdimm.PAGE)
        page = ((nvdimm.ADDRESS_AT, nvdimm.PAGE_FILE, 4),)
        found.append(tables.add(b"SSDT", 1, nvdimm.ssdt(board), outside=page))
    found += [tables.add_raw(table) for table in board.users_acpi_tables]
    pointers = tuple((4 * number, 4, offset) for number, offset in enumerate(found))
    return tables.files(tables.add(b"RSDT", 1, bytes(4 * len(found)), pointers=pointers))


def _fadt(layout: Layout) -> bytes:
    base = layout.power_base
    legacy = _LEGACY_DEVICES | _KEYBOARD
    events, controls = _port(base, 4), _port(base + 4, 2)
    wide = events + bytes(12) + controls + bytes(24) + _port(base + 8, 4)
    wide += _port(layout.events, layout.events_length) + bytes(12)
    flags = _FLAGS | (_RESET_SUPPORTED if layout.reset_register else 0)
    return _FADT.pack(
        0, 0, 1, 0, _SCI, 0xB2, layout.enable, layout.disable, 0, 0,
        base, 0, base + 4, 0, 0, base + 8, layout.events, 0,
        4, 2, 0, 4, layout.events_length, 0, 0, 0,
        0xFFF, 0xFFF, 0, 0, 0, 0, 0, 0, 0x32, legacy, 0, flags,
        _port(0xCF9, 1) if layout.reset_register else bytes(12), 0x0F, 0, 0, 0, 0, wide,
    )  # fmt: skip


def _port(base: int, width: int) -> bytes:
    """Registers of ``width`` bytes in ports, as a generic address."""
    return pack("<BBBBQ", 1, 8 * width, 0, 0, base)


def _hpet(device: Hpet) -> bytes:
    # By the HPET specification, section 3.2.4.
    return pack("<I4BQBHB", device.block_id, 0, 0, 0, 0, HPET_BASE, 0, 0, 0)


def _madt(board: PcBoard) -> bytes:
    body = pack("<II", _LOCAL_APIC, 1)
    assert board.topology is not None
    present = {cpu.index for cpu in board.cpus}
    for index in range(board.topology.max_cpus):
        body += cpus.madt_entry(index, board.apic_ids.of(index), present=index in present)
    body += pack("<BBBBII", 1, 12, 0, 0, _IO_APIC, 0)
    body += pack("<BBBBIH", 2, 10, 0, 0, 2, 0)  # the timer comes to input 2
    for line in (5, 9, 10, 11):
        body += pack("<BBBBIH", 2, 10, 0, line, line, 0x000D)  # level-triggered, high
    return body + pack("<BBBHB", 4, 6, 0xFF, 0, 1)


def _srat(board: PcBoard) -> bytes:
    body = pack("<IQ", 1, 0)
    assert board.topology is not None
    for index in range(board.topology.max_cpus):
        node = board.numa.node_of_cpu(index) or 0
        id = board.apic_ids.of(index)
        if id < 255:
            body += pack("<BBBBIB3sI", 0, 16, node & 0xFF, id, 1, 0, (node >> 8).to_bytes(3, "little"), 0)
        else:
            body += pack("<BBHIII4xI", 2, 24, 0, node, id, 1, 0)
    start = 0
    for number, node_ in sorted(board.numa.nodes.items()):
        end = start + (node_.memory or 0)
        for first, last in _pieces(board, start, end):
            body += _memory_affinity(number, first, last - first, _ENABLED)
        start = end
    slots = board.dimm_slots
    if slots is not None and slots.size:
        last_node = max(board.numa.nodes)
        body += _memory_affinity(last_node, slots.base, slots.end - slots.base, _ENABLED | _HOT_PLUGGABLE)
    return body


def _pieces(board: PcBoard, start: int, end: int) -> list[tuple[int, int]]:
    """Where bytes ``start`` to ``end`` of RAM lie, with the hole below 4 GiB between."""
    low, found = board.low_memory, []
    if start < min(end, low):
        found.append((start, min(end, low)))
    if end > low:
        shift = _FOUR_GIB - low
        found.append((max(start, low) + shift, end + shift))
    return found


def _memory_affinity(node: int, base: int, size: int, flags: int) -> bytes:
    return pack("<BBIHQQIIQ", 1, 40, node, 0, base, size, 0, flags, 0)


def _slit(board: PcBoard) -> bytes:
    nodes = sorted(board.numa.nodes)
    distances = bytes(min(board.numa.distance(a, b), 255) for a in nodes for b in nodes)
    return len(nodes).to_bytes(8, "little") + distances
