"""How ``virt`` starts: firmware, kernel, initial RAM disk and device tree in memory, and the code of the reset vector.

The firmware is started with the address of the tree in ``a1`` and that of the description of what comes next in
``a2`` (OpenSBI's ``fw_dynamic`` interface).
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine import devicetree
from qobra.machine.board_type import virt
from qobra.machine.image_file import elf_segments, read_image
from qobra.machine.riscv import tree

if TYPE_CHECKING:
    from qobra.machine.board_type.virt import Virt

_DEFAULT_FIRMWARE = "opensbi-riscv64-generic-fw_dynamic.bin"
_KERNEL_ALIGNMENT, _TREE_ALIGNMENT = 2 << 20, 2 << 20
_MAX_INITRD_DISTANCE = 128 << 20
_LOW_MEMORY_END = 3 << 30
"""The tree is below, where firmware of 32 bits finds it."""
_NEXT_MAGIC, _NEXT_VERSION, _SUPERVISOR = 0x4942534F, 2, 1
_RESET_CODE = (
    0x00000297,  # auipc t0, 0
    0x02828613,  # addi a2, t0, 0x28: the description of what comes next
    0xF1402573,  # csrr a0, mhartid
    0x0202B583,  # ld a1, 0x20(t0): the tree
    0x0182B283,  # ld t0, 0x18(t0): the firmware
    0x00028067,  # jr t0
)


class BootImages:
    """What is in memory after a reset, by address. Raises QobraError for files that cannot be had."""

    def __init__(self, board: Virt) -> None:
        self._board = board
        self.images: list[tuple[int, bytes]] = []
        firmware_end = self._load_firmware()
        entry, initrd = 0, None
        if board.kernel:
            # Firmware of two stages looks for the kernel in fw_cfg.
            if 1 in board.flash_images:
                self._offer_kernel()
            else:
                entry = self._load_kernel(board.kernel, firmware_end)
                initrd = self._load_initrd(entry)
        root = devicetree.load(board.dtb) if board.dtb else tree.build(board)
        chosen = root.child("chosen")
        if board.append:
            chosen.text("bootargs", board.append)
        if initrd is not None:
            chosen.cells("linux,initrd-start", initrd[0])
            chosen.cells("linux,initrd-end", initrd[1])
        place = self._place_of_tree()
        self.tree = devicetree.flatten(root)
        self.images.append((place, self.tree))
        start = virt.FLASH if 0 in board.flash_images else virt.RAM
        if 1 in board.flash_images:
            entry = virt.FLASH + virt.FLASH_SIZE
        self.vector = pack("<6IQQ", *_RESET_CODE, start, place)
        self.vector += pack("<6Q", _NEXT_MAGIC, _NEXT_VERSION, entry, _SUPERVISOR, 0, 0)

    def write(self) -> None:
        """Put everything where it belongs, as a reset does."""
        board = self._board
        assert board.ram is not None
        board.mrom.view[: len(self.vector)] = self.vector
        for address, data in self.images:
            board.memory.write(address, data)

    def _fits(self, address: int, size: int) -> bool:
        return address >= virt.RAM and address + size <= virt.RAM + self._board.ram_size

    def _put(self, address: int, data: bytes, failure: str, zeroes: int = 0) -> None:
        if not self._fits(address, len(data) + zeroes):
            raise QobraError(failure)
        self.images.append((address, data + bytes(zeroes)))

    def _load_firmware(self) -> int:
        """Load it; where it ends."""
        board = self._board
        name = board.firmware or _DEFAULT_FIRMWARE
        if name == "none":
            return virt.RAM
        path = board.find_firmware(name)
        failure = f'Unable to load the RISC-V firmware "{name}"'
        if path is None:
            if board.firmware:
                raise QobraError(failure)
            return virt.RAM  # a board without firmware still serves tests
        data = read_image(path, failure)
        end = virt.RAM
        for address, part, zeroes in elf_segments(data, failure) or [(virt.RAM, data, 0)]:
            self._put(address, part, failure, zeroes)
            end = max(end, address + len(part) + zeroes)
        return end

    def _load_kernel(self, path: str, firmware_end: int) -> int:
        """Load it; where it begins."""
        failure = f"could not load kernel '{path}'"
        data = read_image(path, failure)
        entry = -(-firmware_end // _KERNEL_ALIGNMENT) * _KERNEL_ALIGNMENT
        segments = elf_segments(data, failure)
        if segments is None:
            self._put(entry, data, failure)
            return entry
        for address, part, zeroes in segments:
            self._put(address, part, failure, zeroes)
        return int.from_bytes(data[24:32], "little")

    def _load_initrd(self, entry: int) -> tuple[int, int] | None:
        board = self._board
        if not board.initrd:
            return None
        failure = f"could not load ramdisk '{board.initrd}'"
        data = read_image(board.initrd, failure)
        start = entry + min(board.ram_size // 2, _MAX_INITRD_DISTANCE)
        self._put(start, data, failure)
        return start, start + len(data)

    def _offer_kernel(self) -> None:
        from qobra.machine import fw_cfg

        board = self._board
        for path, size_key, data_key in (
            (board.kernel, fw_cfg.KERNEL_SIZE, fw_cfg.KERNEL_DATA),
            (board.initrd, fw_cfg.INITRD_SIZE, fw_cfg.INITRD_DATA),
        ):
            if path:
                data = read_image(path, f"could not load '{path}'")
                board.fw_cfg.set_number(size_key, len(data), 4)
                board.fw_cfg.set_item(data_key, data)
        if board.append:
            text = board.append.encode() + b"\0"
            board.fw_cfg.set_number(fw_cfg.CMDLINE_SIZE, len(text), 4)
            board.fw_cfg.set_item(fw_cfg.CMDLINE_DATA, text)

    def _place_of_tree(self) -> int:
        end = min(virt.RAM + self._board.ram_size, _LOW_MEMORY_END)
        place = (end - devicetree.MAX_SIZE) // _TREE_ALIGNMENT * _TREE_ALIGNMENT
        if place < virt.RAM:
            raise QobraError("Not enough space to store device-tree")
        return place
