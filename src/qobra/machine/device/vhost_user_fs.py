"""vhost-user-fs: a directory of the host, which another process serves (virtio 1.2, section 5.11; virtiofsd)."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.boot_index import BootIndex
from qobra.machine.devices import registry
from qobra.machine.virtio.pci import VirtioPci
from qobra.machine.virtio.queue import QUEUE_MAX
from qobra.machine.virtio.vhost_user import VhostUserDevice
from qobra.object.property import Int, String

_TAG_SIZE = 36
_QUEUES_MAX = 1024


@registry.register("vhost-user-fs-device")
class VhostUserFs(VhostUserDevice):
    """The file system: one queue for requests that come before others, and those for all others."""

    type_name = "vhost-user-fs-device"
    category = "Storage"
    device_number = 26
    config_size = _TAG_SIZE + 4

    tag = String(type="str")
    num_request_queues = Int(1, type="uint16")
    queue_size = Int(128, type="uint16")
    bootindex = BootIndex()

    def realize(self) -> None:
        self._check()
        with self.opened() as front_end:
            self.serve(front_end, 1 + self.num_request_queues, self.queue_size)

    def _check(self) -> None:
        if not self.chardev:
            raise QobraError("missing chardev")
        if self.tag is None:
            raise QobraError("missing tag property")
        if not self.tag:
            raise QobraError("tag property cannot be empty")
        if len(self.tag.encode()) > _TAG_SIZE:
            raise QobraError(f"tag property must be {_TAG_SIZE} bytes or less")
        if not self.num_request_queues:
            raise QobraError("num-request-queues property must be larger than 0")
        if self.num_request_queues >= _QUEUES_MAX:
            raise QobraError(f"num-request-queues property must be {_QUEUES_MAX - 1} or smaller")
        size = self.queue_size
        if size & (size - 1) or not size:
            raise QobraError("queue-size property must be a power of 2")
        if size > QUEUE_MAX:
            raise QobraError(f"queue-size property must be {QUEUE_MAX} or smaller")

    def read_config(self) -> bytes:
        tag: str = self.tag
        queues: int = self.num_request_queues
        return tag.encode().ljust(_TAG_SIZE, b"\0") + queues.to_bytes(4, "little")


@registry.register("vhost-user-fs-pci")
class VhostUserFsPci(VirtioPci):
    """The file system as a PCI function, which never had the interface of before 1.0."""

    type_name = "vhost-user-fs-pci"
    ancestors = {"vhost-user-fs-pci-base": ()}
    fixed_legacy = "on"
    disable_legacy: Any = None
    disable_modern: Any = None
    backend_type = "vhost-user-fs-device"
    device_id = 0x105A
    class_id = 0x0180
    ioeventfd: Any = None
