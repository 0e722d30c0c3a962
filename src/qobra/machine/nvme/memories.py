"""Memory that a controller offers to the host: the controller memory buffer and the persistent memory region.

NVM Express 1.4, sections 4.7, 4.8 and 3.1.11 to 3.1.20. What lies in them is reached by DMA as any other memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.memory import Ram
from qobra.machine.memory_slots import claim_backend, release_backend
from qobra.machine.nvme.controller import half

if TYPE_CHECKING:
    from qobra.machine.device.nvme import Nvme
    from qobra.machine.memory_backend import MemoryBackend

BUFFER_BAR, PERSISTENT_BAR = 2, 4
_CAP_PERSISTENT, _CAP_BUFFER = 1 << 56, 1 << 57
_LOCATION, _SIZE, _CONTROL, _CONTROL_HIGH, _STATUS = 0x38, 0x3C, 0x50, 0x54, 0x58
_PMR_CAP, _PMR_CONTROL, _PMR_STATUS, _PMR_MEMORY, _PMR_MEMORY_HIGH = 0xE00, 0xE04, 0xE08, 0xE14, 0xE18
# Queues, lists and data may lie in the buffer; sizes are in MiB.
_BUFFER_USES = 0x1F | 2 << 8
# Readable and writable data; writes are there once one byte was read; addresses can be chosen.
_PERSISTENT_USES = 1 << 3 | 1 << 4 | PERSISTENT_BAR << 5 | 2 << 10 | 1 << 24
_ENABLED, _NOT_READY = 0x1, 0x100
_MIB = 1 << 20


class Memories:
    """The memories of ``device``: a buffer of ``cmb_size_mb``, and the backend ``pmrdev``. Raises QobraError."""

    def __init__(self, device: Nvme) -> None:
        self._device = device
        self._buffer: Ram | None = None
        self._persistent: MemoryBackend | None = device.pmrdev
        backend = self._persistent
        if backend is not None:
            if backend.mapped:
                raise QobraError(f"can't use already busy memdev: {backend.id}")
            if backend.size & backend.size - 1:
                raise QobraError("pmr backend size needs to be power of 2 in size")
        if device.cmb_size_mb & device.cmb_size_mb - 1:
            raise QobraError("cmb_size_mb must be a power of 2")
        self.reset()

    def show(self) -> None:
        """Take the memory, and make the base address registers."""
        device = self._device
        if device.cmb_size_mb:
            self._buffer = Ram("nvme-cmb", device.cmb_size_mb * _MIB)
            device.add_bar(BUFFER_BAR, self._buffer, wide=True, prefetch=True)
        if self._persistent is not None:
            assert self._persistent.ram is not None
            claim_backend(self._persistent)
            device.add_bar(PERSISTENT_BAR, self._persistent.ram, wide=True, prefetch=True)

    def close(self) -> None:
        """Give the memory back."""
        if self._buffer is not None:
            self._buffer.close()
        if self._persistent is not None:
            release_backend(self._persistent)

    def reset(self) -> None:
        """As after power-on; what is in the memory stays."""
        self._buffer_control = self._persistent_control = self._persistent_place = 0

    @property
    def capabilities(self) -> int:
        """Bits of CAP."""
        buffer = _CAP_BUFFER if self._device.cmb_size_mb else 0
        return buffer | (_CAP_PERSISTENT if self._persistent is not None else 0)

    @property
    def persistent_shown(self) -> bool:
        """Whether the host has enabled the persistent memory."""
        return bool(self._persistent_control & _ENABLED)

    def read(self, offset: int) -> int:
        """The 32-bit register at ``offset``; 0 for those of others."""
        if self._device.cmb_size_mb:
            told = self._buffer_control & _ENABLED
            values = {
                _LOCATION: BUFFER_BAR if told else 0,
                _SIZE: self._device.cmb_size_mb << 12 | _BUFFER_USES if told else 0,
                _CONTROL: self._buffer_control & 0xFFFFFFFF,
                _CONTROL_HIGH: self._buffer_control >> 32,
            }
            if offset in values:
                return values[offset]
        if self._persistent is None:
            return 0
        return {
            _PMR_CAP: _PERSISTENT_USES,
            _PMR_CONTROL: self._persistent_control,
            _PMR_STATUS: 0 if self.persistent_shown else _NOT_READY,
            _PMR_MEMORY: self._persistent_place & 0xFFFFFFFF,
            _PMR_MEMORY_HIGH: self._persistent_place >> 32,
        }.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """Write the 32-bit register at ``offset``, if it is one of these."""
        if self._device.cmb_size_mb and offset in (_CONTROL, _CONTROL_HIGH):
            self._buffer_control = half(self._buffer_control, 4 if offset == _CONTROL_HIGH else 0, value) & ~0xFFC
        elif self._persistent is not None and offset == _PMR_CONTROL:
            self._persistent_control = value & _ENABLED
            self._device.update_mappings()
        elif self._persistent is not None and offset in (_PMR_MEMORY, _PMR_MEMORY_HIGH):
            self._persistent_place = (
                half(self._persistent_place, 4 if offset == _PMR_MEMORY_HIGH else 0, value) & ~0xFFD
            )
