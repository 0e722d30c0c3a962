"""What tables and firmware configuration tell of a TPM (TCG ACPI Specification 1.2).

The device's method answers operating systems that ask for physical presence (TCG PC Client Physical Presence Interface
Specification 1.3, section 2.1) and for memory to be overwritten at the next reset (TCG Platform Reset Attack Mitigation
Specification 1.1, section 5). What they ask for is left in memory for the firmware, which finds where in a file of
fw_cfg, and has told there before which operations it knows.
"""

from __future__ import annotations

import uuid
from struct import pack
from typing import TYPE_CHECKING, Any

from qobra.machine.acpi_tables import aml, resources
from qobra.machine.device import tpm_tis
from qobra.machine.tpm import crb, front_end, ppi, tis

if TYPE_CHECKING:
    from qobra.machine.acpi_tables.loader import Tables
    from qobra.machine.pc import PcBoard

LOG_FILE, LOG_SIZE = "etc/tpm/log", 64 << 10
CONFIG_FILE = "etc/tpm/config"
_START_TIS, _START_CRB = 6, 7
_PPI_13 = 1
_PRESENCE = uuid.UUID("3dddfaa6-361b-4eb4-a424-8d10089d1653")
_MITIGATION = uuid.UUID("376054ed-cc13-4675-901c-4756d7f2d45d")
_REQUESTS = ppi.BASE + 0x100
_REQUEST_FIELDS = (("PPIN", 8), ("PPIP", 32), ("PPRP", 32), ("PPRQ", 32), ("PPRM", 32), ("LPPR", 32))
"""An interrupt, its argument, what became of the last request, a request and its parameter, the last request."""
_KNOWN_OPERATIONS = 0x100


def files(board: PcBoard) -> dict[str, bytes]:
    """What firmware configuration has of the TPM: room for its log, and where physical presence is arranged."""
    device = front_end.find_tpm(board)
    if device is None:
        return {}
    found = {LOG_FILE: bytes(LOG_SIZE)}
    if device.ppi:
        found[CONFIG_FILE] = pack("<IBB", ppi.BASE, 2 if device.backend.is_20 else 1, _PPI_13)
    return found


def add_table(tables: Tables, board: PcBoard) -> list[int]:
    """TPM2, or TCPA for a TPM 1.2, if there is a TPM; where it lies."""
    device = front_end.find_tpm(board)
    if device is None:
        return []
    tables.allocate(LOG_FILE, 1)
    log = pack("<IQ", LOG_SIZE, 0)
    if not device.backend.is_20:
        return [tables.add(b"TCPA", 2, pack("<H", 0) + log, outside=((6, LOG_FILE, 8),))]
    by_buffer = device.tpm_model == "tpm-crb"
    area, method = (crb.CONTROL_AREA, _START_CRB) if by_buffer else (0, _START_TIS)
    body = pack("<HHQI12x", 0, 0, area, method) + log
    return [tables.add(b"TPM2", 4, body, outside=((len(body) - 8, LOG_FILE, 8),))]


def isa_device(board: PcBoard) -> bytes:
    """The device, if it is one of the ISA bus."""
    device = front_end.find_tpm(board)
    return _device(device) if device is not None and device.tpm_model == "tpm-tis" else b""


def root_device(board: PcBoard) -> bytes:
    """The device, if it is on no bus."""
    device = front_end.find_tpm(board)
    return _device(device) if device is not None and device.tpm_model == "tpm-crb" else b""


def _device(device: Any) -> bytes:
    if device.backend.is_20:
        terms = [aml.define("_HID", aml.string("MSFT0101")), aml.define("_STR", aml.string("TPM 2.0 Device"))]
    else:
        terms = [aml.define("_HID", aml.eisa_id("PNP0C31"))]
    unique, status = aml.define("_UID", aml.ONE), aml.define("_STA", aml.integer(0x0F))
    if device.tpm_model == "tpm-crb":
        terms += [_resources(crb.BASE, crb.REGISTERS_SIZE + crb.BUFFER_SIZE), status, unique]
    else:
        terms += [unique, status, _resources(tpm_tis.BASE, tis.SIZE)]
    if device.ppi:
        terms += _presence()
    return aml.device("TPM", *terms)


def _resources(base: int, size: int) -> bytes:
    return aml.define("_CRS", resources.template(resources.memory_fixed(base, size)))


# -- physical presence

_INTERFACE, _REVISION, _FUNCTION, _ARGUMENTS = aml.ARGS[:4]
_OPERATION, _KNOWN = aml.LOCALS[:2]


def _presence() -> list[bytes]:
    overwrite = ppi.BASE + ppi.OVERWRITE
    return [
        aml.region("TPP2", aml.SYSTEM_MEMORY, _REQUESTS, overwrite - _REQUESTS),
        aml.field("TPP2", aml.ANY, aml.PRESERVE, *_REQUEST_FIELDS),
        aml.region("TPP3", aml.SYSTEM_MEMORY, overwrite, 1),
        aml.field("TPP3", aml.BYTE, aml.PRESERVE, ("MOVV", 8)),
        _known_operation(),
        aml.define("TPM2", aml.package(aml.ZERO, aml.ZERO)),
        aml.define("TPM3", aml.package(aml.ZERO, aml.ZERO, aml.ZERO)),
        aml.method(
            "_DSM",
            4,
            aml.when(aml.equal(_INTERFACE, aml.uuid(_PRESENCE)), *_presence_functions()),
            aml.when(aml.equal(_INTERFACE, aml.uuid(_MITIGATION)), *_mitigation_functions()),
            serialized=True,
        ),
    ]


def _known_operation() -> bytes:
    """``TPFN``: what the firmware told of an operation."""
    entry = aml.add(aml.integer(ppi.BASE), aml.ARGS[0])
    return aml.method(
        "TPFN",
        1,
        aml.when(aml.at_least(aml.ARGS[0], aml.integer(_KNOWN_OPERATIONS)), aml.give(aml.ZERO)),
        aml.region("TPP1", aml.SYSTEM_MEMORY, entry, 1),
        aml.field("TPP1", aml.BYTE, aml.PRESERVE, ("TPPF", 8)),
        aml.give(aml.name("TPPF")),
        serialized=True,
    )


def _function(number: int, *terms: bytes) -> bytes:
    return aml.when(aml.equal(_FUNCTION, aml.integer(number)), *terms)


def _revision(number: int, *terms: bytes) -> bytes:
    return aml.when(aml.equal(_REVISION, aml.integer(number)), *terms)


def _argument(number: int) -> bytes:
    return aml.element(_ARGUMENTS, aml.integer(number))


def _look_up() -> tuple[bytes, bytes]:
    operation = aml.store(_argument(0), _OPERATION)
    return operation, aml.store(aml.call("TPFN", _OPERATION), _KNOWN)


def _unless_known(otherwise: int, state: int) -> bytes:
    return aml.when(aml.equal(aml.both(_KNOWN, aml.integer(7)), aml.integer(state)), aml.give(aml.integer(otherwise)))


def _request(parameter: bytes) -> tuple[bytes, bytes]:
    return aml.store(_OPERATION, aml.name("PPRQ")), aml.store(parameter, aml.name("PPRM"))


def _answer(package: str, *values: str) -> tuple[bytes, ...]:
    answer = aml.name(package)
    slots = enumerate(values, 1)
    stores = (aml.store(aml.name(value), aml.place(answer, aml.integer(slot))) for slot, value in slots)
    return (*stores, aml.give(answer))


def _presence_functions() -> tuple[bytes, ...]:
    return (
        _function(0, aml.give(aml.buffer(b"\xff\x01"))),  # which functions there are
        _function(1, aml.give(aml.string("1.3"))),
        _function(2, *_look_up(), _unless_known(1, 0), *_request(aml.ZERO), aml.give(aml.ZERO)),
        _function(3, _revision(1, *_answer("TPM2", "PPRQ")), _revision(2, *_answer("TPM3", "PPRQ", "PPRM"))),
        _function(4, aml.give(aml.integer(2))),  # the machine is to be rebooted
        _function(5, *_answer("TPM3", "LPPR", "PPRP")),
        _function(6, aml.give(aml.integer(3))),  # no other language than the firmware's
        _function(
            7,
            *_look_up(),
            _unless_known(1, 0),
            _unless_known(3, 2),
            _revision(1, *_request(aml.ZERO)),
            _revision(2, *_request(_argument(1))),
            aml.give(aml.ZERO),
        ),
        _function(8, *_look_up(), aml.give(aml.both(_KNOWN, aml.integer(7)))),
        aml.give(aml.buffer(b"\0")),
    )


def _mitigation_functions() -> tuple[bytes, ...]:
    return (
        _function(0, aml.give(aml.buffer(b"\x03"))),
        _function(1, aml.store(_argument(0), _OPERATION), aml.store(_OPERATION, aml.name("MOVV")), aml.give(aml.ZERO)),
    )
