"""vhost-user-blk: a disk that another process serves (virtio 1.2, section 5.2, over the vhost-user protocol)."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.boot_index import BootIndex
from qobra.machine.devices import registry
from qobra.machine.virtio.pci import VirtioPci, register_variants
from qobra.machine.virtio.queue import QUEUE_MAX
from qobra.machine.virtio.vhost_user import VhostUserDevice
from qobra.object.property import Bool, Int

F_SIZE_MAX, F_SEG_MAX, F_GEOMETRY, F_RO, F_BLK_SIZE, F_FLUSH, F_TOPOLOGY = 1, 2, 4, 5, 6, 9, 10
F_CONFIG_WCE, F_MQ, F_DISCARD, F_WRITE_ZEROES = 11, 12, 13, 14
_ALWAYS = (F_SIZE_MAX, F_SEG_MAX, F_GEOMETRY, F_RO, F_BLK_SIZE, F_FLUSH, F_TOPOLOGY)
_AUTO_QUEUES = 0xFFFF
_CONFIG_SIZE = 60
_WCE_OFFSET = 32


@registry.register("vhost-user-blk")
class VhostUserBlk(VhostUserDevice):
    """The disk. The other process has the data, the configuration and the say on features."""

    type_name = "vhost-user-blk"
    category = "Storage"
    device_number = 2
    config_size = _CONFIG_SIZE

    num_queues = Int(_AUTO_QUEUES, type="uint16")
    queue_size = Int(128, type="uint32")
    config_wce = Bool(True)
    discard = Bool(True)
    write_zeroes = Bool(True)
    bootindex = BootIndex()

    def realize(self) -> None:
        if not self.chardev:
            raise QobraError("chardev is mandatory")
        if self.num_queues == _AUTO_QUEUES:
            self.values["num-queues"] = max(1, self.board.first_cpus)
        if not 0 < self.num_queues <= 1024:
            raise QobraError("invalid number of IO queues")
        size = self.queue_size
        if not size:
            raise QobraError("queue size must be non-zero")
        if size > QUEUE_MAX:
            raise QobraError(f"queue size must not exceed {QUEUE_MAX}")
        with self.opened() as front_end:
            if not front_end.has_config:
                raise QobraError("vhost-user-blk: the back end has no configuration space")
            if self.num_queues > front_end.queues:
                raise QobraError(f"The maximum number of queues supported by the backend is {front_end.queues}")
            self._config = bytearray(front_end.config(_CONFIG_SIZE))
        self.serve(front_end, self.num_queues, size)

    # -- features and configuration

    def device_features(self) -> int:
        bits = list(_ALWAYS)
        for enabled, bit in (
            (self.config_wce, F_CONFIG_WCE),
            (self.discard, F_DISCARD),
            (self.write_zeroes, F_WRITE_ZEROES),
            (self.num_queues > 1, F_MQ),
        ):
            if enabled:
                bits.append(bit)
        return sum(1 << bit for bit in bits)

    def read_config(self) -> bytes:
        config = bytearray(self._config)
        config[34:36] = self.num_queues.to_bytes(2, "little")
        return bytes(config)

    def write_config(self, offset: int, data: bytes) -> None:
        # The driver may only choose whether writes are cached.
        if (offset, len(data)) != (_WCE_OFFSET, 1) or data[0] == self._config[_WCE_OFFSET]:
            return
        try:
            self._front_end.set_config(_WCE_OFFSET, data)
        except QobraError:
            return
        self._config[_WCE_OFFSET] = data[0]


class VhostUserBlkPciBase(VirtioPci):
    """vhost-user-blk as a PCI function."""

    type_name = "vhost-user-blk-pci-base"
    abstract = True
    backend_type = "vhost-user-blk"
    device_id = 0x1001
    class_id = 0x0100
    ioeventfd: Any = None


@registry.register("vhost-user-blk-pci")
class VhostUserBlkPci(VhostUserBlkPciBase):
    """A disk that old and new drivers can use."""

    type_name = "vhost-user-blk-pci"


register_variants(VhostUserBlkPciBase, "vhost-user-blk-pci")
