"""The network backends of a machine, by id, and the hubs between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.net.netdev import Netdev, registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.machine.machine import Machine
    from qobra.net.announce import Announcer

_DEFAULT_PREFIX = bytes.fromhex("5254001234")


class Netdevs:
    """The owner of a machine's network backends."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._backends: dict[str, Netdev] = {}
        self.hubs: dict[int, list[Netdev]] = {}
        self.cards: list[Any] = []
        """The machine's network cards (:class:`qobra.machine.nic.Nic`), in the order in which they were made."""
        self.announcer: Announcer | None = None
        self._cards_at = [0] * 256
        """How many cards have each of the default addresses, by the last byte."""

    def __iter__(self) -> Any:
        return iter(tuple(self._backends.values()))

    def create(self, options: dict[str, Any]) -> Netdev:
        """Make the backend that ``options``, a Netdev of the contract, describes. Raises QobraError."""
        rest = dict(options)
        kind, id = rest.pop("type"), rest.pop("id")
        if id in self._backends:
            raise QobraError(f"Duplicate ID '{id}'")
        cls = registry.find(kind)
        if cls is None:
            raise QobraError(f"network backend '{kind}' is not compiled into this binary")
        backend = cls(self._machine, id, rest)
        try:
            backend.start()
        except BaseException:
            backend.close()
            raise
        self._backends[id] = backend
        return backend

    def find(self, id: str) -> Netdev | None:
        """The backend ``id``, or None."""
        return self._backends.get(id)

    def remove(self, id: str) -> None:
        """Remove a backend; a card on it loses its link. Raises QobraError."""
        backend = self._backends.pop(id, None)
        if backend is None:
            raise QobraError(f"Device '{id}' not found", DEVICE_NOT_FOUND)
        for each in backend.filters:
            each.unparent()
        peer, backend.peer = backend.peer, None
        backend.link_up = False
        backend.close()
        if peer is not None:
            peer.link_changed()

    def take_address(self, wanted: bytes | None) -> bytes:
        """The Ethernet address of a new card: what its user wanted, or the first default one that no card has."""
        if wanted is None:
            last = next((n for n in (*range(0x56, 0x100), *range(0x56)) if not self._cards_at[n]), 0xFF)
            wanted = bytes((*_DEFAULT_PREFIX, last))
        self._count_address(wanted, 1)
        return wanted

    def release_address(self, address: bytes) -> None:
        """The card with that address is gone."""
        self._count_address(address, -1)

    def _count_address(self, address: bytes, change: int) -> None:
        if address[:-1] == _DEFAULT_PREFIX:
            self._cards_at[address[-1]] += change

    def warn_of_loose_ends(self, warn: Callable[[str], None], cards: dict[str, Netdev | None]) -> None:
        """Tell of what is plugged into nothing. ``cards`` are the machine's by name, with their backends."""
        plugged = {backend.id for backend in cards.values() if backend is not None}
        for number, ports in reversed(self.hubs.items()):
            for port in reversed(ports):
                if port.id not in plugged and not port.leads_out:
                    warn(f"warning: hub port {port.id} has no peer")
            has_card, leads_out = any(p.id in plugged for p in ports), any(p.leads_out for p in ports)
            if has_card and not leads_out:
                warn(f"warning: hub {number} is not connected to host network")
            elif leads_out and not has_card:
                warn(f"warning: hub {number} with no nics")
        for backend in self:
            if backend.peer is None and not (backend.hub is not None and backend.leads_out):
                warn(f"warning: netdev {backend.id} has no peer")
        for name, behind in cards.items():
            if behind is None:
                warn(f"warning: nic {name} has no peer")

    def close(self) -> None:
        """Close every backend."""
        for backend in self._backends.values():
            backend.peer = None
            backend.close()
        self._backends.clear()
