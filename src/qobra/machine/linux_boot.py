"""Starting a Linux kernel on a PC without a boot loader: its parts in fw_cfg, prepared as a boot loader does.

By the Linux/x86 boot protocol (Documentation/arch/x86/boot.rst of the kernel). An option ROM, which the firmware finds
as the file ``genroms/linuxboot_dma.bin`` and boots from first, puts them into memory.
"""

from __future__ import annotations

import os
import re
from struct import pack_into, unpack_from
from typing import TYPE_CHECKING

from qobra.errors import QobraError, strerror
from qobra.machine import fw_cfg, pvh
from qobra.machine.image_file import read_image

if TYPE_CHECKING:
    from qobra.machine.pc import PcBoard

ROM = "genroms/linuxboot_dma.bin"
_SECTOR = 512
_OLD_SETUP, _SETUP, _OLD_COMMAND_LINE_END, _COMMAND_LINE = 0x90000, 0x10000, 0x9A000, 0x20000
_LOW_KERNEL, _HIGH_KERNEL = 0x10000, 0x100000
_LOADED_HIGH, _CAN_USE_HEAP, _ABOVE_4G = 0x01, 0x80, 0x02
_LOADER_QEMU = 0xB0
_OLD_COMMAND_LINE_MAGIC = 0xA33F
_OLD_INITRD_MAX = 0x37FFFFFF
_ANYWHERE = 0xFFFFFFFF
_ROOM_FOR_FIRMWARE = 0x28000
"""Bytes at the end of low memory where the firmware puts its tables."""
_VIDEO_MODES = {"normal": 0xFFFF, "ext": 0xFFFE, "ask": 0xFFFD}


def offer(board: PcBoard) -> None:
    """Put the board's kernel, its command line and its RAM disk into fw_cfg. Raises QobraError in QEMU's words."""
    path, command_line = board.kernel, (board.append or "").encode() + b"\0"
    data = read_image(path, f"could not open kernel file '{path}'")
    if data[:4] == b"\x7fELF":
        pvh.offer(board, data)
        if board.initrd:
            _put_initrd(board, _read_initrd(board), _ANYWHERE)
        _offer_rom(board, pvh.ROM)
        return
    sectors = data[0x1F1] if len(data) > 0x1F1 else 0
    setup = bytearray(data[: ((sectors or 4) + 1) * _SECTOR])
    if len(setup) < ((sectors or 4) + 1) * _SECTOR:
        raise QobraError("qemu: invalid kernel header")
    protocol = unpack_from("<H", setup, 0x206)[0] if setup[0x202:0x206] == b"HdrS" else 0
    flags = setup[0x211] if protocol >= 0x200 else 0
    if flags & _LOADED_HIGH and protocol >= 0x202:
        setup_at, command_line_at, kernel_at = _SETUP, _COMMAND_LINE, _HIGH_KERNEL
    else:
        setup_at, kernel_at = _OLD_SETUP, _HIGH_KERNEL if flags & _LOADED_HIGH else _LOW_KERNEL
        command_line_at = _OLD_COMMAND_LINE_END - ((len(command_line) + 15) & ~15)
    if protocol >= 0x202:
        pack_into("<I", setup, 0x228, command_line_at)
    elif protocol:
        pack_into("<HH", setup, 0x20, _OLD_COMMAND_LINE_MAGIC, command_line_at - setup_at)
    _set_video_mode(setup, command_line.decode("latin-1"))
    if protocol >= 0x200:
        setup[0x210] = _LOADER_QEMU
    if protocol >= 0x201:
        setup[0x211] |= _CAN_USE_HEAP
        pack_into("<H", setup, 0x224, (command_line_at - setup_at - 0x200) & 0xFFFF)
    device = board.fw_cfg
    if board.initrd:
        _offer_initrd(board, setup, protocol)
    kernel = data[len(setup) :]
    for address_key, address, size_key, data_key, part in (
        (fw_cfg.KERNEL_ADDR, kernel_at, fw_cfg.KERNEL_SIZE, fw_cfg.KERNEL_DATA, kernel),
        (fw_cfg.SETUP_ADDR, setup_at, fw_cfg.SETUP_SIZE, fw_cfg.SETUP_DATA, bytes(setup)),
        (fw_cfg.CMDLINE_ADDR, command_line_at, fw_cfg.CMDLINE_SIZE, fw_cfg.CMDLINE_DATA, command_line),
    ):
        device.set_number(address_key, address, 4)
        device.set_number(size_key, len(part), 4)
        device.set_item(data_key, part)
    _offer_rom(board, ROM)


def _set_video_mode(setup: bytearray, command_line: str) -> None:
    found = re.search(r"vga=(\w+)", command_line)
    if found is None:
        return
    try:
        mode = _VIDEO_MODES.get(found[1]) or int(found[1], 0)
    except ValueError:
        return
    pack_into("<H", setup, 0x1FA, mode & 0xFFFF)


def _offer_initrd(board: PcBoard, setup: bytearray, protocol: int) -> None:
    if protocol < 0x200:
        raise QobraError("qemu: linux kernel too old to load a ram disk")
    data = _read_initrd(board)
    if protocol >= 0x20C and setup[0x236] & _ABOVE_4G:
        limit = _ANYWHERE
    else:
        limit = unpack_from("<I", setup, 0x22C)[0] if protocol >= 0x203 else _OLD_INITRD_MAX
    pack_into("<II", setup, 0x218, _put_initrd(board, data, limit), len(data))


def _read_initrd(board: PcBoard) -> bytes:
    try:
        with open(board.initrd, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise QobraError(f"qemu: error reading initrd {board.initrd}: {strerror(error)}")


def _put_initrd(board: PcBoard, data: bytes, limit: int) -> int:
    # As high as it may lie, up to limit; returns the address.
    limit = min(limit, board.low_memory - _ROOM_FOR_FIRMWARE - 1)
    if len(data) >= limit:
        raise QobraError(f"qemu: initrd is too large, cannot support.(max: {limit}, need {len(data)})")
    address = (limit - len(data)) & ~0xFFF
    board.fw_cfg.set_number(fw_cfg.INITRD_ADDR, address, 4)
    board.fw_cfg.set_number(fw_cfg.INITRD_SIZE, len(data), 4)
    board.fw_cfg.set_item(fw_cfg.INITRD_DATA, data)
    return address


def _offer_rom(board: PcBoard, rom: str) -> None:
    # None is shipped; whoever brings the firmware has it beside it.
    for directory in board.firmware_directories:
        path = os.path.join(directory, os.path.basename(rom))
        if os.path.isfile(path):
            board.fw_cfg.add_file(rom, read_image(path, f"could not load '{path}'"))
            board.boot_first = f"/rom@{rom}"
            return
