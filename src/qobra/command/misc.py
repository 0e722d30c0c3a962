"""Commands of no family: the machine's name and identity, I/O threads, the human monitor's commands."""

from __future__ import annotations

from typing import Any

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.registry import command
from qobra.qmp.session import Session


@command("query-name")
def query_name(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """The machine's name, if it has one."""
    return {} if machine.name is None else {"name": machine.name}


@command("query-uuid")
def query_uuid(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """The machine's UUID, all zeros if it has none."""
    return {"UUID": str(machine.uuid or "00000000-0000-0000-0000-000000000000")}


@command("query-iothreads")
def query_iothreads(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The threads that objects of type ``iothread`` stand for."""
    found = []
    for name, child in machine.objects.objects.children.items():
        thread: Any = child
        if thread.implements("iothread"):
            info: dict[str, Any] = {"id": name, "thread-id": thread.thread_id}
            for member in ("poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch"):
                if member in child.properties():
                    info[member] = child.get(member)
            found.append(info)
    return found


@command("human-monitor-command", with_session=True)
def human_monitor_command(machine: Machine, args: dict[str, Any], session: Session | None) -> str:
    """Run one line as the human monitor would."""
    from qobra.qmp import dispatch, hmp

    # Without a board there is no CPU, and no command that would be about one.
    if "cpu-index" in args and "board" in machine.capabilities:
        numbers = [cpu["cpu-index"] for cpu in dispatch.call(machine, "query-cpus-fast", {})]
        if args["cpu-index"] not in numbers:
            raise QobraError("Parameter 'cpu-index' expects a CPU number")
    take_fd = session.take_fd if session is not None else lambda: None
    return hmp.execute(machine, args["command-line"], hmp.HmpMonitor(take_fd, args.get("cpu-index", 0)))
