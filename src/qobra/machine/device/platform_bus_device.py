"""``platform-bus-device``: where a board has the devices that users add to the board itself.

They share a window of memory and a number of interrupt lines. Each has the next place in the window, aligned to its
size, and the next line; the device tree tells the guest which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.qdev import SysBusDevice
from qobra.machine.vmstate import VmState
from qobra.object.property import Int

if TYPE_CHECKING:
    from qobra.machine.irq import Line
    from qobra.machine.memory import Mapping, Region


class PlatformDevice(Protocol):
    """How the device tree has a device: the name of its node, and what it is compatible with, the nearest first."""

    node_name: str
    compatible: tuple[str, ...]


class Place:
    """What a device has of the bus: ``offset`` and ``size``, in bytes, in the window, and the number of its line."""

    def __init__(self, device: PlatformDevice, mapping: Mapping, offset: int, number: int) -> None:
        self.device = device
        self.mapping = mapping
        self.offset = offset
        self.size = mapping.size
        self.number = number


@registry.register("platform-bus-device")
class PlatformBus(SysBusDevice):
    """The window, and where its lines lead. The board sets ``base`` and ``lines``."""

    type_name = "platform-bus-device"
    architectures = frozenset(("riscv64",))

    num_irqs = Int(0, type="uint32", name="num_irqs")
    mmio_size = Int(0, type="uint32", name="mmio_size")
    base = 0
    lines: list[Line]

    vmstate = VmState()

    def realize(self) -> None:
        self.places: list[Place] = []

    def attach(self, device: PlatformDevice, registers: Region, line: Line) -> Place:
        """Show the ``registers`` of ``device``, and have its ``line`` lead on. Raises QobraError where nothing fits."""
        last = self.places[-1] if self.places else None
        alignment = 1 << (registers.size - 1).bit_length()
        offset = -(-(last.offset + last.size) // alignment) * alignment if last is not None else 0
        number = last.number + 1 if last is not None else 0
        if offset + registers.size > self.mmio_size:
            raise QobraError(f"Platform Bus: Can not fit MMIO region of size {registers.size:x}")
        if number >= self.num_irqs:
            raise QobraError("Platform Bus: Can not fit IRQ line")
        line.connect(self.lines[number])
        place = Place(device, self.board.memory.map(self.base + offset, registers), offset, number)
        self.places.append(place)
        return place

    def detach(self, place: Place) -> None:
        """Take a device out."""
        place.mapping.remove()
        self.places.remove(place)
