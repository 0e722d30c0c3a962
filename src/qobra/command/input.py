"""Input over QMP: keys, buttons, motion."""

from __future__ import annotations

from typing import Any

from qobra.machine.machine import Machine
from qobra.qmp.hmp import hmp_command
from qobra.qmp.registry import command


@command("send-key", needs="board")
def send_key(machine: Machine, args: dict[str, Any]) -> None:
    """Press keys and let them go."""
    assert machine.board is not None
    machine.board.input.send_keys(args["keys"], args.get("hold-time"))


@command("input-send-event", needs="board")
def input_send_event(machine: Machine, args: dict[str, Any]) -> None:
    """Send events that belong together."""
    assert machine.board is not None
    machine.board.input.send(args["events"])


@command("query-mice", needs="board")
def query_mice(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The pointing devices."""
    assert machine.board is not None
    return machine.board.input.mice()


@hmp_command("info mice", help="show which guest mouse is receiving events", needs="board")
def info_mice(machine: Machine, args: dict[str, Any]) -> str:
    """The pointing devices, the current one marked."""
    mice = query_mice(machine, {})
    if not mice:
        return "No mouse devices connected\n"
    lines = []
    for mouse in mice:
        absolute = " (absolute)" if mouse["absolute"] else ""
        lines.append(f"{'*' if mouse['current'] else ' '} Mouse #{mouse['index']}: {mouse['name']}{absolute}\n")
    return "".join(lines)


@hmp_command("sendkey", args="keys:s,hold-time:i?", params="keys [hold_ms]", help="send keys to the VM", needs="board")
def sendkey(machine: Machine, args: dict[str, Any]) -> str | None:
    """Keys joined by ``-``, by name or as hexadecimal numbers."""
    from qobra.machine.scancodes import SET1

    keys: list[dict[str, Any]] = []
    for name in args["keys"].split("-"):
        if name.startswith("0x"):
            try:
                keys.append({"type": "number", "data": int(name, 16)})
                continue
            except ValueError:
                return f"invalid parameter: {name}\n"
        if name not in SET1 and name != "pause":
            return f"invalid parameter: {name}\n"
        keys.append({"type": "qcode", "data": name})
    assert machine.board is not None
    machine.board.input.send_keys(keys, args.get("hold-time"))
    return None
