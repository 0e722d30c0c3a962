"""A card that stands by for another: virtio-net takes over while the primary, which cannot be migrated, is away.

The primary names its standby (``failover_pair_id``). It stays out of the guest's sight until the standby's driver has
accepted VIRTIO_NET_F_STANDBY (virtio 1.2, section 5.1.3), leaves for a migration, and comes back if that fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.report import report_warning

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

PAIR = "failover_pair_id"


class Standby:
    """One card that stands by. ``primary`` are the options of the card that it stands by for, once there is one."""

    def __init__(self) -> None:
        self.hides = True
        self.primary: dict[str, Any] | None = None
        self.keyval = True
        self.away = False
        """Whether the primary was unplugged for a migration."""


class Failover:
    """The standbys of a machine, by the names of their cards."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._standbys: dict[str, Standby] = {}

    def add(self, name: str) -> None:
        """A card that stands by is there."""
        self._standbys[name] = Standby()

    def remove(self, name: str) -> None:
        """It is gone."""
        self._standbys.pop(name, None)

    def hides(self, options: dict[str, Any], *, keyval: bool) -> bool:
        """Whether the device of these options is to wait until its standby's driver is ready. Raises QobraError."""
        if PAIR not in options or not self._standbys:
            return False
        id = options.get("id")
        if id is None:
            raise QobraError("Device with failover_pair_id needs to have id")
        standby = self._standbys.get(options[PAIR])
        if standby is None:
            return False
        known = standby.primary["id"] if standby.primary is not None else id
        if known != id:
            raise QobraError(f"Cannot attach more than one primary device to '{options[PAIR]}': '{known}' and '{id}'")
        standby.primary, standby.keyval = dict(options), keyval
        return standby.hides

    def negotiated(self, name: str) -> None:
        """The standby's driver is ready: the primary comes. In the strand."""
        standby = self._standbys[name]
        self._machine.events.emit("FAILOVER_NEGOTIATED", {"device-id": name})
        standby.hides = False
        if standby.primary is None:
            report_warning("Primary device not found")
            report_warning(f"Virtio-net failover will not work. Make sure primary device has parameter {PAIR}={name}")
        else:
            self._plug(standby)

    def _plug(self, standby: Standby) -> None:
        from qobra.machine.plug import add_device

        assert standby.primary is not None
        board: Any = self._machine.board
        standby.away = False
        if standby.primary["id"] not in board.peripheral.children:
            try:
                add_device(self._machine, standby.primary, keyval=standby.keyval)
            except QobraError as error:
                report_warning(error.desc)

    # -- migration

    def release(self) -> None:
        """Ask the guest to let go of the primaries. In the strand."""
        from qobra.machine.plug import find_device, unplug

        for standby in self._standbys.values():
            if not standby.hides and standby.primary is not None:
                id = standby.primary["id"]
                try:
                    primary = find_device(self._machine, id)
                    primary.tells_deletion = False  # it is away, and may come back: UNPLUG_PRIMARY says so
                    unplug(primary)
                except QobraError as error:
                    self._stays(id)
                    report_warning(f"couldn't unplug primary device: {error.desc}")
                    continue
                standby.away = True
                self._machine.events.emit("UNPLUG_PRIMARY", {"device-id": id})

    @property
    def releasing(self) -> bool:
        """Whether the guest still has a primary that it was asked to let go of."""
        board: Any = self._machine.board
        standbys = self._standbys.values()
        return any(s.away and s.primary is not None and s.primary["id"] in board.peripheral.children for s in standbys)

    def take_back(self) -> None:
        """The migration failed: primaries that left come back. In the strand."""
        for standby in self._standbys.values():
            if standby.away and standby.primary is not None:
                self._stays(standby.primary["id"])
                self._plug(standby)

    def _stays(self, id: str) -> None:
        board: Any = self._machine.board
        primary = board.peripheral.children.get(id)
        if primary is not None:
            primary.tells_deletion = True
