"""``usb-bot``: a SCSI host adapter behind USB's bulk-only transport, into which users plug the units."""

from __future__ import annotations

from qobra.machine.devices import registry
from qobra.machine.scsi import transfer
from qobra.machine.usb.bulk_only import BulkOnly
from qobra.machine.usb.scsi_host import UsbScsiHost
from qobra.machine.vmstate import VmState


@registry.register("usb-bot")
class UsbBot(UsbScsiHost, BulkOnly):
    """The adapter: units 0 to 15, which have one command at a time between them."""

    type_name = "usb-bot"
    max_lun = 15

    vmstate = VmState()

    def realize(self) -> None:
        super().realize()
        self.scsi_bus.autosense = self.scsi_bus.queues = False
        self.device_reset()

    def last_unit(self) -> int:
        return max((lun for lun in range(self.max_lun + 1) if self.has_unit(lun)), default=0)

    def has_unit(self, lun: int) -> bool:
        return self.unit(lun) is not None

    def expected_of(self, lun: int, cdb: bytes) -> tuple[str, int]:
        return self.expected(self.unit(lun), cdb)

    def cancel_commands(self) -> None:
        self.cancel_all()

    def carry_out(self, lun: int, cdb: bytes, data: bytes, room: int) -> None:
        is_read = self.expected(self.unit(lun), cdb)[0] == transfer.TO_HOST
        self.execute(lun, cdb, data, room, self.finish, is_read=is_read)
