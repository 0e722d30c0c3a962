"""Everything about a machine's migrations: what clients set, the one that goes out and the one that comes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block.activation import activate_all, deactivate_all
from qobra.errors import QobraError
from qobra.migration import machine_state, ways
from qobra.migration.bitmaps import keep_bitmaps
from qobra.migration.settings import Settings

if TYPE_CHECKING:
    from qobra.machine.machine import Machine
    from qobra.migration.channel import Channel
    from qobra.migration.dirty_rate import DirtyRate
    from qobra.migration.incoming import Incoming
    from qobra.migration.outgoing import Outgoing

_IN_PROGRESS = "There's a migration process in progress"


class Migration:
    """The migrations of ``machine``. Everything here is called in the strand."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.settings = Settings()
        self._outgoing: Outgoing | None = None
        self._refusal: str | None = None
        """Why the latest migration out did not even begin."""
        self._incoming: Incoming | None = None
        machine.run_state.before_start(self._take_over)
        self._dirty_rate: DirtyRate | None = None

    def capability(self, name: str) -> bool:
        """Whether a capability is on."""
        return self.settings.capabilities[name]

    def tell(self, status: str) -> None:
        """Emit MIGRATION, where it was asked for."""
        if self.capability("events"):
            self.machine.events.emit("MIGRATION", {"status": status})

    def tell_pass(self, number: int) -> None:
        """Emit MIGRATION_PASS, where events of migration were asked for."""
        if self.capability("events"):
            self.machine.events.emit("MIGRATION_PASS", {"pass": number})

    @property
    def dirty_rate(self) -> DirtyRate:
        """What is known of how fast the guest changes its memory."""
        if self._dirty_rate is None:
            from qobra.migration.dirty_rate import DirtyRate

            self._dirty_rate = DirtyRate(self.machine)
        return self._dirty_rate

    @property
    def under_way(self) -> bool:
        """Whether a migration goes out right now."""
        return self._outgoing is not None and not self._outgoing.ended

    # -- settings

    def set_capabilities(self, changes: list[dict[str, Any]]) -> None:
        """migrate-set-capabilities."""
        if self.under_way:
            raise QobraError(_IN_PROGRESS)
        self.settings.set_capabilities(changes)

    # -- out

    def start(self, uri: str, *, disks: bool = False, incremental: bool = False) -> None:
        """migrate: begin to send the machine to ``uri``, its ``disks`` too if asked for. Raises QobraError.

        ``incremental``: only what images hold themselves.
        """
        self._check_can_leave()
        if (disks or incremental) and (self.capability("block") or self.settings.parameters["block-incremental"]):
            raise QobraError("Command options are incompatible with current migration capabilities")
        try:
            way = self._way(uri)
        except QobraError as error:
            self._refusal = str(error)
            raise
        self._start(way, disks=disks or incremental, incremental=incremental)

    def resume(self, uri: str) -> None:
        """migrate with ``resume``: send the rest of memory to ``uri``, postcopy being paused. Raises QobraError."""
        if self._outgoing is None:
            raise QobraError("Cannot resume if there is no paused migration")
        self._outgoing.resume(self._way(uri))

    def _way(self, uri: str) -> ways.Way:
        way = ways.outgoing(uri, lambda name: self.machine.fdsets.take_named_or_number(name))
        if self.capability("multifd") and not way.many:
            raise QobraError("multifd is not supported by current protocol")
        return way

    def start_over(self, stream: Channel) -> Outgoing:
        """Send the machine over ``stream``, which is open already."""
        self._check_can_leave()
        return self._start(ways.Way(lambda: stream))

    def _start(self, way: ways.Way, *, disks: bool = False, incremental: bool = False) -> Outgoing:
        from qobra.migration.outgoing import Outgoing

        # What cannot move is told like any other failure, to those who ask how it went.
        self._refusal = None
        incremental = incremental or self.settings.parameters["block-incremental"]
        self._outgoing = Outgoing(self, way, disks=disks or self.capability("block"), incremental=incremental)
        self._outgoing.start()
        return self._outgoing

    def _check_can_leave(self) -> None:
        if self.under_way:
            raise QobraError(_IN_PROGRESS)
        state = self.machine.run_state.state
        if state == "inmigrate" or self.arriving:
            raise QobraError("Guest is waiting for an incoming migration")
        if state == "postmigrate":
            raise QobraError("Can't migrate the vm that was paused due to previous migration")
        if self.machine.board is not None:
            machine_state.check_declared(self.machine.board)

    @property
    def arriving(self) -> bool:
        """Whether something of this machine is still to come."""
        return self._incoming is not None and self._incoming.under_way

    def secure_outgoing(self, channel: Channel, hostname: str | None) -> ways.AnyChannel:
        """``channel``, to ``hostname``, inside TLS if that was asked for. Raises QobraError, OSError, GivenUp."""
        if not self.settings.parameters["tls-creds"]:
            return channel
        from qobra.migration import tls

        return tls.connect(self.machine, self.settings.parameters, channel, hostname)

    def secure_incoming(self, channel: Channel) -> ways.AnyChannel:
        """``channel`` inside TLS if that was asked for. Raises QobraError, OSError, GivenUp."""
        if not self.settings.parameters["tls-creds"]:
            return channel
        from qobra.migration import tls

        return tls.accept(self.machine, self.settings.parameters, channel)

    def cancel(self) -> None:
        """migrate_cancel."""
        if self._outgoing is not None:
            self._outgoing.cancel()

    def go_on(self, state: str) -> None:
        """migrate-continue."""
        if self._outgoing is None:
            raise QobraError("Migration not in expected state: none")
        self._outgoing.go_on(state)

    def start_postcopy(self) -> None:
        """migrate-start-postcopy."""
        if not self.capability("dirty-bitmaps") and not self.capability("postcopy-ram"):
            raise QobraError("Enable postcopy with migrate_set_capability before the start of migration")
        if self._outgoing is None:
            raise QobraError("Postcopy must be started after migration has been started")
        self._outgoing.start_postcopy()

    def pause(self) -> None:
        """migrate-pause. From any thread. Raises QobraError."""
        if not any(each is not None and each.pause() for each in (self._outgoing, self._incoming)):
            raise QobraError("migrate-pause is currently only supported during postcopy-active state")

    # -- in

    def expect(self) -> None:
        """The machine is made to be filled by another's state (``-incoming``): its disks are not its own yet."""
        self.machine.run_state.set("inmigrate")
        self.machine.block.opens_inactive = True

    def listen(self, uri: str) -> None:
        """migrate-incoming: wait for a migration at ``uri``. Raises QobraError."""
        from qobra.migration.incoming import Incoming

        state = self.machine.run_state
        if state.incoming is None:
            raise QobraError("'-incoming' was not specified on the command line")
        if state.state != "inmigrate" or self._incoming is not None:
            raise QobraError("The incoming migration has already been started")
        # Told whether or not events were asked for, and whatever comes of the address.
        self.machine.events.emit("MIGRATION", {"status": "setup"})
        self._incoming = Incoming(self, uri)
        self._incoming.start()

    def recover(self, uri: str) -> None:
        """migrate-recover: wait at ``uri`` for the rest of memory, postcopy being paused. From any thread."""
        if self._incoming is None:
            raise QobraError("Migrate recover can only be run when postcopy is paused.")
        self._incoming.recover(uri)

    # -- both

    def describe(self) -> dict[str, Any]:
        """MigrationInfo."""
        info = self._describe()
        if self.machine.board is not None and (reasons := machine_state.blockers(self.machine.board)):
            info["blocked-reasons"] = reasons
        return info

    def _describe(self) -> dict[str, Any]:
        if self._refusal is not None:
            return {"status": "failed", "error-desc": self._refusal}
        if self._outgoing is not None:
            return self._outgoing.describe()
        info: dict[str, Any] = {}
        incoming = self._incoming
        if incoming is not None:
            if incoming.addresses and incoming.status not in ("completed", "failed"):
                info["socket-address"] = incoming.addresses
            if incoming.status not in ("none", "setup"):
                info["status"] = incoming.status
            waited_ms = incoming.waited_ms
            if self.capability("postcopy-blocktime") and waited_ms is not None:
                # Who waits for a page holds the strand, which whatever a CPU does needs.
                cpus = len(self.machine.board.cpus) if self.machine.board is not None else 0
                info["postcopy-blocktime"] = waited_ms
                info["postcopy-vcpu-blocktime"] = [waited_ms] * cpus
        return info

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the migration that goes out or comes in is over. Not in the strand."""
        current = self._outgoing or self._incoming
        return current is None or current.wait(timeout)

    def close(self) -> None:
        """The machine ends."""
        if self._outgoing is not None:
            self._outgoing.abandon()
        if self._incoming is not None:
            self._incoming.close()

    def let_go(self) -> None:
        """The disks are another machine's from now on, until this one is to run again. Raises QobraError."""
        deactivate_all(self.machine.block)

    def _take_over(self) -> None:
        # Before the guest runs here (again).
        activate_all(self.machine.block)
        keep_bitmaps(self.machine.block)
