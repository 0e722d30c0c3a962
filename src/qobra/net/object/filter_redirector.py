"""``filter-redirector``: packets go to a character device instead, and come back from one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.chardev.chardev import UNLIMITED
from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.net.filter import NetFilter
from qobra.net.framing import Deframer, Outlet
from qobra.object.property import Bool, String
from qobra.object.types import registry

if TYPE_CHECKING:
    from qobra.chardev.chardev import Chardev
    from qobra.net.netdev import Direction, Netdev


class _End:
    """One end of the detour: the front end of ``chardev``, which takes in packets only for a filter to go on with."""

    hotswap = False

    def __init__(self, filter: FilterRedirector, chardev: Chardev, *, takes_in: bool) -> None:
        self._filter = filter
        self._takes_in = takes_in
        self._deframer = Deframer(with_header=filter.vnet_hdr_support)
        self.chardev = chardev
        chardev.attach(self)

    def receive(self, data: bytes) -> None:
        for packet in self._deframer.feed(data):
            self._filter.returned(packet)

    def event(self, name: str) -> None:
        if name == "closed":
            self._deframer = Deframer(with_header=self._filter.vnet_hdr_support)

    def can_receive(self) -> int:
        return UNLIMITED if self._takes_in and self._filter.on else 0


@registry.register("filter-redirector")
class FilterRedirector(NetFilter):
    """Takes packets to ``outdev``, and has those that come from ``indev`` go on from here."""

    type_name = "filter-redirector"
    user_creatable = True

    indev = String("")
    outdev = String("")
    vnet_hdr_support = Bool(name="vnet_hdr_support")

    _in: _End | None = None
    _out: _End | None = None
    _outlet: Outlet | None = None

    def setup(self) -> None:
        if not self.indev and not self.outdev:
            raise QobraError("filter redirector needs 'indev' or 'outdev' at least one property set")
        if self.indev == self.outdev:
            raise QobraError("'indev' and 'outdev' could not be same for filter redirector")
        if self.indev:
            self._in = _End(self, self._find("IN", self.indev), takes_in=True)
        if self.outdev:
            try:
                self._out = _End(self, self._find("OUT", self.outdev), takes_in=False)
            except QobraError:
                self._detach()
                raise
            self._outlet = Outlet(self._out.chardev, f"filter {self.name}", with_header=self.vnet_hdr_support)

    def _find(self, end: str, name: str) -> Chardev:
        chardev: Chardev | None = self.machine.chardevs.find(name)
        if chardev is None:
            raise QobraError(f"{end} Device '{name}' not found", DEVICE_NOT_FOUND)
        return chardev

    def _detach(self) -> None:
        for end in (self._in, self._out):
            if end is not None:
                end.chardev.detach()
        self._in = self._out = None

    def let_go(self, backend: Netdev) -> None:
        if self._outlet is not None:
            self._outlet.close()
        self._detach()

    def status_changed(self) -> None:
        if self._in is not None:
            self._in.chardev.accept_input()

    def takes(self, packet: bytes, direction: Direction) -> bool:
        if self._outlet is None:
            return False
        self._outlet.send(packet)
        return True

    def returned(self, packet: bytes) -> None:
        """A packet came back: it goes on in each direction that the filter is for."""
        if self.queue in ("all", "tx"):
            self.inject(packet, "tx")
        if self.queue in ("all", "rx"):
            self.inject(packet, "rx")
