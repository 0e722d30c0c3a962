"""A network backend: takes a card's packets out, and hands what comes in to the card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from qobra.registry import Registry

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

registry: Registry[type[Netdev]] = Registry("network backend", ["qobra.net.backend"])

MAX_PACKET = 68 << 10
"""The longest packet that anything passes on, in bytes."""


class Peer(Protocol):
    """A network card, as its backend sees it."""

    def receive_packet(self, packet: bytes) -> None:
        """A packet came in. Called in the backend's thread."""
        ...

    def link_changed(self) -> None:
        """The backend's link went up or down, or the backend is gone. Called in the control strand."""
        ...


class Netdev:
    """The common half of the backends. ``options`` are the members of the contract's Netdev of this kind."""

    kind: ClassVar[str]
    hub: int | None = None
    """The hub that the backend is a port of."""
    front_end: Any = None
    """The way to a process that serves the card's queues itself (vhost-user)."""

    def __init__(self, machine: Machine, id: str, options: dict[str, Any]) -> None:
        self.machine = machine
        self.id = id
        self.options = options
        self.peer: Peer | None = None
        self.link_up = True

    @property
    def leads_out(self) -> bool:
        """Whether a backend that is no port of a hub is behind this one."""
        return self.hub is None

    def start(self) -> None:
        """Open the outside. Raises QobraError."""

    def close(self) -> None:
        """Close the outside."""

    def send(self, packet: bytes) -> None:
        """Take a packet of the card's out; it is lost where nobody takes it. From any thread."""
        raise NotImplementedError

    def deliver(self, packet: bytes) -> None:
        """Hand a packet from outside to the card."""
        peer = self.peer
        if peer is not None and self.link_up and 0 < len(packet) <= MAX_PACKET:
            peer.receive_packet(packet)

    def describe(self) -> str:
        """One line for people."""
        return self.kind
