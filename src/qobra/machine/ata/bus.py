"""The ATA cable: up to two devices on a channel, and what a channel does for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from qobra.errors import QobraError
from qobra.machine.qdev import Bus, Device

if TYPE_CHECKING:
    from qobra.machine.ata.device import AtaDevice
    from qobra.object.tree import ObjectTree

_ANY = 0xFFFFFFFF


class AtaPort(Protocol):
    """The host's end of a cable. ``count_bits`` is how long the count of a command is that has addresses of 28 bits."""

    count_bits: int

    def interrupt(self, device: AtaDevice) -> None:
        """The device asks for attention."""
        ...

    def data_ready(self, device: AtaDevice) -> None:
        """The device waits for the host to move a block of data (PIO)."""
        ...

    def dma_ready(self, device: AtaDevice) -> None:
        """The device waits for the host's engine: call its ``run_dma`` when there is a list of memory."""
        ...

    def dma_done(self, device: AtaDevice) -> None:
        """The device is done with the engine."""
        ...

    def command_done(self, device: AtaDevice) -> None:
        """The device has ended a command; its registers say how."""
        ...


class IdeBus(Bus):
    """One channel. ``port`` is its host's end; ``first_serial`` numbers the drives that have no serial of their own."""

    type_name = "IDE"
    port: AtaPort
    first_serial = 1
    ncq = False

    def __init__(self, tree: ObjectTree, *, units: int = 2) -> None:
        super().__init__(tree)
        self.units = units

    def unit(self, number: int) -> AtaDevice | None:
        """The working device at a place: 0 is the master."""
        for device in self.devices:
            drive = cast("AtaDevice", device)
            if drive.realized and drive.unit == number:
                return drive
        return None

    def check(self, device: Device) -> None:
        drive: Any = device
        if drive.unit == _ANY:
            drive.values["unit"] = 0 if self.unit(0) is None else 1
        if drive.unit >= self.units:
            raise QobraError(f"Can't create IDE unit {drive.unit}, bus supports only {self.units} units")
        if self.unit(drive.unit) is not None:
            raise QobraError(f"IDE unit {drive.unit} is in use")


def count_channels(board: Any) -> int:
    """How many channels the board has so far; drives are numbered through all of them."""
    from qobra.machine.plug import all_buses

    return sum(isinstance(bus, IdeBus) for bus in all_buses(board.system_bus))
