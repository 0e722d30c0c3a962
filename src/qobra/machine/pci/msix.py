"""Interrupts by message: MSI-X (a table of addresses in a base address register) and MSI (one address, 6.8)."""

from __future__ import annotations

from qobra.machine.memory import Registers
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.vmstate import VmState, raw

_ENTRY = 16
_ENTRY_MASKED = 1
_ENABLE, _FUNCTION_MASK = 0x8000, 0x4000
WIDTHS = (4, 8)
"""How wide an access to the table and the pending bits is: others are ignored."""

MAX_VECTORS = 2048
"""How many vectors a device can have (PCI Local Bus 3.0, section 6.8.2.3)."""


class Msix:
    """The MSI-X capability of one device.

    By default the table and the pending bits share one base address register, which is made for them; ``window``
    is for devices that show them inside registers of their own.
    """

    vmstate = VmState(raw("_table", "_pending"))

    def __init__(
        self,
        device: PciDevice,
        vectors: int,
        *,
        bar: int,
        offset: int | None = None,
        own_bar: bool = True,
        table_offset: int = 0,
        pending_offset: int | None = None,
    ) -> None:
        self._device = device
        self.vectors = vectors
        self._table = bytearray(vectors * _ENTRY)
        self._pending = bytearray((vectors + 63) // 64 * 8)
        # A half of the smallest register for each, as long as that is enough.
        half = 2048 if vectors <= 128 else 1 << (vectors * _ENTRY - 1).bit_length()
        self.pending_offset = half if pending_offset is None else pending_offset
        self.table_offset = table_offset
        self._capability = device.add_capability(regs.CAP_MSIX, 12, offset=offset)
        device.put(self._capability + 2, 2, vectors - 1)
        device.put(self._capability + 4, 4, bar | table_offset)
        device.put(self._capability + 8, 4, bar | self.pending_offset)
        device.writable[self._capability + 3] = (_ENABLE | _FUNCTION_MASK) >> 8
        if own_bar:
            size = 2 * half
            name = f"{device.type_name}-msix"
            device.add_bar(bar, Registers(name, size, self.read, self.write, valid=WIDTHS, impl=(4, 4)))
        self.reset()

    @property
    def enabled(self) -> bool:
        """Whether the guest has switched it on."""
        return bool(self._control & _ENABLE)

    @property
    def _control(self) -> int:
        return self._device.word(self._capability + 2)

    def reset(self) -> None:
        """All vectors masked, off."""
        self._device.put(self._capability + 2, 2, self._control & ~(_ENABLE | _FUNCTION_MASK))
        self._table[:] = (bytes(12) + _ENTRY_MASKED.to_bytes(4, "little")) * self.vectors
        self._pending[:] = bytes(len(self._pending))

    def notify(self, vector: int) -> None:
        """Signal ``vector``, or remember it while it is masked."""
        if not self.enabled or not 0 <= vector < self.vectors:
            return
        if self._masked(vector):
            self._pending[vector // 8] |= 1 << vector % 8
        else:
            self._send(vector)

    def config_written(self, offset: int, width: int) -> None:
        """The guest wrote to configuration space: what is no longer masked goes out."""
        if offset <= self._capability + 3 < offset + width:
            self._flush()

    def read(self, offset: int, width: int) -> int:
        """A read of the table or the pending bits."""
        if self.table_offset <= offset < self.table_offset + len(self._table):
            position = offset - self.table_offset
            return int.from_bytes(self._table[position : position + width], "little")
        position = offset - self.pending_offset
        if 0 <= position < len(self._pending):
            return int.from_bytes(self._pending[position : position + width], "little")
        return 0

    def write(self, offset: int, width: int, value: int) -> None:
        """A write to the table; the pending bits are the device's."""
        position = offset - self.table_offset
        if position >= 0 and position + width <= len(self._table):
            self._table[position : position + width] = value.to_bytes(width, "little")
            self._flush_one(position // _ENTRY)

    def _masked(self, vector: int) -> bool:
        return bool(self._control & _FUNCTION_MASK or self._table[vector * _ENTRY + 12] & _ENTRY_MASKED)

    def _send(self, vector: int) -> None:
        entry = self._table[vector * _ENTRY : vector * _ENTRY + 12]
        self._device.send_message(int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:], "little"))

    def _flush(self) -> None:
        for vector in range(self.vectors):
            self._flush_one(vector)

    def _flush_one(self, vector: int) -> None:
        bit = 1 << vector % 8
        if self._pending[vector // 8] & bit and self.enabled and not self._masked(vector):
            self._pending[vector // 8] &= ~bit
            self._send(vector)


class Msi:
    """The MSI capability of one device: one vector or more, optionally maskable; addresses of 64 bits if ``wide``."""

    def __init__(
        self,
        device: PciDevice,
        vectors: int = 1,
        *,
        offset: int | None = None,
        maskable: bool = False,
        wide: bool = True,
    ) -> None:
        self._device = device
        self._grant_limit = vectors.bit_length() - 1
        self._maskable = maskable
        self._data = 12 if wide else 8
        self._mask = self._data + 4
        size = self._data + (12 if maskable else 2)
        start = self._capability = device.add_capability(regs.CAP_MSI, size, offset=offset)
        flags = (0x80 if wide else 0) | (vectors.bit_length() - 1) << 1 | (0x100 if maskable else 0)
        device.put(start + 2, 2, flags)
        device.writable[start + 2] = 0x01 | (0x10 if vectors == 2 else 0x70 if vectors > 2 else 0)
        device.writable[start + 4 : start + 8] = b"\xfc\xff\xff\xff"
        device.writable[start + 8 : start + self._data + 2] = b"\xff" * (self._data - 6)
        if maskable:
            device.writable[start + self._mask : start + self._mask + 4] = ((1 << vectors) - 1).to_bytes(4, "little")

    @property
    def enabled(self) -> bool:
        """Whether the guest has switched it on."""
        return bool(self._device.config[self._capability + 2] & 1)

    def reset(self) -> None:
        """Off."""
        start = self._capability
        self._device.config[start + 2] &= ~0x71
        self._device.config[start + 4 : start + self._data + 2] = bytes(self._data - 2)
        if self._maskable:
            self._device.put(start + self._mask, 4, 0)

    def config_written(self, offset: int, width: int) -> None:
        """The guest wrote to configuration space: it cannot grant more vectors than there are."""
        at = self._capability + 2
        if offset <= at < offset + width:
            control = self._device.config[at]
            self._device.config[at] = control & ~0x70 | min(control >> 4 & 7, self._grant_limit) << 4

    def notify(self, vector: int = 0) -> None:
        """Signal ``vector``; with fewer vectors granted than the device has they share the first."""
        device, start = self._device, self._capability
        if not self.enabled:
            return
        granted = 1 << (device.config[start + 2] >> 4 & 7)
        vector = vector if vector < granted else 0
        if self._maskable and device.dword(start + self._mask) >> vector & 1:
            return
        address = int.from_bytes(device.config[start + 4 : start + self._data], "little")
        device.send_message(address, device.word(start + self._data) & ~(granted - 1) | vector)
