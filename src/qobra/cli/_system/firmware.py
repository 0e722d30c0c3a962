"""What users add to what the firmware finds: ACPI tables (``-acpitable``) and option ROMs (``-option-rom``)."""

from __future__ import annotations

import os
from struct import Struct

from qobra.chardev.options import split
from qobra.errors import QobraError, strerror
from qobra.machine.option_groups import convert
from qobra.report import report_error
from qobra.units import integer

_HEADER = Struct("<4sIBB6s8sI4sI")
"""Signature, length, revision, checksum, OEM, its table, its revision, compiler, its revision (ACPI 6.4, 5.2.6)."""

_DEFAULTS: dict[str, bytes | int] = {
    "sig": b"QEMU", "rev": 1, "oem_id": b"QEMUQE", "oem_table_id": b"QEMUQEMU", "oem_rev": 1,
    "asl_compiler_id": b"QEMU", "asl_compiler_rev": 1,
}  # fmt: skip
_WIDTHS = {"rev": 8, "oem_rev": 32, "asl_compiler_rev": 32}
_MAX_TABLE = 1 << 16
_MAX_ROM = 16 << 20


def acpi_table(text: str) -> bytes:
    """A table from files, whole (``file=``) or without its header (``data=``), and fields of the header.

    Raises QobraError.
    """
    options = split(text)
    sources = [name for name in ("file", "data") if name in options]
    for name in options:
        if name not in _DEFAULTS and name not in sources:
            raise QobraError(f"Invalid parameter '{name}'")
    if len(sources) != 1:
        raise QobraError("'-acpitable' requires one of 'data' or 'file'")
    content = b"".join(_read(path) for path in options.pop(sources[0]).split(":") if path)
    fields = dict(_DEFAULTS)
    if sources[0] == "file":
        if len(content) < _HEADER.size:
            raise QobraError(
                f"ACPI table claiming to have header is too short, available: {len(content)}, expected: {_HEADER.size}"
            )
        signature, length, revision, _sum, *rest = _HEADER.unpack_from(content)
        if length != len(content):
            report_error(
                f"-acpitable {text}: warning: ACPI table has wrong length, "
                f"header says {length}, actual size {len(content)} bytes"
            )
        fields = dict(zip(fields, (signature, revision, *rest), strict=True))
        content = content[_HEADER.size :]
    elif not options:
        report_error(f"-acpitable {text}: warning: ACPI table: no headers are specified")
    fields |= {name: _field(name, value) for name, value in options.items()}
    return _with_checksum(fields, content)


def _with_checksum(fields: dict[str, bytes | int], content: bytes) -> bytes:
    length = _HEADER.size + len(content)
    if length > _MAX_TABLE:
        raise QobraError("ACPI table is too large")
    signature, revision, *rest = fields.values()
    table = bytearray(_HEADER.pack(signature, length, revision, 0, *rest) + content)
    table[9] = -sum(table) & 0xFF
    return bytes(table)


def _field(name: str, text: str) -> bytes | int:
    if name not in _WIDTHS:
        return text.encode()
    number = integer(text)
    if number is None:
        raise QobraError(f"Parameter '{name}' expects a uint64 value")
    if not 0 <= number < 1 << _WIDTHS[name]:
        raise QobraError(f"Parameter '{name}' expects uint{_WIDTHS[name]}_t")
    return number


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(_MAX_TABLE + 1)
    except OSError as error:
        raise QobraError(f"can't open file {path}: {strerror(error)}", errno=error.errno)


def option_rom(text: str) -> tuple[str, bytes, int | None] | None:
    """The name, the contents and the place in the boot order of a ROM; None, and a word, for one that is not there."""
    options = convert("option-rom", split(text, "romfile"))
    path = options.get("romfile")
    if path is None:
        raise QobraError("Option ROM file is not specified")
    try:
        with open(path, "rb") as stream:
            data = stream.read(_MAX_ROM)
    except OSError as error:
        report_error(f"Could not open option rom '{path}': {strerror(error)}")
        return None
    return f"genroms/{os.path.basename(path)}", data, options.get("bootindex")
