"""``hubport``: a port of a hub, which passes each packet on to all its other ports."""

from __future__ import annotations

from qobra.errors import QobraError
from qobra.net.netdev import Netdev, registry


class _Lower:
    """The backend that is plugged into a port, as its peer."""

    def __init__(self, backend: Netdev) -> None:
        self.backend = backend

    def receive_packet(self, packet: bytes) -> None:
        """A packet of the hub leaves by that backend."""
        self.backend.take(packet)

    def link_changed(self) -> None:
        """There is nobody to tell."""


@registry.register("hubport")
class Hubport(Netdev):
    """One port. With ``netdev`` another backend is plugged into it, otherwise a card may be."""

    kind = "hubport"
    lower: Netdev | None = None
    """What is plugged in, if that is no card."""

    def start(self) -> None:
        self.hub = self.options["hubid"]
        ports = self.machine.netdevs.hubs.setdefault(self.options["hubid"], [])
        name = self.options.get("netdev")
        if name is not None:
            lower = self.machine.netdevs.find(name)
            if lower is None:
                raise QobraError(f"netdev '{name}' not found")
            if lower.peer is not None:
                raise QobraError(f"netdev '{name}' is in use")
            lower.peer = self
            self.lower = lower
            self.peer = _Lower(lower)
        ports.append(self)

    def close(self) -> None:
        ports = self.machine.netdevs.hubs.get(self.options["hubid"], [])
        if self in ports:
            ports.remove(self)
        if self.lower is not None:
            self.lower.peer = None

    @property
    def leads_out(self) -> bool:
        return self.lower is not None

    def send(self, packet: bytes) -> None:
        for port in tuple(self.machine.netdevs.hubs[self.options["hubid"]]):
            if isinstance(port, Hubport) and port is not self:
                port.deliver(packet)

    # -- as the peer of the backend that is plugged in

    def receive_packet(self, packet: bytes) -> None:
        """A packet of that backend: to all other ports."""
        self.take(packet)

    def link_changed(self) -> None:
        """That backend is gone, or its link changed: nothing to tell the others."""
