"""``vhost-user``: another process serves the card's queues itself (the vhost-user protocol specification)."""

from __future__ import annotations

from qobra.chardev.vhost_user import VhostUserFrontEnd
from qobra.errors import QobraError
from qobra.net.netdev import Netdev, registry


@registry.register("vhost-user")
class VhostUserNetdev(Netdev):
    """The way to the process. Packets do not pass here: the card hands its queues over."""

    kind = "vhost-user"
    front_end: VhostUserFrontEnd | None = None

    def start(self) -> None:
        name = self.options["chardev"]
        chardev = self.machine.chardevs.find(name)
        if chardev is None:
            raise QobraError(f'chardev "{name}" not found')
        if not chardev.passes_fds:
            raise QobraError(f'chardev "{name}" is not reconnectable')
        queues = self.options.get("queues", 1)
        if not 1 <= queues <= 1024:
            raise QobraError("vhost-user number of queues must be in range [1, 1024]")
        front_end = VhostUserFrontEnd(chardev)
        front_end.open()
        self.front_end = front_end
        if queues > 1 and 2 * queues > front_end.queues:
            raise QobraError(f"you are asking more queues than supported: {front_end.queues // 2}")

    def close(self) -> None:
        if self.front_end is not None:
            self.front_end.close()
            self.front_end = None

    def send(self, packet: bytes) -> None:
        """The process takes packets from the card's queues only: one that the machine makes up is lost."""

    def describe(self) -> str:
        return f"vhost-user to {self.options['chardev']}"
