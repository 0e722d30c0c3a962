"""The SSDT of NVDIMMs: the root device, a device for each slot, and the methods that ask the machine.

A request goes into a page of memory that the firmware allocates, and :mod:`qobra.machine.nvdimm_interface` answers it
there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from qobra.machine.acpi_tables import aml
from qobra.machine.nvdimm_interface import PORT

if TYPE_CHECKING:
    from qobra.machine.pc import PcBoard

PAGE_FILE = "etc/acpi/nvdimm-mem"
PAGE = 4096
ADDRESS_AT = 6
"""Where in the table's body the firmware puts the page's address."""

_ROOT_UUID = UUID("2f10e7a4-9e91-11e4-89d3-123b93f75cba").bytes_le
_DEVICE_UUID = UUID("4309ac30-0d11-11e4-9191-0800200c9a66").bytes_le
_HEADER = 12
_BUFFER_OBJECT, _PACKAGE_OBJECT = 3, 4
_FIT_READER, _READ_FIT, _FIT_CHANGED = 0x10000, 1, 0x100
_NOTHING = aml.buffer(b"")


def ssdt(board: PcBoard) -> bytes:
    """The terms of the table."""
    assert board.dimm_slots is not None
    return aml.define("MEMA", b"\x0c" + bytes(4)) + aml.scope(
        "\\_SB",
        aml.device(
            "NVDR",
            aml.define("_HID", aml.string("ACPI0012")),
            aml.define("RSTA", aml.ZERO),
            aml.region("NPIO", aml.SYSTEM_IO, PORT, 4),
            aml.field("NPIO", aml.DWORD, aml.PRESERVE, ("NTFI", 32)),
            _call(),
            _specific_method(_ROOT_UUID, aml.ZERO),
            _read_fit(),
            _fit(),
            *(_module(number) for number in range(board.dimm_slots.count)),
        ),
    )


def _call() -> bytes:
    """``NCAL (handle, revision, function, argument)``: the answer as a buffer."""
    size, answer = aml.LOCALS[0], aml.LOCALS[1]
    argument = aml.ARGS[3]
    return aml.method(
        "NCAL",
        4,
        aml.region("NRAM", aml.SYSTEM_MEMORY, aml.name("MEMA"), PAGE),
        aml.field(
            "NRAM", aml.DWORD, aml.PRESERVE, ("HDLE", 32), ("REVS", 32), ("FUNC", 32), ("FARG", 8 * (PAGE - _HEADER))
        ),
        aml.field("NRAM", aml.DWORD, aml.PRESERVE, ("RLEN", 32), ("ODAT", 8 * (PAGE - 4))),
        aml.store(aml.ARGS[0], aml.name("HDLE")),
        aml.store(aml.ARGS[1], aml.name("REVS")),
        aml.store(aml.ARGS[2], aml.name("FUNC")),
        aml.when(
            aml.equal(aml.object_type(argument), aml.integer(_PACKAGE_OBJECT)),
            aml.when(
                aml.equal(aml.size_of(argument), aml.ONE),
                aml.store(aml.element(argument, aml.ZERO), aml.LOCALS[2]),
                aml.store(aml.LOCALS[2], aml.name("FARG")),
            ),
        ),
        aml.when(
            aml.equal(aml.object_type(argument), aml.integer(_BUFFER_OBJECT)),
            aml.store(argument, aml.name("FARG")),
        ),
        aml.store(aml.name("MEMA"), aml.name("NTFI")),
        aml.when(aml.less(aml.name("RLEN"), aml.integer(5)), aml.give(_NOTHING)),
        aml.when(aml.less(aml.integer(PAGE), aml.name("RLEN")), aml.give(_NOTHING)),
        aml.subtract(aml.name("RLEN"), aml.integer(4), size),
        aml.shift_left(size, aml.integer(3), size),
        aml.bits_of(aml.name("ODAT"), aml.ZERO, size, "OBUF"),
        aml.concatenate(_NOTHING, aml.name("OBUF"), answer),
        aml.give(answer),
        serialized=True,
    )


def _specific_method(uuid: bytes, handle: bytes) -> bytes:
    """``_DSM``: hand the request on; of another kind there is none."""
    return aml.method(
        "_DSM",
        4,
        aml.when(
            aml.equal(aml.ARGS[0], aml.buffer(uuid)),
            aml.give(aml.call("\\_SB.NVDR.NCAL", handle, aml.ARGS[1], aml.ARGS[2], aml.ARGS[3])),
        ),
        aml.give(aml.buffer(b"\0")),
    )


def _read_fit() -> bytes:
    """``RFIT (offset)``: the table's bytes from there on, and ``RSTA``, how it went."""
    request, answer, size = aml.LOCALS[0], aml.LOCALS[1], aml.LOCALS[2]
    return aml.method(
        "RFIT",
        1,
        aml.store(aml.buffer(bytes(4)), request),
        aml.dword_of(request, 0, "OFST"),
        aml.store(aml.ARGS[0], aml.name("OFST")),
        aml.store(aml.call("NCAL", aml.integer(_FIT_READER), aml.ONE, aml.integer(_READ_FIT), request), answer),
        aml.store(aml.integer(2), aml.name("RSTA")),
        aml.when(aml.less(aml.size_of(answer), aml.integer(4)), aml.give(_NOTHING)),
        aml.dword_of(answer, 0, "STAU"),
        aml.store(aml.name("STAU"), aml.name("RSTA")),
        aml.subtract(aml.size_of(answer), aml.integer(4), size),
        aml.when(aml.equal(size, aml.ZERO), aml.give(_NOTHING)),
        aml.shift_left(size, aml.integer(3), size),
        aml.bits_of(answer, aml.integer(32), size, "FDAT"),
        aml.concatenate(_NOTHING, aml.name("FDAT"), aml.LOCALS[3]),
        aml.give(aml.LOCALS[3]),
        serialized=True,
    )


def _fit() -> bytes:
    """``_FIT``: all of the table, from its start again whenever it changed meanwhile."""
    fit, part, offset = aml.LOCALS[0], aml.LOCALS[1], aml.LOCALS[2]
    begin = aml.store(_NOTHING, fit) + aml.store(aml.ZERO, offset)
    return aml.method(
        "_FIT",
        0,
        begin,
        aml.repeat(
            aml.ONE,
            aml.store(aml.call("RFIT", offset), part),
            aml.when(aml.equal(aml.name("RSTA"), aml.integer(_FIT_CHANGED)), begin),
            aml.otherwise(
                aml.when(aml.less(aml.ZERO, aml.name("RSTA")), aml.give(_NOTHING)),
                aml.when(aml.equal(aml.size_of(part), aml.ZERO), aml.give(fit)),
                aml.add(offset, aml.size_of(part), offset),
                aml.concatenate(fit, part, fit),
            ),
        ),
        aml.give(fit),
        serialized=True,
    )


def _module(number: int) -> bytes:
    handle = aml.integer(number + 1)
    return aml.device(f"NV{number:02X}", aml.define("_ADR", handle), _specific_method(_DEVICE_UUID, handle))
