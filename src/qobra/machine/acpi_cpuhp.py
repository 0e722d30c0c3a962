"""CPU hot-plug with the help of the guest's ACPI: QEMU's registers (its documentation, specs/acpi_cpu_hotplug).

They begin as a map of the CPUs that are there, by their APIC ids. A guest that knows of the newer ones writes a zero
there; from then on, the registers are those of the CPU that is selected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.memory import Registers
from qobra.machine.vmstate import Field, Number, NumberSet, Together, VmState, flag, listed, u8, u32

if TYPE_CHECKING:
    from qobra.machine.device.x86_64_cpu import X86Cpu
    from qobra.machine.pc import PcBoard

GPE_BIT = 2
MAP_SIZE, SIZE = 32, 12
_MAX_MAPPED = 8 * MAP_SIZE
_MAX_CPUS = 1 << 12
_SELECT, _HIGH_DATA, _FLAGS, _COMMAND, _DATA = 0x00, 0x00, 0x04, 0x05, 0x08
_ENABLED, _INSERTING, _REMOVING, _EJECT, _BY_FIRMWARE = 0x01, 0x02, 0x04, 0x08, 0x10
_NEXT_WITH_EVENT, _OST_EVENT, _OST_STATUS, _ARCHITECTURE_ID = range(4)


class AcpiCpuHotplug:
    """The registers at ``port``. ``notify`` raises the general-purpose event."""

    vmstate = VmState(
        flag("legacy"),
        u32("_selected"),
        u8("_command", maximum=_ARCHITECTURE_ID),
        Field("_inserting", NumberSet(_MAX_CPUS)),
        Field("_removing", NumberSet(_MAX_CPUS)),
        Field("_by_firmware", NumberSet(_MAX_CPUS)),
        listed("_reports", kind=Together(Number(4), Number(4))),
    )

    def __init__(self, board: PcBoard, port: int, notify: Callable[[], None]) -> None:
        assert board.topology is not None
        self._board = board
        self._notify = notify
        self._selected = 0
        self._command = _NEXT_WITH_EVENT
        self._inserting: set[int] = set()
        self._removing: set[int] = set()
        self._by_firmware: set[int] = set()
        self._reports = [(0, 0)] * board.topology.max_cpus
        self.port = port
        self.legacy = True
        map = Registers("acpi-cpu-hotplug", MAP_SIZE, self._read_map, self._write_map, valid=(1, 4), impl=(1, 1))
        registers = Registers("acpi-cpu-hotplug", SIZE, self._read, self._write, valid=(1, 4), impl=(1, 4))
        self._map = board.ports.map(port, map)
        self._place = board.ports.map(port, registers, enabled=False)
        if board.apic_ids.limit > _MAX_MAPPED:
            self._leave_legacy()

    # -- what happens to CPUs

    def plugged(self, cpu: X86Cpu) -> None:
        """A CPU has come."""
        if not self.legacy:
            self._inserting.add(cpu.index)
        self._notify()

    def request_removal(self, cpu: X86Cpu) -> None:
        """A CPU shall leave. Raises QobraError as long as the guest knows of no way."""
        if self.legacy:
            raise QobraError(f"acpi: device unplug request for not supported device type: {cpu.type_name}")
        self._removing.add(cpu.index)
        self._notify()

    def state_loaded(self) -> None:
        """Show the registers that the guest has chosen."""
        self._map.place(self.port if self.legacy else None)
        self._place.place(None if self.legacy else self.port)

    def ospm_status(self) -> list[dict[str, Any]]:
        """ACPIOSTInfo of each CPU that there can be; of none while the guest has no way to tell."""
        return [] if self.legacy else [self._report(index) for index in range(len(self._reports))]

    def _report(self, index: int) -> dict[str, Any]:
        source, status = self._reports[index]
        info = {"slot-type": "CPU", "slot": str(index), "source": source, "status": status}
        cpu = self._find(index)
        if cpu is not None and cpu.user_id is not None:
            info["device"] = cpu.user_id
        return info

    def _find(self, index: int) -> X86Cpu | None:
        cpus: Any = self._board.cpus
        return next((cpu for cpu in cpus if cpu.index == index), None)

    # -- the map

    def _read_map(self, offset: int, _width: int) -> int:
        ids = (self._board.apic_ids.of(cpu.index) for cpu in self._board.cpus)
        return sum(1 << id % 8 for id in ids if id // 8 == offset)

    def _write_map(self, offset: int, _width: int, value: int) -> None:
        if offset == 0 and value & 0xFF == 0:
            self._leave_legacy()

    def _leave_legacy(self) -> None:
        self.legacy = False
        self.state_loaded()

    # -- the registers of one CPU

    def _read(self, offset: int, _width: int) -> int:
        if self._selected >= len(self._reports):
            return 0
        id = self._board.apic_ids.of(self._selected)
        if offset == _FLAGS:
            return self._flags()
        if offset == _DATA:
            return {_NEXT_WITH_EVENT: self._selected, _ARCHITECTURE_ID: id & 0xFFFFFFFF}.get(self._command, 0)
        return id >> 32 if offset == _HIGH_DATA and self._command == _ARCHITECTURE_ID else 0

    def _flags(self) -> int:
        bits = ((_INSERTING, self._inserting), (_REMOVING, self._removing), (_BY_FIRMWARE, self._by_firmware))
        found = sum(bit for bit, cpus in bits if self._selected in cpus)
        return found | (_ENABLED if self._find(self._selected) is not None else 0)

    def _write(self, offset: int, _width: int, value: int) -> None:
        if offset == _SELECT:
            self._selected = value
        if self._selected >= len(self._reports):
            return
        if offset == _FLAGS:
            self._control(value)
        elif offset == _COMMAND and value <= _ARCHITECTURE_ID:
            self._command = value
            if value == _NEXT_WITH_EVENT:
                self._select_next()
        elif offset == _DATA:
            self._tell(value)

    def _control(self, value: int) -> None:
        selected = self._selected
        if value & _INSERTING:
            self._inserting.discard(selected)
        elif value & _REMOVING:
            self._removing.discard(selected)
        elif value & _EJECT:
            self._eject()
        elif value & _BY_FIRMWARE:
            self._by_firmware.add(selected)

    def _eject(self) -> None:
        cpu = self._find(self._selected)
        if cpu is None or cpu is self._board.cpus[0]:
            return
        for cpus in (self._inserting, self._removing, self._by_firmware):
            cpus.discard(cpu.index)
        cpu.unparent()

    def _select_next(self) -> None:
        # The next CPU with something to tell, from the selected one on and around.
        count = len(self._reports)
        for step in range(count):
            index = (self._selected + step) % count
            if index in self._inserting or index in self._removing:
                self._selected = index
                return

    def _tell(self, value: int) -> None:
        source, status = self._reports[self._selected]
        if self._command == _OST_EVENT:
            self._reports[self._selected] = (value, status)
        elif self._command == _OST_STATUS:
            self._reports[self._selected] = (source, value)
            self._board.machine.events.emit("ACPI_DEVICE_OST", {"info": self._report(self._selected)})
