"""What every network card has: an address, a backend, a link."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.machine.boot_index import BootIndex
from qobra.machine.qdev import Device
from qobra.object.property import Property

if TYPE_CHECKING:
    from qobra.machine.machine import Machine
    from qobra.net.netdev import Netdev

MAX_WAITING = 256
"""How many packets a card keeps for a guest that has no room for them; what comes on top is lost."""

_MAC = re.compile(r"[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}\Z")


class MacAddress(Property):
    """Six bytes as hexadecimal digits with colons."""

    expected = "string"

    def write(self, instance: Any, value: Any, *, keyval: bool = False) -> None:
        if isinstance(value, str) and not _MAC.match(value):
            raise QobraError(f"Property '{instance.type_name}.{self.name}' doesn't take value '{value}'")
        super().write(instance, value, keyval=keyval)

    def check(self, value: Any) -> bytes:
        if not isinstance(value, str):
            raise self.mismatch()
        return bytes.fromhex(value.replace(":", "").replace("-", ""))

    def show(self, value: Any) -> Any:
        return (value or bytes(6)).hex(":")


class NetdevProperty(Property):
    """The backend of a card, by id."""

    expected = "string"

    def check(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self.mismatch()
        return value

    def show(self, value: Any) -> Any:
        return value or ""


class Nic(Device):
    """A network card. Models implement :meth:`put_packet`, and send with :meth:`transmit`.

    What comes in waits in the card while the guest has no room for it, in the order in which it came; the model calls
    :meth:`room_changed` when the guest may have made some, and :meth:`drop_waiting` at a reset.
    """

    category = "Network"

    mac = MacAddress("str", None, description="Ethernet 6-byte MAC Address, example: 52:54:00:12:34:56")
    netdev = NetdevProperty("str", None, description="ID of a netdev to use as a backend")
    bootindex = BootIndex()

    backend: Netdev | None = None
    link_forced_down = False
    client_name = ""
    """What commands about the network call the card: its id, or its model with how many there were of that before."""

    def realize_nic(self) -> None:
        """Take the backend and an address."""
        self._waiting: deque[bytes] = deque()
        netdevs = self.machine.netdevs
        name = self.netdev
        if name is not None:
            backend = netdevs.find(name)
            if backend is None:
                raise QobraError(f"Property '{self.type_name}.netdev' can't find value '{name}'")
            if backend.peer is not None:
                raise QobraError(f"Property '{self.type_name}.netdev' can't take value '{name}', it's in use")
            backend.peer = self
            self.backend = backend
        self.address: bytes = self.machine.netdevs.take_address(self.mac)
        self.values["mac"] = self.address
        self.client_name = self.given_id or f"{self.model}.{sum(card.model == self.model for card in netdevs.cards)}"
        netdevs.cards.append(self)
        self._forget_run_state = self.machine.run_state.subscribe(self._run_state_changed)

    def _run_state_changed(self, running: bool, _state: str) -> None:
        if running:
            self.room_changed()

    def unrealize_nic(self) -> None:
        """Let the backend and the address go."""
        if self in self.machine.netdevs.cards:
            self.machine.netdevs.cards.remove(self)
            self._forget_run_state()
        self.machine.netdevs.release_address(self.mac)
        if self.backend is not None:
            self.backend.peer = None
            self.backend = None

    def names(self) -> set[str]:
        """The names that mean the card: its id, that of the function that carries it, or the one made up for it."""
        ids = {device.user_id for device in (self, self.carrier) if device is not None and device.user_id is not None}
        return ids or {self.client_name}

    @property
    def model(self) -> str:
        """The type that users name: that of the function, for a card that one carries."""
        return (self.carrier or self).type_name

    @property
    def link_up(self) -> bool:
        """Whether packets come and go."""
        return not self.link_forced_down and (self.backend is None or self.backend.link_up)

    def transmit(self, packet: bytes) -> None:
        """Send a packet; without a link it is lost."""
        if self.backend is not None and self.link_up:
            self.backend.take(packet)

    def receive_packet(self, packet: bytes) -> None:
        """A packet came in. Called in the backend's thread, which must not wait for the strand."""
        if self.keep(packet):
            self.machine.control.post(self.take_waiting)

    def keep(self, packet: bytes) -> bool:
        """Have a packet wait behind those that do; False if there are too many."""
        if len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting.append(packet)
        return True

    def take_waiting(self) -> None:
        """Give the guest what waits, as far as it has room; nothing while it stands still, when its memory is moved."""
        if not self.machine.run_state.running:
            return
        # What comes meanwhile has a call of its own: a flood does not hold the strand.
        for _ in range(len(self._waiting)):
            if self.realized and self.link_up and not self.put_packet(self._waiting[0]):
                return
            self._waiting.popleft()

    def put_packet(self, packet: bytes) -> bool:
        """Put a packet where the driver finds it, or lose it; False if it has to wait, as the driver has no room."""
        raise NotImplementedError

    def room_changed(self) -> None:
        """The driver may have made room, or switched off what receives: it finds what came before that."""
        if self.backend is not None:
            self.backend.catch_up()
        if self._waiting:
            self.machine.control.post(self.take_waiting)

    def drop_waiting(self) -> None:
        """Lose what waits."""
        self._waiting.clear()

    def link_changed(self) -> None:
        """The link went up or down."""

    def announce(self) -> None:
        """Have the guest make itself known, for models that can ask it to."""

    def rx_filter(self) -> dict[str, Any] | None:
        """RxFilterInfo, for models that can tell."""
        return None


def cards(machine: Machine) -> list[Nic]:
    """The network cards of a machine, in the order in which they were made."""
    return [card for card in machine.netdevs.cards if card.realized]
