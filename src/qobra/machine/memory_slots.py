"""Memory devices: the range of addresses that is kept for them, and the slots of those that are modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.acpi_memhp import AcpiMemoryHotplug
from qobra.machine.vmstate import Number, Together, VmState, listed, part

if TYPE_CHECKING:
    from qobra.machine.board import Board
    from qobra.machine.device.pc_dimm import PcDimm
    from qobra.machine.memory_backend import MemoryBackend

_ALIGNMENT = 2 << 20
_GIB = 1 << 30


class MemoryDevice:
    """What devices that bring memory of their own have in common, for the board and for the queries.

    ``memory_kind`` is the branch of MemoryDeviceInfo; addresses and lengths are in bytes.
    """

    memory_kind = ""
    memory_address = 0
    memdev: Any = None

    @property
    def memory_alignment(self) -> int:
        """What the address and the length are multiples of."""
        backend: MemoryBackend | None = self.memdev
        return _ALIGNMENT if backend is None else backend.alignment

    @property
    def memory_length(self) -> int:
        """Bytes of the address range."""
        raise NotImplementedError

    @property
    def memory_id(self) -> str | None:
        """The id that the user gave the device."""
        raise NotImplementedError

    @property
    def plugged_size(self) -> int:
        """Bytes that the guest may use now."""
        return self.memory_length

    def info(self) -> dict[str, Any]:
        """The data of MemoryDeviceInfo."""
        raise NotImplementedError


def claim_backend(backend: MemoryBackend) -> None:
    """Have ``backend`` serve one device."""
    backend.mapped = True
    backend.in_use += 1


def release_backend(backend: MemoryBackend) -> None:
    """Undo :func:`claim_backend`."""
    backend.mapped = False
    backend.in_use -= 1


def slots_of(board: Board) -> MemorySlots:
    """The board's place for memory devices. Raises QobraError where it has none."""
    slots = board.memory_slots_of()
    if slots is None:
        raise QobraError("memory devices (e.g. for memory hotplug) are not supported by the machine")
    return slots


class MemorySlots:
    """The range of a board, ``size`` bytes from ``base`` on, its ``count`` slots, and the registers for ACPI."""

    vmstate = VmState(part("acpi"), listed("acpi_status", kind=Together(Number(4), Number(4))))

    def __init__(self, board: Board, *, base: int, size: int, count: int, notify: Any) -> None:
        self._board = board
        self.base = (base + _GIB - 1) // _GIB * _GIB
        self.size = size
        self.count = count
        self.dimms: dict[int, PcDimm] = {}
        self.devices: list[MemoryDevice] = []
        self.acpi = AcpiMemoryHotplug(self, notify)
        self.acpi_status = [(0, 0)] * count
        """Source and status of the last report of the guest on each slot."""

    @property
    def end(self) -> int:
        """Where the range ends: each slot may need room to align its module."""
        return self.base + self.size + self.count * _GIB

    def place(self, device: MemoryDevice, wanted: int) -> int:
        """An address for ``device``, ``wanted`` if it is not 0. Raises QobraError in QEMU's words."""
        length = device.memory_length
        if not self.size:
            raise QobraError(
                "memory devices (e.g. for memory hotplug) are not enabled, please specify the maxmem option"
            )
        used = sum(other.memory_length for other in self.devices)
        if used + length > self.size:
            raise QobraError(
                f"not enough space, currently 0x{used:x} in use of total space for memory devices 0x{self.size:x}"
            )
        return self._choose_address(wanted, length, device.memory_alignment)

    def choose_slot(self, wanted: int) -> int:
        """A free slot, ``wanted`` if it is not negative. Raises QobraError."""
        if self.count == 0:
            raise QobraError("no slots where allocated, please specify the 'slots' option")
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

    def _choose_address(self, wanted: int, length: int, alignment: int) -> int:
        taken = sorted((d.memory_address, d.memory_length, d.memory_id or "") for d in self.devices)
        if wanted:
            if wanted % alignment:
                raise QobraError(f"address must be aligned to 0x{alignment:x} bytes")
        if length % alignment:
            raise QobraError(f"backend memory size must be multiple of 0x{alignment:x}")
        if wanted:
            if not self.base <= wanted or wanted + length > self.end:
                raise QobraError(
                    f"can't add memory device [0x{wanted:x}:0x{length:x}], usable range for memory devices "
                    f"[0x{self.base:x}:0x{self.end - self.base:x}]"
                )
            for address, size, id in taken:
                if wanted < address + size and address < wanted + length:
                    raise QobraError(f"address range conflicts with memory device id='{id}'")
            return wanted
        here = (self.base + alignment - 1) // alignment * alignment
        for address, size, _id in taken:
            if here + length <= address:
                break
            here = max(here, (address + size + alignment - 1) // alignment * alignment)
        if here + length > self.end:
            raise QobraError(
                "could not find position in guest address space for memory device - memory fragmented due to alignments"
            )
        return here

    def describe(self) -> list[dict[str, Any]]:
        """The devices in the order of their addresses, for the queries."""
        return [
            {"kind": device.memory_kind, "size": device.plugged_size, "info": device.info()}
            for device in sorted(self.devices, key=lambda device: device.memory_address)
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
        if dimm is not None and dimm.memory_kind == "dimm" and dimm.user_id is not None:
            info["device"] = dimm.user_id
        return info
