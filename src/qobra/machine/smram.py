"""Memory of the Q35 that only system management mode sees (Intel 3 Series datasheet, sections 5.1.32 to 5.1.34).

No CPU here is in that mode: what belongs to it is a hole, which reads as ones and takes no writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.memory import Mapping, Registers

if TYPE_CHECKING:
    from qobra.machine.pc import PcBoard
    from qobra.machine.pci.device import PciDevice

SMBASE, SMRAM, ESMRAMC, EXTENDED_SIZE = 0x9C, 0x9D, 0x9E, 0x50
_OPEN, _LOCKED, _ENABLED = 0x40, 0x10, 0x08
_HIGH, _SIZE, _SEGMENT_ENABLED = 0x80, 0x06, 0x01
_QUERY, _AVAILABLE, _LOCK_BASE = 0xFF, 0x01, 0x02
_LOW, _LOW_SIZE, _DEFAULT_BASE, _BASE_SIZE = 0xA0000, 0x20000, 0x30000, 0x20000
_MIB = 1 << 20
_SIZES = {0: 1, 2: 2, 4: 8}
"""MiB by the size bits; with all of them set the extended size counts."""


class Smram:
    """Follows the registers in the configuration space of ``device``, the memory controller.

    ``at_default_base`` offers the guest to hide the memory where CPUs look first, at 0x30000; ``extended_mib`` is the
    size of the segment at the top with the size bits 3.
    """

    def __init__(self, device: PciDevice, board: PcBoard, *, at_default_base: bool, extended_mib: int) -> None:
        self._device = device
        self._board = board
        self._at_default_base = at_default_base
        self._extended_mib = extended_mib
        assert board.ram is not None
        self._low = board.memory.map(_LOW, board.ram, offset=_LOW, size=_LOW_SIZE, priority=2, enabled=False)
        self._base = board.memory.map(_DEFAULT_BASE, _hole(_BASE_SIZE), priority=2, enabled=False)
        self._segment: Mapping | None = None

    def reset(self) -> None:
        """As after power-on: open to changes, and nothing hidden."""
        device = self._device
        device.config[SMBASE], device.config[SMRAM], device.config[ESMRAMC] = 0, 0x02, 0x38
        device.writable[SMBASE] = 0 if self._at_default_base else 0xFF
        self.follow()

    def written(self, base: int | None) -> None:
        """The guest wrote the registers; ``base`` is what it wrote to that of the default base, if it did."""
        if base is not None and self._at_default_base and self._device.config[SMBASE] != _LOCK_BASE:
            if self._device.config[SMBASE] == _AVAILABLE:  # the lock is all that can be written now
                self._device.config[SMBASE] = _LOCK_BASE if base & _LOCK_BASE else _AVAILABLE
            else:
                self._device.config[SMBASE] = _AVAILABLE if base == _QUERY else 0
        self.follow()

    def follow(self) -> None:
        """Show and hide as the registers say."""
        config, writable = self._device.config, self._device.writable
        locked = config[SMRAM] & _LOCKED
        if locked:
            config[SMRAM] &= ~_OPEN
        writable[SMRAM], writable[ESMRAMC] = (0x20, 0) if locked else (0x78, _HIGH | _SIZE | _SEGMENT_ENABLED)
        self._low.place(_LOW if config[SMRAM] & _OPEN and not config[ESMRAMC] & _HIGH else None)
        hidden = self._at_default_base and config[SMBASE] == _LOCK_BASE
        self._base.place(_DEFAULT_BASE if hidden else None)
        if self._segment is not None:
            self._segment.remove()
            self._segment = None
        size = self._segment_size()
        if size:
            self._segment = self._board.memory.map(self._board.low_memory - size, _hole(size), priority=2)

    def _segment_size(self) -> int:
        config = self._device.config
        if not config[SMRAM] & _ENABLED or not config[ESMRAMC] & _SEGMENT_ENABLED:
            return 0
        size = _SIZES.get(config[ESMRAMC] & _SIZE, self._extended_mib) * _MIB
        return size if size < self._board.low_memory else 0


def _hole(size: int) -> Registers:
    return Registers(
        "smram-hole", size, lambda _offset, width: (1 << 8 * width) - 1, _ignore, valid=(1, 8), impl=(1, 8)
    )


def _ignore(_offset: int, _width: int, _value: int) -> None:
    pass
