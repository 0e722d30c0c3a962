"""``floppy``: a drive for diskettes, with whatever diskette the user puts in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.errors import QobraError
from qobra.machine.block_requests import BlockRequests
from qobra.machine.blockdev import BlockFrontEnd
from qobra.machine.devices import registry
from qobra.machine.fdc.formats import DRIVE_TYPES, NO_DRIVE, Format, find, unknown
from qobra.machine.qdev import Bus, Device
from qobra.machine.vmstate import VmState, flag, u8
from qobra.object.property import Enum, Int

if TYPE_CHECKING:
    from qobra.machine.fdc.controller import Controller

_ANY = 0xFFFFFFFF


class FloppyBus(Bus):
    """The cable, with places for two drives. ``controller`` is at its other end."""

    type_name = "floppy-bus"
    architectures = frozenset(("x86_64",))
    controller: Controller
    fallback = "288"

    def drive(self, number: int) -> Floppy | None:
        """The drive at a place."""
        for device in self.devices:
            if isinstance(device, Floppy) and device.realized and device.unit == number:
                return device
        return None

    def check(self, device: Device) -> None:
        assert isinstance(device, Floppy)
        if device.unit == _ANY:
            device.values["unit"] = next((n for n in (0, 1) if self.drive(n) is None), 2)
        if device.unit >= 2:
            raise QobraError(f"Can't create floppy unit {device.unit}, bus supports only 2 units")
        if self.drive(device.unit) is not None:
            raise QobraError(f"Floppy unit {device.unit} is in use")


@registry.register("floppy")
class Floppy(BlockFrontEnd):
    """A drive. ``track``, ``head`` and ``sector`` are where it stands, ``changed`` what its disk change line says.

    ``format`` is the one of the last diskette that there was.
    """

    type_name = "floppy"
    architectures = frozenset(("x86_64",))
    bus_type = "floppy-bus"
    description = "virtual floppy drive"
    is_removable = True
    has_io_status = False
    shown_first = ("unit",)

    unit = Int(_ANY, type="uint32")
    drive_type = Enum("FdcDriveType", DRIVE_TYPES, "auto")
    # What the controller has, or nothing.
    serial = None
    bootindex = None
    rerror: Any = "auto"
    werror: Any = "auto"

    format: Format = NO_DRIVE
    track = head = 0
    sector = 1
    changed = True
    _was_protected = True

    vmstate = VmState(u8("track", "head", "sector"), flag("changed"))

    def realize(self) -> None:
        self.check_sizes()
        if self.logical_block_size not in (0, 512) or self.physical_block_size not in (0, 512):
            raise QobraError("Physical and logical block size must be 512 for floppy")
        # An empty drive leaves it open whether the first diskette may be written.
        backend = self.realize_block(writable=self.backend is not None and self._writable(), resizable=False)
        policy = backend.policy
        assert policy is not None
        if policy.on_write_error not in ("enospc", "report"):
            raise QobraError("fdc doesn't support drive option werror")
        if policy.on_read_error != "report":
            raise QobraError("fdc doesn't support drive option rerror")
        self.requests = BlockRequests(self)
        self._look()

    def unrealize(self) -> None:
        self.requests.close()

    def _writable(self) -> bool:
        return self.backend is not None and self.backend.node is not None and not self.backend.node.read_only

    @property
    def loaded(self) -> bool:
        """Whether there is a diskette."""
        return self.backend is not None and self.backend.node is not None

    @property
    def write_protected(self) -> bool:
        """Whether the diskette cannot be written; of an empty drive, whether the last one could not."""
        return not self._writable() if self.loaded else self._was_protected

    def _look(self) -> None:
        # The drive takes the type of its first diskette, if it has none of its own.
        bus: Any = self.bus
        if self.backend is not None and self.backend.node is not None:
            self._was_protected = not self._writable()
            self.format = find(self.backend.length, self.drive_type)
            if self.drive_type == "auto":
                self.values["drive-type"] = self.format.drive
        else:
            self.format = unknown(self.format)
            if self.drive_type == "auto":
                self.values["drive-type"] = bus.fallback
        self.changed = True

    def medium_changed(self) -> None:
        backend = self.backend
        if backend is None or not self.realized:
            return
        interrupted = self.requests.pending
        self.requests.cancel()
        if backend.node is None:
            backend.set_permissions(0, permissions.ALL)
        else:
            perm = permissions.CONSISTENT_READ | (permissions.WRITE if self._writable() else 0)
            backend.set_permissions(perm, permissions.CONSISTENT_READ | permissions.WRITE_UNCHANGED)
        self._look()
        if interrupted:
            bus: Any = self.bus
            bus.controller.medium_changed(self)

    def seek(self, track: int, head: int, sector: int) -> bool:
        """Move to ``track``; True if that is another than before, which tells a new diskette from none."""
        moved = track != self.track
        if moved:
            self.track = track
            if self.loaded:
                self.changed = False
        self.head, self.sector = head, sector
        return moved

    def sector_offset(self, track: int, head: int, sector: int) -> int:
        """Where a sector, counted from 1, lies on the medium, in bytes."""
        return ((track * self.format.sides + head) * self.format.sectors + sector - 1) * 512

    @property
    def working(self) -> bool:
        return self.requests.working
