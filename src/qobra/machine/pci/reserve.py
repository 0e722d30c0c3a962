"""What a bridge asks firmware to keep free behind it, for devices that come later.

A capability of the vendor tells it, which SeaBIOS and EDK II look for at bridges of Red Hat's: after its length a type
of 1, and then the number of buses (4 bytes), and the bytes of I/O space (8), of memory (4), and of prefetchable memory
below (4) and above 4 GiB (8). All bits set leave it to the firmware.
"""

from __future__ import annotations

import struct

from qobra.errors import QobraError
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.object.property import Int, Size

_TYPE = 1
_LAYOUT = struct.Struct("<BBIQIIQ")
_OPEN_32, _OPEN_64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


class ReservingBridge(PciDevice):
    """A bridge with the properties for that."""

    abstract = True

    bus_reserve = Int(_OPEN_32, type="uint32")
    io_reserve = Size(_OPEN_64)
    mem_reserve = Size(_OPEN_64)
    pref32_reserve = Size(_OPEN_64)
    pref64_reserve = Size(_OPEN_64)

    def add_reservation(self, offset: int | None = None) -> None:
        """Add the capability, unless everything is left to the firmware. Raises QobraError if a size cannot be."""
        memory, low, high = self.mem_reserve, self.pref32_reserve, self.pref64_reserve
        if self.bus_reserve == _OPEN_32 and self.io_reserve == memory == low == high == _OPEN_64:
            return
        if _OPEN_32 < memory < _OPEN_64:
            raise QobraError("PCI resource reserve cap: mem-reserve must be less than 4G")
        if low != _OPEN_64 and high != _OPEN_64:
            raise QobraError("PCI resource reserve cap: PREF32 and PREF64 conflict")
        if _OPEN_32 < low < _OPEN_64:
            raise QobraError("PCI resource reserve cap: pref32-reserve  must be less than 4G")
        size = 2 + _LAYOUT.size
        start = self.add_capability(regs.CAP_VENDOR, size, offset=offset)
        self.config[start + 2 : start + size] = _LAYOUT.pack(
            size, _TYPE, self.bus_reserve, self.io_reserve, memory & _OPEN_32, low & _OPEN_32, high
        )
