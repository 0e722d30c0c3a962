"""``filter-mirror``: a copy of each packet goes to a character device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.net.filter import NetFilter
from qobra.net.framing import Outlet
from qobra.object.property import Bool, String
from qobra.object.types import registry

if TYPE_CHECKING:
    from qobra.chardev.chardev import Chardev
    from qobra.net.netdev import Direction, Netdev


@registry.register("filter-mirror")
class FilterMirror(NetFilter):
    """Packets go on their way, and to ``outdev``, each after its length."""

    type_name = "filter-mirror"
    user_creatable = True
    required = ("netdev", "outdev")
    hotswap = False

    outdev = String("")
    vnet_hdr_support = Bool(name="vnet_hdr_support")

    def setup(self) -> None:
        chardev = self.machine.chardevs.find(self.outdev)
        if chardev is None:
            raise QobraError(f"Device '{self.outdev}' not found", DEVICE_NOT_FOUND)
        chardev.attach(self)
        self._chardev: Chardev = chardev
        self._outlet = Outlet(chardev, f"filter {self.name}", with_header=self.vnet_hdr_support)

    def let_go(self, backend: Netdev) -> None:
        self._outlet.close()
        self._chardev.detach()

    def takes(self, packet: bytes, direction: Direction) -> bool:
        self._outlet.send(packet)
        return False

    # -- as the device's front end: nothing is expected from there

    def receive(self, data: bytes) -> None:
        """Nothing comes: see :meth:`can_receive`."""

    def event(self, name: str) -> None:
        """Whether a peer is there makes no difference."""

    def can_receive(self) -> int:
        """Nothing is taken."""
        return 0
