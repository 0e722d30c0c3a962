"""What users want the SMBIOS tables to say (``-smbios``): fields of structures, and whole structures from files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.chardev.options import pairs
from qobra.errors import QobraError, strerror
from qobra.machine.option_groups import BOOLEAN, NUMBER, STRING, convert_as, number

if TYPE_CHECKING:
    from uuid import UUID

BIOS, SYSTEM, BASE_BOARD, CHASSIS, PROCESSOR, PORT = 0, 1, 2, 3, 4, 8
OEM_STRINGS, MEMORY_ARRAY, MEMORY_DEVICE, MAPPED_ADDRESS, BOOT, ONBOARD = 11, 16, 17, 19, 32, 41
MANAGEMENT, END = 38, 127
_HEADER_SIZE = 4
_MAX_TYPE = 127
_MAX_SPEED = 0xFFFF
_MAX_FILE = 1 << 20


def _texts(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, STRING)


_FIELDS: dict[int, dict[str, str]] = {
    BIOS: _texts("vendor", "version", "date", "release") | {"uefi": BOOLEAN},
    SYSTEM: _texts("manufacturer", "product", "version", "serial", "uuid", "sku", "family"),
    BASE_BOARD: _texts("manufacturer", "product", "version", "serial", "asset", "location"),
    CHASSIS: _texts("manufacturer", "version", "serial", "asset", "sku"),
    PROCESSOR: _texts("sock_pfx", "manufacturer", "version", "serial", "asset", "part")
    | dict.fromkeys(("max-speed", "current-speed", "processor-id"), NUMBER),
    PORT: _texts("internal_reference", "external_reference") | dict.fromkeys(("connector_type", "port_type"), NUMBER),
    OEM_STRINGS: _texts("value", "path"),
    MEMORY_DEVICE: _texts("loc_pfx", "bank", "manufacturer", "serial", "asset", "part") | {"speed": NUMBER},
    ONBOARD: _texts("designation", "kind", "pcidev") | {"instance": NUMBER},
}

_KINDS = ("other", "unknown", "video", "scsi", "ethernet", "tokenring", "sound", "pata", "sata", "sas")
"""Kinds of onboard devices, from 1 on (SMBIOS 3.0, section 7.42.2)."""


class Settings:
    """All that was said: ``structures`` from files, ``fields`` by type of structure, and what may be there often.

    ``uuid`` is the machine's, for whom other options set it too.
    """

    def __init__(self) -> None:
        self.uuid: UUID | None = None
        self.structures: list[bytes] = []
        self.fields: dict[int, dict[str, Any]] = {}
        self.ports: list[dict[str, Any]] = []
        self.oem_strings: list[bytes] = []
        self.onboard: list[dict[str, Any]] = []

    def set_uuid(self, text: str) -> None:
        """The machine's UUID, of eight, three times four, and twelve digits. Raises QobraError."""
        from uuid import UUID

        try:
            uuid = UUID(text)
        except ValueError:
            uuid = None
        if uuid is None or str(uuid) != text.lower():  # no braces, no form without dashes
            raise QobraError("failed to parse UUID string: wrong format")
        self.uuid = uuid

    def given(self, kind: int) -> bool:
        """Whether a structure of that type came from a file, in whose place none is made."""
        return any(structure[0] == kind for structure in self.structures)

    def add(self, text: str) -> None:
        """Take one option, ``file=`` or ``type=``. Raises QobraError in QEMU's words."""
        words = pairs(text)
        options = dict(words)
        if "file" in options:
            convert_as({"file": STRING}, options)
            self._add_file(options["file"])
            return
        if "type" not in options:
            raise QobraError("Must specify type= or file=")
        kind = number("type", options.pop("type"))
        if kind > _MAX_TYPE:
            raise QobraError("out of range!")
        if self.given(kind):
            raise QobraError("can't add fields, binary file already loaded!")
        if kind not in _FIELDS:
            raise QobraError(f"Don't know how to build fields for SMBIOS type {kind}")
        self._add_fields(kind, convert_as(_FIELDS[kind], options), words)

    def _add_file(self, path: str) -> None:
        try:
            with open(path, "rb") as stream:
                structure = stream.read(_MAX_FILE)
        except OSError:
            structure = b""
        if len(structure) < _HEADER_SIZE:
            raise QobraError(f"Cannot read SMBIOS file {path}")
        kind = structure[0]
        if kind in self.fields:
            raise QobraError(f"can't load type {kind} struct, fields already specified!")
        self.structures.append(structure)

    def _add_fields(self, kind: int, fields: dict[str, Any], words: list[tuple[str, str]]) -> None:
        if kind == PORT:
            self.ports.append(fields)
        elif kind == OEM_STRINGS:
            self.oem_strings += [_oem_string(key, value) for key, value in words if key != "type"]
        elif kind == ONBOARD:
            name = fields.get("kind", _KINDS[0])
            if name not in _KINDS:
                raise QobraError(f"invalid parameter value: {name}")
            self.onboard.append(fields | {"kind": 1 + _KINDS.index(name)})
        if "release" in fields:
            fields["release"] = _release(fields["release"])
        if "uuid" in fields:
            try:
                self.set_uuid(fields.pop("uuid"))
            except QobraError:
                raise QobraError("Invalid UUID")
        if any(fields.get(name, 0) > _MAX_SPEED for name in ("max-speed", "current-speed")):
            raise QobraError(f"SMBIOS CPU speed is too large (> {_MAX_SPEED})")
        self.fields.setdefault(kind, {}).update(fields)


def _oem_string(key: str, value: str) -> bytes:
    if key == "value":
        return value.encode()
    try:
        with open(value, "rb") as stream:
            data = stream.read(_MAX_FILE)
    except OSError as error:
        raise QobraError(f"Could not open '{value}': {strerror(error)}")
    if b"\0" in data:
        raise QobraError(f"NUL in OEM strings value in {value}")
    return data


def _release(text: str) -> bytes:
    """Major and minor number, in a byte each."""
    import re

    found = re.match(r"\s*([+-]?\d+)\.([+-]?\d+)", text)
    if found is None:
        raise QobraError("Invalid release")
    return bytes(int(part) & 0xFF for part in found.groups())
