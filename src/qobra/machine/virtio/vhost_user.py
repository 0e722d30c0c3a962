"""What virtio devices have in common whose queues a process on a Unix socket serves (the vhost-user protocol)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from qobra.chardev.vhost_user import VhostUserFrontEnd
from qobra.machine.serial16550 import find_chardev
from qobra.machine.virtio.device import VirtioDevice
from qobra.machine.virtio.vhost import Vhost
from qobra.object.property import String

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.machine.virtio.queue import Queue

_VHOST_F_LOG_ALL = 30
"""What a process means by this bit is no feature of a device: NEEDS_RESET is, for a driver."""


class VhostUserDevice(VirtioDevice):
    """A device that another process serves, which ``chardev`` leads to; all that is here is the way there."""

    chardev = String(type="str", description="ID of a chardev to use as a backend")

    @contextmanager
    def opened(self) -> Iterator[VhostUserFrontEnd]:
        """Talk to the process; what is raised inside ends that. Raises QobraError where it does not answer."""
        chardev = find_chardev(self.board, self.chardev, self.type_name)
        assert chardev is not None
        front_end = VhostUserFrontEnd(chardev)
        front_end.open()
        try:
            yield front_end
        except BaseException:
            front_end.close()
            raise

    def serve(self, front_end: VhostUserFrontEnd, count: int, size: int) -> None:
        """Have ``count`` queues of at most ``size`` descriptors, which the process serves."""
        self._front_end = front_end
        for _ in range(count):
            self.add_queue(size)
        self._vhost = Vhost(self, front_end, count)

    def unrealize(self) -> None:
        self._vhost.close()
        self._front_end.close()
        self.queues.clear()

    def offered_features(self, *, modern: bool) -> int:
        offered = super().offered_features(modern=modern) & self._front_end.features
        return offered & ~(1 << _VHOST_F_LOG_ALL)

    def kicked(self, queue: Queue) -> None:
        self._vhost.update()
        self._vhost.kick(queue.number)

    def running_changed(self) -> None:
        self._vhost.update()

    def device_reset(self) -> None:
        self._vhost.forget()
