"""Starting an uncompressed kernel (ELF) on a PC: in memory from the start, entered by PVH's protocol.

The kernel says in a note where it is entered (Xen's ``XEN_ELFNOTE_PHYS32_ENTRY``, docs/misc/pvh of Xen). An option
ROM, which the firmware finds as the file ``genroms/pvh.bin`` and boots from first, makes what it is to find there.
"""

from __future__ import annotations

from struct import unpack_from
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine import fw_cfg
from qobra.machine.image_file import LOAD, NOTE, elf_headers

if TYPE_CHECKING:
    from qobra.machine.pc import PcBoard

ROM = "genroms/pvh.bin"
_FAILURE = "Error while loading elf kernel"
_MACHINES = (3, 62)
_ENTRY_NOTE = 18
_HEADER_SHOWN = 8192
_MULTIBOOT_MAGIC = 0x1BADB002


def offer(board: PcBoard, data: bytes) -> None:
    """Put the kernel into memory, at each reset anew, and what the ROM needs into fw_cfg. Raises QobraError."""
    if _is_multiboot(data):
        raise QobraError(_FAILURE, hint="Multiboot kernels are not started.")
    headers = elf_headers(data, _FAILURE)
    segments = [header for header in headers if header[0] == LOAD]
    if not segments or unpack_from("<H", data, 18)[0] not in _MACHINES:
        raise QobraError(_FAILURE)
    entry = None
    for kind, offset, _address, length, _room in headers:
        if kind == NOTE and entry is None:
            entry = _entry(data[offset : offset + length])
    if entry is None:
        raise QobraError("Error loading uncompressed kernel without PVH ELF Note")
    start = min(address for _kind, _offset, address, _length, _room in segments)
    end = max(address + room for _kind, _offset, address, _length, room in segments)
    if end - start > board.ram_size or end > 1 << 32:
        raise QobraError(_FAILURE)

    def load() -> None:
        for _kind, offset, address, length, room in segments:
            memory = board.memory.ram(address, room, writable=True)
            if memory is not None:  # what lies elsewhere is lost, as in QEMU
                memory[:length] = data[offset : offset + length]
                memory[length:] = bytes(room - length)

    load()
    board.tree.machine.run_state.on_reset(load)
    device = board.fw_cfg
    for key, value in ((fw_cfg.KERNEL_ADDR, start), (fw_cfg.KERNEL_SIZE, end - start), (fw_cfg.KERNEL_ENTRY, entry)):
        device.set_number(key, value, 4)
    device.set_item(fw_cfg.KERNEL_DATA, bytes(end - start))  # it is in memory already
    command_line = (board.append or "").encode() + b"\0"
    device.set_number(fw_cfg.CMDLINE_SIZE, len(command_line), 4)
    device.set_item(fw_cfg.CMDLINE_DATA, command_line)
    device.set_number(fw_cfg.SETUP_SIZE, _HEADER_SHOWN, 4)
    device.set_item(fw_cfg.SETUP_DATA, data[:_HEADER_SHOWN].ljust(_HEADER_SHOWN, b"\0"))


def _is_multiboot(data: bytes) -> bool:
    # In the first 8 KiB, at a multiple of 4: a number, flags, and what makes the sum of all three 0.
    for at in range(0, min(len(data), _HEADER_SHOWN) - 12 + 1, 4):
        magic, flags, checksum = unpack_from("<III", data, at)
        if magic == _MULTIBOOT_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            return True
    return False


def _entry(notes: bytes) -> int | None:
    """The address that a note names, if one does."""
    at = 0
    while at + 12 <= len(notes):
        name_length, length, kind = unpack_from("<III", notes, at)
        value = at + 12 + (name_length + 3 & ~3)
        if kind == _ENTRY_NOTE and length in (4, 8) and value + length <= len(notes):
            return int.from_bytes(notes[value : value + length], "little") & 0xFFFFFFFF
        at = value + (length + 3 & ~3)
    return None
