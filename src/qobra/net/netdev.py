"""A network backend: takes a card's packets out, and hands what comes in to the card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from qobra.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qobra.machine.machine import Machine
    from qobra.net.filter import NetFilter

Direction = Literal["rx", "tx"]
"""Which way a packet goes: ``tx`` from the backend to its peer, ``rx`` from the peer to the backend."""

registry: Registry[type[Netdev]] = Registry("network backend", ["qobra.net.backend"])

MAX_PACKET = 68 << 10
"""The longest packet that anything passes on, in bytes."""


def help_text() -> str:
    """The kinds of backends, for people."""
    return "Available netdev backend types:\n" + "".join(f"{each}\n" for each in registry.names())


_LISTS = ("dnssearch", "guestfwd", "hostfwd")


def with_lists(options: Mapping[str, Any], given: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """``options`` of ``key=value,...`` with what is a list in the contract as one: of all its values in ``given``."""
    pairs = list(given)
    lists = {name: [{"str": text} for key, text in pairs if key == name] for name in _LISTS if name in options}
    return {**options, **lists}


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
        self.filters: tuple[NetFilter, ...] = ()

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

    def take(self, packet: bytes) -> None:
        """A packet of the peer's: out, unless a filter keeps it. From any thread."""
        if self.filters:
            self.pass_on(packet, "rx")
        else:
            self.send(packet)

    def catch_up(self) -> None:
        """Deliver what has arrived by now, for a guest that gives buffers. In the control strand."""

    def deliver(self, packet: bytes) -> None:
        """Hand a packet from outside to the peer, unless a filter keeps it."""
        peer = self.peer
        if peer is not None and self.link_up and 0 < len(packet) <= MAX_PACKET:
            if self.filters:
                self.pass_on(packet, "tx")
            else:
                peer.receive_packet(packet)

    def pass_on(self, packet: bytes, direction: Direction, after: NetFilter | None = None) -> None:
        """Have a packet pass the filters, those behind ``after`` only, and leave if none keeps it."""
        peer = self.peer
        if peer is None or not self.link_up or not 0 < len(packet) <= MAX_PACKET:
            return
        chain = self.filters if direction == "tx" else self.filters[::-1]
        first = chain.index(after) + 1 if after in chain else 0
        for each in chain[first:]:
            if each.on and each.queue in ("all", direction) and each.takes(packet, direction):
                return
        if direction == "tx":
            peer.receive_packet(packet)
        else:
            self.send(packet)

    def describe(self) -> str:
        """One line for people."""
        return self.kind
