"""Memory that is plugged in: slots, and the range of addresses that is kept for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.acpi_memhp import AcpiMemoryHotplug

if TYPE_CHECKING:
    from qobra.machine.board import Board
    from qobra.machine.device.pc_dimm import PcDimm

_ALIGNMENT = 2 << 20
_GIB = 1 << 30


class MemorySlots:
    """The slots of a board, ``count`` of them, for ``size`` bytes from ``base`` on; and the registers for ACPI."""

    def __init__(self, board: Board, *, base: int, size: int, count: int, notify: Any) -> None:
        self._board = board
        self.base = (base + _GIB - 1) // _GIB * _GIB
        self.size = size
        self.count = count
        self.dimms: dict[int, PcDimm] = {}
        self.acpi = AcpiMemoryHotplug(self, notify)
        self.acpi_status = [(0, 0)] * count
        """Source and status of the last report of the guest on each slot."""

    def place(self, dimm: PcDimm) -> None:
        """Find an address and a slot for a module. Raises QobraError in QEMU's words."""
        length = dimm.ram_length
        used = sum(other.ram_length for other in self.dimms.values())
        if self.count == 0:
            raise QobraError("no slots where allocated, please specify the 'slots' option")
        if used + length > self.size:
            raise QobraError(
                f"not enough space, currently 0x{used:x} in use of total space for memory devices 0x{self.size:x}"
            )
        dimm.values["slot"] = self._choose_slot(dimm.slot)
        dimm.values["addr"] = self._choose_address(dimm.addr, length)

    def _choose_slot(self, wanted: int) -> int:
        if wanted >= 0:
            if wanted >= self.count:
                raise QobraError(f"invalid slot number {wanted}, valid range is [0-{self.count - 1}]")
            if wanted in self.dimms:
                raise QobraError(f"slot {wanted} is busy")
            return wanted
        free = next((number for number in range(self.count) if number not in self.dimms), None)
        if free is None:
            raise QobraError("no free slots available")
        return free

    def _choose_address(self, wanted: int, length: int) -> int:
        taken = sorted((dimm.addr, dimm.ram_length, dimm.user_id or "") for dimm in self.dimms.values())
        end = self.base + self.size + self.count * _GIB
        if wanted:
            if wanted % _ALIGNMENT:
                raise QobraError(f"address must be aligned to 0x{_ALIGNMENT:x} bytes")
            if not self.base <= wanted or wanted + length > end:
                raise QobraError(
                    f"can't add memory device [0x{wanted:x}:0x{length:x}], usable range for memory devices "
                    f"[0x{self.base:x}:0x{end - self.base:x}]"
                )
            for address, size, id in taken:
                if wanted < address + size and address < wanted + length:
                    raise QobraError(f"address range conflicts with memory device id='{id}'")
            return wanted
        here = self.base
        for address, size, _id in taken:
            if here + length <= address:
                break
            here = max(here, (address + size + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT)
        if here + length > end:
            raise QobraError(
                "could not find position in guest address space for memory device - memory fragmented due to alignments"
            )
        return here

    def describe(self) -> list[dict[str, Any]]:
        """The modules, for the queries of memory devices."""
        return [
            {"kind": "dimm", "size": dimm.ram_length, "info": dimm.info()}
            for _slot, dimm in sorted(self.dimms.items(), key=lambda entry: entry[1].addr)
        ]

    def ospm_status(self) -> list[dict[str, Any]]:
        """ACPIOSTInfo of each slot."""
        return [self.ost_info(number) for number in range(self.count)]

    def emit_ost(self, number: int) -> None:
        """The guest reported on a slot (ACPI_DEVICE_OST)."""
        self._board.machine.events.emit("ACPI_DEVICE_OST", {"info": self.ost_info(number)})

    def ost_info(self, number: int) -> dict[str, Any]:
        """ACPIOSTInfo of one slot."""
        source, status = self.acpi_status[number]
        info: dict[str, Any] = {"slot-type": "DIMM", "slot": str(number), "source": source, "status": status}
        dimm = self.dimms.get(number)
        if dimm is not None and dimm.user_id is not None:
            info["device"] = dimm.user_id
        return info
