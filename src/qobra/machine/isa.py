"""The ISA bus of PCs: devices at fixed ports, with one of 16 interrupt lines each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.irq import Line
from qobra.machine.memory import Mapping, ReadRegister, Registers, WriteRegister
from qobra.machine.qdev import Bus, Device

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree


class IsaBus(Bus):
    """The bus. ``lines`` are the interrupt inputs of the board, which it sets."""

    type_name = "ISA"
    architectures = frozenset(("x86_64",))
    lines: list[Line]


class IsaDevice(Device):
    """A device on the ISA bus."""

    type_name = "isa-device"
    abstract = True
    bus_type = "ISA"
    architectures = frozenset(("x86_64",))

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._mappings: list[Mapping] = []

    def line(self, number: int) -> Line:
        """Interrupt line ``number`` of the bus. Raises QobraError where there is none."""
        bus: Any = self.bus
        if not 0 <= number < len(bus.lines):
            raise QobraError(f'Maximum value for "irq" is: {len(bus.lines) - 1}')
        line: Line = bus.lines[number]
        return line

    def map_ports(
        self,
        base: int,
        size: int,
        read: ReadRegister,
        write: WriteRegister,
        *,
        width: int = 1,
        name: str | None = None,
        priority: int = 0,
    ) -> Mapping:
        """Registers at ports ``base`` on; each access reaches them ``width`` bytes wide at most."""
        region = Registers(name or self.type_name, size, read, write, valid=(1, 4), impl=(1, width))
        mapping = self.board.ports.map(base, region, priority=priority)
        self._mappings.append(mapping)
        return mapping

    def unrealize(self) -> None:
        for mapping in self._mappings:
            mapping.remove()
        self._mappings.clear()
