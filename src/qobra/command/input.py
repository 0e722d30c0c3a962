"""Input over QMP: keys, buttons, motion."""

from __future__ import annotations

from typing import Any

from qobra.command.display import find_console
from qobra.machine.machine import Machine
from qobra.qapi.contract import contract
from qobra.qmp.hmp import hmp_command
from qobra.qmp.registry import command, older_form


@command("send-key", needs="board")
def send_key(machine: Machine, args: dict[str, Any]) -> None:
    """Press keys and let them go."""
    assert machine.board is not None
    machine.board.input.send_keys(args["keys"], args.get("hold-time"))


@command("input-send-event", needs="board")
def input_send_event(machine: Machine, args: dict[str, Any]) -> None:
    """Send events that belong together."""
    assert machine.board is not None
    console = find_console(machine.board, args["device"], args.get("head", 0)) if "device" in args else None
    machine.board.input.send(args["events"], console)


@command("x-input-send-event", needs="board")
def x_input_send_event(machine: Machine, args: dict[str, Any]) -> None:
    """The same, to the first device that takes an event, whatever the console."""
    input_send_event(machine, args)


def _has_capitals(args: dict[str, Any]) -> bool:
    return _small(args) != args


@older_form("x-input-send-event", _has_capitals)
def x_input_send_event_with_capitals(machine: Machine, args: dict[str, Any]) -> None:
    """Before 2.6, buttons and axes began with a capital letter."""
    x_input_send_event(machine, contract().check_arguments("x-input-send-event", _small(args)))


def _small(args: dict[str, Any]) -> dict[str, Any]:
    """``args`` with the buttons and axes of its events in small letters; whatever else it may be, as it is."""
    events = args.get("events")
    return {**args, "events": [_small_event(event) for event in events]} if isinstance(events, list) else args


def _small_event(event: Any) -> Any:
    if not (isinstance(event, dict) and isinstance(event.get("data"), dict)):
        return event
    names = {
        name: value.lower()
        for name, value in event["data"].items()
        if name in ("button", "axis") and isinstance(value, str)
    }
    return {**event, "data": {**event["data"], **names}}


@command("query-mice", needs="board")
def query_mice(machine: Machine, args: dict[str, Any]) -> list[dict[str, Any]]:
    """The pointing devices."""
    assert machine.board is not None
    return machine.board.input.mice()


@hmp_command("info mice", help="the mice, and which moves", needs="board")
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


@hmp_command("sendkey", args="keys:s,hold-time:i?", params="keys [hold_ms]", help="press keys", needs="board")
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


@hmp_command("mouse_set", args="index:i", params="index", help="choose the mouse that moves", needs="board")
def mouse_set(machine: Machine, args: dict[str, Any]) -> str:
    """Have one of several pointing devices receive what is moved."""
    assert machine.board is not None
    wrong = machine.board.input.choose(args["index"])
    return "" if wrong is None else f"{wrong}\n"
