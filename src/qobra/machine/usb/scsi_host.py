"""What USB devices with a SCSI bus of their own have in common: units that come and go, and their commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qobra.machine.block_requests import BlockRequests
from qobra.machine.qdev import Device
from qobra.machine.scsi import failure, transfer
from qobra.machine.scsi.bus import Result, ScsiBus, ScsiDevice
from qobra.machine.usb.device import UsbDevice
from qobra.machine.vmstate import Field, Flag, VmState
from qobra.object.property import Bool

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree


class UsbScsiHost(UsbDevice):
    """A device whose units users plug in. One that comes later stays unplugged until they say so (``attached``)."""

    abstract = True
    category = "Storage"

    attached_property = Bool(
        name="attached", get=lambda self: self.attached, set=lambda self, value: self.attach(value), show_default=False
    )

    vmstate = VmState(
        Field("attached", Flag(), get=lambda self: self.attached, put=lambda self, value: self.place_in(value)),
        partial=True,
    )

    max_lun = 0

    def __init__(self, tree: ObjectTree) -> None:
        super().__init__(tree)
        self._requests: dict[ScsiDevice, BlockRequests] = {}

    @property
    def attaches_itself(self) -> bool:
        return not self.hotplugged

    def settable_when_realized(self, name: str) -> bool:
        return name == "attached"

    def attach(self, value: bool) -> None:
        """Plug the device into its port, or pull it out."""
        bus: Any = self.bus
        if value == self.attached or not self.realized:
            return
        if value:
            bus.attach(self)
        else:
            bus.detach(self)
            self.reset()

    def place_in(self, value: bool) -> None:
        """A saved state says whether the device is in its port; the controller's says the rest."""
        assert self.at is not None
        self.at.device = self if value else None

    def realize(self) -> None:
        bus = self.scsi_bus = ScsiBus(self.tree)
        bus.max_target, bus.max_lun = 0, self.max_lun
        self.add_bus(bus)

    def unrealize(self) -> None:
        for requests in self._requests.values():
            requests.close()
        self._requests.clear()

    @property
    def working(self) -> bool:
        return any(requests.working for requests in self._requests.values())

    @property
    def pending(self) -> int:
        """How many commands the units have not ended."""
        return sum(requests.pending for requests in self._requests.values())

    def unit_plugged(self, _device: Device) -> None:
        """A unit has come: hosts find it when they look again."""

    def unit_unplugged(self, device: Device) -> None:
        """A unit has gone, and what it was to do with it."""
        requests = self._requests.pop(device, None) if isinstance(device, ScsiDevice) else None
        if requests is not None:
            requests.close()

    # -- commands

    def unit(self, lun: int) -> ScsiDevice | None:
        """The unit of that number."""
        return self.scsi_bus.find(0, 0, lun)

    def expected(self, unit: ScsiDevice | None, cdb: bytes) -> tuple[str, int]:
        """Which way a command transfers data, and how many bytes at most."""
        return transfer.expected(cdb, (unit or ScsiDevice).logical_size)

    def execute(
        self, lun: int, cdb: bytes, data: bytes, room: int, done: Callable[[Result], None], *, is_read: bool
    ) -> None:
        """Have the unit carry out a command, then call ``done`` in the strand."""
        unit: Any = self.unit(lun)
        if unit is None or unit.backend is None:
            # Nothing stores there: who answers is the target.
            done(self.scsi_bus.execute(0, lun, cdb, data, room) or Result())
            return
        requests = self._requests.get(unit)
        if requests is None:
            requests = self._requests[unit] = BlockRequests(unit)

        def finished(result: Result | None, error: Exception | None) -> None:
            if error is not None:
                unit.last_sense = failure.sense_of(error)
                result = failure.reported(error)
            done(result or failure.ignored(cdb, unit.logical_size, room))

        requests.submit(lambda _backend: unit.execute(cdb, data, room), finished, is_read=is_read)

    def cancel_all(self) -> None:
        """Forget what is under way."""
        for requests in self._requests.values():
            requests.cancel()
