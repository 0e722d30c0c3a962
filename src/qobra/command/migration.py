"""Migration over QMP: settings, the way out, the way in."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.registry import command, events

events("MIGRATION", "MIGRATION_PASS", "UNPLUG_PRIMARY", needs="board")


@command("query-migrate", needs="board")
def query_migrate(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """How the current or the last migration is going."""
    return machine.migration.describe()


@command("migrate-set-capabilities", needs="board")
def migrate_set_capabilities(machine: Machine, args: dict[str, Any]) -> None:
    """Switch capabilities on and off."""
    machine.migration.set_capabilities(args["capabilities"])


@command("query-migrate-capabilities", needs="board")
def query_migrate_capabilities(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """Which capabilities are on."""
    return machine.migration.settings.describe_capabilities()


@command("migrate-set-parameters", needs="board")
def migrate_set_parameters(machine: Machine, args: dict[str, Any]) -> None:
    """Set parameters."""
    machine.migration.settings.set_parameters(args)


@command("query-migrate-parameters", needs="board")
def query_migrate_parameters(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """All parameters."""
    return machine.migration.settings.describe_parameters()


@command("migrate", needs="board")
def migrate(machine: Machine, args: dict[str, Any]) -> None:
    """Send the machine to another."""
    if args.get("resume"):
        machine.migration.resume(args["uri"])
    else:
        machine.migration.start(args["uri"], disks=args.get("blk", False), incremental=args.get("inc", False))


@command("migrate_cancel", needs="board")
def migrate_cancel(machine: Machine, args: dict[str, Any]) -> None:
    """Give the migration up."""
    machine.migration.cancel()


@command("migrate-continue", needs="board")
def migrate_continue(machine: Machine, args: dict[str, Any]) -> None:
    """Go on with a migration that waits."""
    machine.migration.go_on(args["state"])


@command("migrate-start-postcopy", needs="board")
def migrate_start_postcopy(machine: Machine, args: dict[str, Any]) -> None:
    """Let the machine go on at the other side now, and the rest of memory and the bitmaps follow it."""
    machine.migration.start_postcopy()


@command("migrate-pause", needs="board")
def migrate_pause(machine: Machine, args: dict[str, Any]) -> None:
    """Break off while memory follows the machine."""
    machine.migration.pause()


@command("migrate-recover", needs="board")
def migrate_recover(machine: Machine, args: dict[str, Any]) -> None:
    """Wait for the rest of memory to come another way."""
    machine.migration.recover(args["uri"])


@command("migrate-incoming", needs="board")
def migrate_incoming(machine: Machine, args: dict[str, Any]) -> None:
    """Wait for a migration."""
    machine.migration.listen(args["uri"])


@command("query-colo-status", needs="board")
def query_colo_status(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """Whether another machine follows this one in lockstep: none does, as ``x-colo`` cannot be switched on."""
    return {"mode": "none", "last-mode": "none", "reason": "none"}


@command("xen-save-devices-state", needs="board")
def xen_save_devices_state(machine: Machine, args: dict[str, Any]) -> None:
    """Write the devices' state to a file."""
    from qobra.migration import device_file

    device_file.save(machine, args["filename"], live=args.get("live", True))


@command("xen-load-devices-state", needs="board")
def xen_load_devices_state(machine: Machine, args: dict[str, Any]) -> None:
    """Take the devices' state from a file."""
    from qobra.migration import device_file

    device_file.load(machine, args["filename"])


@command("migrate_set_downtime", needs="board")
def migrate_set_downtime(machine: Machine, args: dict[str, Any]) -> None:
    """The older form of ``downtime-limit``, in seconds."""
    if not 0 <= args["value"] <= 2000:
        raise QobraError("Parameter 'downtime_limit' expects an integer in the range of 0 to 2000 seconds")
    machine.migration.settings.set_parameters({"downtime-limit": int(args["value"] * 1000)})


@command("migrate_set_speed", needs="board")
def migrate_set_speed(machine: Machine, args: dict[str, Any]) -> None:
    """The older form of ``max-bandwidth``."""
    machine.migration.settings.set_parameters({"max-bandwidth": args["value"]})


@command("migrate-set-cache-size", needs="board")
def migrate_set_cache_size(machine: Machine, args: dict[str, Any]) -> None:
    """The older form of ``xbzrle-cache-size``, rounded down to a power of two."""
    value = args["value"]
    machine.migration.settings.set_parameters({"xbzrle-cache-size": 1 << value.bit_length() - 1 if value else 0})


@command("query-migrate-cache-size", needs="board")
def query_migrate_cache_size(machine: Machine, args: dict[str, Any]) -> int:
    """The older form of asking for ``xbzrle-cache-size``."""
    size: int = machine.migration.settings.parameters["xbzrle-cache-size"]
    return size
