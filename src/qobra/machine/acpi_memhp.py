"""Memory hot-plug with the help of the guest's ACPI: one window of registers on the slot that is selected."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.memory import Registers
from qobra.machine.vmstate import Field, NumberSet, VmState, u32

if TYPE_CHECKING:
    from qobra.machine.device.pc_dimm import PcDimm
    from qobra.machine.memory_slots import MemorySlots

PORT = 0x0A00
GPE_BIT = 3
_SELECT, _OST_EVENT, _OST_STATUS, _FLAGS = 0x00, 0x04, 0x08, 0x14
_ENABLED, _INSERTING, _REMOVING, _EJECT = 0x01, 0x02, 0x04, 0x08


class AcpiMemoryHotplug:
    """The registers. ``notify`` raises the general-purpose event."""

    vmstate = VmState(u32("_selected"), Field("_inserting", NumberSet(256)), Field("_removing", NumberSet(256)))

    def __init__(self, slots: MemorySlots, notify: Callable[[], None]) -> None:
        self._slots = slots
        self._notify = notify
        self._selected = 0
        self._inserting: set[int] = set()
        self._removing: set[int] = set()
        self.registers = Registers("acpi-mem-hotplug", 24, self._read, self._write, valid=(1, 4), impl=(1, 4))

    def plugged(self, number: int) -> None:
        """A module has come into a slot."""
        self._inserting.add(number)
        self._notify()

    def request_removal(self, number: int) -> None:
        """A module shall leave its slot."""
        self._removing.add(number)
        self._notify()

    def gone(self, number: int) -> None:
        """A slot is empty."""
        self._inserting.discard(number)
        self._removing.discard(number)

    def _module(self) -> PcDimm | None:
        # A slot with an NVDIMM looks empty here: the guest finds those by its NFIT.
        dimm = self._slots.dimms.get(self._selected)
        return dimm if dimm is not None and dimm.memory_kind == "dimm" else None

    def _read(self, offset: int, _width: int) -> int:
        dimm = self._module()
        if dimm is None:
            return 0
        values = {
            0x00: dimm.addr & 0xFFFFFFFF,
            0x04: dimm.addr >> 32,
            0x08: dimm.memory_length & 0xFFFFFFFF,
            0x0C: dimm.memory_length >> 32,
            0x10: dimm.node,
            _FLAGS: _ENABLED
            | (_INSERTING if self._selected in self._inserting else 0)
            | (_REMOVING if self._selected in self._removing else 0),
        }
        return int(values.get(offset, 0))

    def _write(self, offset: int, _width: int, value: int) -> None:
        slots = self._slots
        if offset == _SELECT:
            self._selected = value
        if self._selected >= slots.count:
            return
        source, status = slots.acpi_status[self._selected]
        if offset == _OST_EVENT:
            slots.acpi_status[self._selected] = (value, status)
        elif offset == _OST_STATUS:
            slots.acpi_status[self._selected] = (source, value)
            slots.emit_ost(self._selected)
        elif offset == _FLAGS:
            if value & _INSERTING:
                self._inserting.discard(self._selected)
            elif value & _REMOVING:
                self._removing.discard(self._selected)
            elif value & _EJECT:
                self._eject()

    def _eject(self) -> None:
        dimm = self._module()
        if dimm is None:
            return
        try:
            dimm.check_eject()
        except QobraError as error:
            data = {"device": dimm.user_id or "", "msg": str(error)}
            dimm.machine.events.emit("MEM_UNPLUG_ERROR", data)
            return
        dimm.unparent()
