"""The memory of the physical presence interface (TCG PC Client Platform Physical Presence Interface 1.3).

The operating system leaves requests to the TPM there by methods of the ACPI tables, and the firmware carries them out
after the next reset. It outlives resets. Its layout is between tables and firmware, but for one bit: by that the memory
of the machine is overwritten at a reset (TCG Platform Reset Attack Mitigation 1.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.memory import Ram, RomDevice
from qobra.machine.vmstate import VmState, raw

if TYPE_CHECKING:
    from qobra.machine.board import Board

BASE, SIZE = 0xFED45000, 0x400
OVERWRITE = 0x15A
_PIECE = 1 << 20


class PresenceMemory:
    """The memory, mapped."""

    vmstate = VmState(raw("content"))

    def __init__(self, board: Board) -> None:
        self._board = board
        self._memory = RomDevice("tpm-ppi", SIZE)
        self._mapping = board.memory.map(BASE, self._memory, priority=1)

    def close(self) -> None:
        """Take it out."""
        self._mapping.remove()
        self._memory.close()

    @property
    def content(self) -> bytes:
        """All of it."""
        return bytes(self._memory.view)

    @content.setter
    def content(self, content: bytes) -> None:
        self._memory.view[:] = content

    def reset(self) -> bool:
        """Overwrite the machine's memory if that was asked for; whether it was."""
        if not self._memory.view[OVERWRITE] & 1:
            return False
        for start, end, region, offset in self._board.memory.flat():
            if isinstance(region, Ram) and not isinstance(region, RomDevice) and not region.readonly:
                _overwrite(region, offset, end - start)
        return True


def _overwrite(region: Ram, offset: int, length: int) -> None:
    # Pages that nobody has touched need not come into being for it.
    whole = (offset | length) & 0xFFF == 0
    if whole and (region.fd < 0 or region.shared):
        region.discard(offset, length)
        return
    for start in range(offset, offset + length, _PIECE):
        size = min(_PIECE, offset + length - start)
        region.piece(start, size)[:] = bytes(size)
