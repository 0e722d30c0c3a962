"""How the firmware puts the tables into memory: blobs of fw_cfg, and a list of commands to place and to link them.

The commands are QEMU's (``etc/table-loader``): allocate a blob, add a blob's address to a pointer in another, and
compute a checksum.
"""

from __future__ import annotations

from struct import pack

_COMMAND_SIZE = 128
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
HIGH, FSEG = 1, 2
"""Where a blob goes: anywhere, or where the BIOS's area is searched for the root pointer."""

TABLES, ROOT, LOADER = "etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"
_HEADER_SIZE, _CHECKSUM_AT = 36, 9
OEM, OEM_TABLE = "QOBRA ", "QOBRAPC "
_OEM_LENGTH, _OEM_TABLE_LENGTH, _CREATOR = 6, 8, b"QOBR"


class Tables:
    """The tables under construction, one after the other in one blob. ``oem`` and ``oem_table`` are in each header."""

    def __init__(self, oem: str, oem_table: str) -> None:
        self._oem = oem.encode().ljust(_OEM_LENGTH, b"\0")
        self._oem_table = oem_table.encode().ljust(_OEM_TABLE_LENGTH, b"\0")
        self._data = bytearray()
        self._commands = bytearray()
        self._rooms: dict[str, bytes] = {}
        self._allocate(TABLES, 64, HIGH)

    def add(
        self,
        signature: bytes,
        revision: int,
        body: bytes,
        *,
        pointers: tuple[tuple[int, int, int], ...] = (),
        outside: tuple[tuple[int, str, int], ...] = (),
    ) -> int:
        """A table with the usual header; its offset in the blob.

        ``pointers`` are ``(offset in the body, width, offset of what it points to in the blob)``, ``outside`` those to
        other blobs, ``(offset in the body, file, width)``.
        """
        start = len(self._data)
        header = signature + pack("<IBB", _HEADER_SIZE + len(body), revision, 0)
        header += self._oem + self._oem_table + pack("<I", 1) + _CREATOR + pack("<I", 1)
        self._data += header + body
        for offset, width, target in pointers:
            at = start + _HEADER_SIZE + offset
            self._data[at : at + width] = target.to_bytes(width, "little")
            self._command(_ADD_POINTER, TABLES, TABLES, pack("<IB", at, width))
        for offset, file, width in outside:
            self._command(_ADD_POINTER, TABLES, file, pack("<IB", start + _HEADER_SIZE + offset, width))
        self._command(_ADD_CHECKSUM, TABLES, None, pack("<III", start + _CHECKSUM_AT, start, len(header) + len(body)))
        self._align()
        return start

    def add_room(self, file: str, size: int, alignment: int) -> None:
        """A blob of its own with room for what the tables' code writes."""
        self._rooms[file] = bytes(size)
        self.allocate(file, alignment)

    def allocate(self, file: str, alignment: int) -> None:
        """Have a file that there is anyway put into memory."""
        self._allocate(file, alignment, HIGH)

    def add_raw(self, data: bytes) -> int:
        """Something without a header (the FACS); its offset."""
        while len(self._data) % 64:
            self._data.append(0)
        start = len(self._data)
        self._data += data
        return start

    def files(self, rsdt: int) -> dict[str, bytes]:
        """The files of fw_cfg, with the root pointer to the RSDT at that offset."""
        self._allocate(ROOT, 16, FSEG)
        root = b"RSD PTR " + b"\0" + self._oem + b"\0" + pack("<I", rsdt)
        self._command(_ADD_POINTER, ROOT, TABLES, pack("<IB", 16, 4))
        self._command(_ADD_CHECKSUM, ROOT, None, pack("<III", 8, 0, len(root)))
        return {TABLES: bytes(self._data), ROOT: root, LOADER: bytes(self._commands)} | self._rooms

    def _align(self) -> None:
        self._data += bytes(-len(self._data) % 8)

    def _allocate(self, file: str, alignment: int, zone: int) -> None:
        self._command(_ALLOCATE, file, None, pack("<IB", alignment, zone))

    def _command(self, kind: int, file: str, source: str | None, rest: bytes) -> None:
        names = file.encode().ljust(56, b"\0")
        if source is not None:
            names += source.encode().ljust(56, b"\0")
        self._commands += (pack("<I", kind) + names + rest).ljust(_COMMAND_SIZE, b"\0")
