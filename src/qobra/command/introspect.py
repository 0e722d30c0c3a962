"""What a machine serves: commands, events, and the types that they use."""

from __future__ import annotations

from qobra.machine.machine import Machine
from qobra.qmp import registry
from qobra.qmp.registry import command
from qobra.qmp.writer import Encoded, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

registry.events(
    "BLOCK_EXPORT_DELETED",
    "BLOCK_IMAGE_CORRUPTED",
    "BLOCK_IO_ERROR",
    "BLOCK_JOB_CANCELLED",
    "BLOCK_JOB_COMPLETED",
    "BLOCK_JOB_ERROR",
    "BLOCK_JOB_PENDING",
    "BLOCK_JOB_READY",
    "BLOCK_WRITE_THRESHOLD",
    "JOB_STATUS_CHANGE",
    "PR_MANAGER_STATUS_CHANGED",
    "QUORUM_FAILURE",
    "QUORUM_REPORT_BAD",
    "RESUME",
    "STOP",
)
registry.events(
    "ACPI_DEVICE_OST",
    "BALLOON_CHANGE",
    "DEVICE_DELETED",
    "DEVICE_TRAY_MOVED",
    "DUMP_COMPLETED",
    "GUEST_CRASHLOADED",
    "GUEST_PANICKED",
    "MEMORY_DEVICE_SIZE_CHANGE",
    "MEMORY_FAILURE",
    "MEM_UNPLUG_ERROR",
    "NIC_RX_FILTER_CHANGED",
    "POWERDOWN",
    "RESET",
    "RTC_CHANGE",
    "SHUTDOWN",
    "SUSPEND",
    "SUSPEND_DISK",
    "VSERPORT_CHANGE",
    "WAKEUP",
    "WATCHDOG",
    needs="board",
)

_schemas: dict[frozenset[str], Encoded] = {}


@command("query-commands")
def query_commands(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The commands that are served."""
    return [{"name": name} for name in registry.served_names(machine)]


@command("query-events")
def query_events(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The events that may come."""
    return [{"name": name} for name in registry.served_events(machine)]


@command("query-qmp-schema")
def query_qmp_schema(machine: Machine, args: dict[str, Any]) -> Encoded:
    """All types of what is served; made once, since it is large and only depends on the kind of machine."""
    found = _schemas.get(machine.capabilities)
    if found is None:
        from qobra.qapi.introspect import introspect

        schema = introspect(registry.served(machine), registry.served_events(machine))
        found = _schemas[machine.capabilities] = Encoded(encode(schema, arrange=False))
    return found
