"""Trace events over QMP and in the human monitor."""

from __future__ import annotations

from typing import Any

from qobra import log, trace
from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.qmp.hmp import hmp_command
from qobra.qmp.registry import command


@command("trace-event-get-state")
def trace_event_get_state(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The state of the events that a name or pattern means."""
    return [
        {"name": event.name, "state": "enabled" if event.enabled else "disabled", "vcpu": False}
        for event in _meant(machine, args["name"], args)
    ]


@command("trace-event-set-state")
def trace_event_set_state(machine: Machine, args: dict[str, Any]) -> None:
    """Switch the events that a name or pattern means."""
    for event in _meant(machine, args["name"], args):
        event.set(args["enable"])


def _meant(machine: Machine, name: str, args: dict[str, Any]) -> list[trace.Event]:
    """The events, none of which belongs to a virtual CPU."""
    found = trace.matching(name)
    if "vcpu" in args:
        cpus = machine.board.cpus if machine.board is not None else ()
        if all(cpu.index != args["vcpu"] for cpu in cpus):
            raise QobraError(f"invalid vCPU index {args['vcpu']}")
        if found and not trace.is_pattern(name):
            raise QobraError(f'event "{name}" is not vCPU-specific')
        return []
    if _is_unknown(name):
        raise QobraError(f'unknown event "{name}"')
    return found


def _is_unknown(name: str) -> bool:
    return not trace.is_pattern(name) and not trace.matching(name)


@hmp_command("info trace-events", args="name:s?,vcpu:i?", params="[name] [vcpu]", help="trace events, and which are on")
def info_trace_events(machine: Machine, args: dict[str, Any]) -> str:
    """The state of the events that a name or pattern means, all of them without one."""
    if _is_unknown(args.get("name", "*")):
        return f'unknown event "{args["name"]}"\n'
    states = trace_event_get_state(machine, {**args, "name": args.get("name", "*")})
    return "".join(f"{each['name']} : state {int(each['state'] == 'enabled')}\n" for each in states)


@hmp_command(
    "trace-event", args="name:s,option:b,vcpu:i?", params="name on|off [vcpu]",
    help="switch a trace event on or off (vcpu: for one CPU alone)",
)  # fmt: skip
def trace_event(machine: Machine, args: dict[str, Any]) -> str | None:
    """Switch the events that a name or pattern means."""
    if _is_unknown(args["name"]):
        return f'unknown event "{args["name"]}"\n'
    more = {"vcpu": args["vcpu"]} if "vcpu" in args else {}
    trace_event_set_state(machine, {"name": args["name"], "enable": args["option"], **more})
    return None


@hmp_command("log", args="items:s", params="item1[,...]", help="tell of these items from now on (none: of no more)")
def log_items(machine: Machine, args: dict[str, Any]) -> str | None:
    """Log what is named, or tell what can be."""
    if args["items"] == "none":
        return None  # trace events stay as they are: they have a switch each
    patterns = log.patterns(args["items"])
    if patterns is None:
        return log.help_text()
    unknown = [pattern.removeprefix("-") for pattern in patterns if not trace.switch(pattern)]
    return "".join(f"warning: trace event '{name}' does not exist\n" for name in unknown)


@hmp_command("logfile", args="filename:F", params="filename", help="the file that is logged to")
def logfile(machine: Machine, args: dict[str, Any]) -> str | None:
    """Log to a new file."""
    try:
        log.set_file(args["filename"])
    except QobraError as error:
        return f"{error}\n"
    return None
