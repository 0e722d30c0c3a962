"""``usb-storage``: a disk behind USB's bulk-only transport (USB Mass Storage Class, Bulk-Only Transport 1.0)."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.block_requests import BlockRequests
from qobra.machine.blockdev import BlockFrontEnd
from qobra.machine.devices import registry
from qobra.machine.scsi import failure, transfer
from qobra.machine.scsi.bus import Result, ScsiBus
from qobra.machine.scsi.sense import CHECK_CONDITION
from qobra.machine.usb.bulk_only import BulkOnly
from qobra.machine.vmstate import VmState
from qobra.object.property import Bool

_PROPERTIES = (
    ("logical_block_size", "physical_block_size", "min_io_size", "opt_io_size", "discard_granularity", "share-rw")
    + ("write-cache", "rerror", "werror", "account-invalid", "account-failed", "backend_defaults", "removable")
    + ("serial",)
)


class UsbScsiBus(ScsiBus):
    """The bus inside: one target with one unit."""

    type_name = "SCSI"
    autosense = False
    queues = False
    max_target = 0
    max_lun = 0
    hotplug = False


@registry.register("usb-storage")
class UsbStorage(BulkOnly, BlockFrontEnd):
    """A disk with a plug. What stores is a SCSI disk or CD drive inside, which takes the drive over."""

    type_name = "usb-storage"
    description = "USB mass storage"

    removable = Bool(False)

    vmstate = VmState()

    @property
    def working(self) -> bool:
        return self._requests.working

    def realize(self) -> None:
        backend = self.backend
        if backend is None:
            raise QobraError("drive property not set")
        is_cd = any(drive.backend is backend and drive.media == "cdrom" for drive in self.board.drives)
        if backend.node is None and not is_cd:
            raise QobraError("Device needs media, but drive is empty")
        backend.detach_device()
        self.backend = None
        bus = self.scsi_bus = UsbScsiBus(self.tree)
        self.add_bus(bus)
        cls: Any = self.tree.find_type("scsi-cd" if is_cd else "scsi-hd")
        disk = self.disk = cls(self.tree)
        disk.backend = backend
        backend.attach_device(disk)
        for name in _PROPERTIES:
            if name in self.values and name in disk.class_properties():
                disk.values[name] = self.values[name]
        bus.insert(disk)
        bus.add_child("legacy[*]", disk)
        disk.set_realized(True)
        self._requests = BlockRequests(disk)
        self.device_reset()

    def unrealize(self) -> None:
        self._requests.close()

    def unit_plugged(self, _device: Any) -> None:
        """The unit inside has come: nobody is to be told."""

    def unit_unplugged(self, _device: Any) -> None:
        """The unit inside has gone."""

    def has_unit(self, lun: int) -> bool:
        return not lun

    def expected_of(self, lun: int, cdb: bytes) -> tuple[str, int]:
        return transfer.expected(cdb, self.disk.logical_size)

    def cancel_commands(self) -> None:
        self._requests.cancel()

    def carry_out(self, lun: int, cdb: bytes, data: bytes, room: int) -> None:
        def operation(_backend: Any) -> Result:
            result: Result = self.disk.execute(cdb, data, room)
            return result

        def executed(result: Result | None, error: Exception | None) -> None:
            if error is not None:
                self.disk.last_sense = failure.sense_of(error)
                result = Result(CHECK_CONDITION)
            self.finish(result or failure.ignored(cdb, self.disk.logical_size, room))

        self._requests.submit(operation, executed, is_read=bool(room))
