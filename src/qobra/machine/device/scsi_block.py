"""``scsi-block``: a disk of the host, which carries out its commands itself; failures are met as a disk's are."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.scsi.disk import ScsiDisk
from qobra.machine.scsi.passthrough import PassedThrough
from qobra.machine.vmstate import VmState
from qobra.object.property import Int


@registry.register("scsi-block")
class ScsiBlock(PassedThrough, ScsiDisk):
    """A unit that answers nothing itself: what it is, and how large its blocks are, the host's disk says."""

    type_name = "scsi-block"
    description = "SCSI block device passthrough"
    lengths_known = False

    io_timeout = Int(30, type="uint32", name="io_timeout")
    # What the disk says of itself cannot be set.
    backend_defaults: Any = "auto"
    logical_block_size: Any = 0
    physical_block_size: Any = 0
    min_io_size: Any = 0
    opt_io_size: Any = 0
    discard_granularity: Any = 0xFFFFFFFF
    write_cache: Any = "auto"
    account_invalid: Any = "auto"
    account_failed: Any = "auto"
    serial: Any = None
    ver: Any = None
    vendor: Any = None
    product: Any = None
    device_id: Any = None
    wwn: Any = 0
    port_wwn: Any = 0
    port_index: Any = 0
    max_unmap_size: Any = 0
    max_io_size: Any = 0
    scsi_version: Any = -1
    rotation_rate: Any = 0

    vmstate = VmState()

    def realize(self) -> None:
        if self.backend is None:
            raise QobraError("drive property not set")
        super().realize()
