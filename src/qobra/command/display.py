"""Displays over QMP and for people: pictures of what the guest shows."""

from __future__ import annotations

from typing import Any

from qobra.display.console import Console
from qobra.display.picture import WRITERS
from qobra.errors import QobraError, strerror
from qobra.machine.board import Board
from qobra.machine.machine import Machine
from qobra.machine.qdev import Device
from qobra.qmp import dispatch
from qobra.qmp.hmp import hmp_command
from qobra.qmp.registry import command


def find_console(board: Board, id: str, head: int) -> Console:
    """The console ``head`` of the device ``id``. Raises QobraError (DeviceNotFound)."""
    device = board.peripheral.children.get(id)
    return board.consoles.find(device if isinstance(device, Device) else None, head, id)


@command("query-display-options", needs="board")
def query_display_options(machine: Machine, args: dict[str, Any]) -> dict[str, Any]:
    """What ``-display`` said."""
    assert machine.board is not None
    return machine.board.display_options


@command("screendump", needs="board")
def screendump(machine: Machine, args: dict[str, Any]) -> None:
    """Write what a console shows to a file."""
    board = machine.board
    assert board is not None
    id = args.get("device")
    if id is None:
        if "head" in args:
            raise QobraError("'head' must be specified together with 'device'")
        console = board.consoles.first()
    else:
        console = find_console(board, id, args.get("head", 0))
    console.bring_up_to_date()
    data = WRITERS[args.get("format", "ppm")](console.surface)
    try:
        with open(args["filename"], "wb") as stream:
            stream.write(data)
    except OSError as error:
        raise QobraError(f"failed to open file '{args['filename']}': {strerror(error)}", errno=error.errno)


@hmp_command(
    "screendump",
    args="filename:F,format:-fs,device:s?,head:i?",
    params="filename [-f format] [device [head]]",
    help="write a picture of the screen to a file, as PPM or PNG (-f png)",
    needs="board",
)
def hmp_screendump(machine: Machine, args: dict[str, Any]) -> None:
    """Save what a console shows."""
    dispatch.call(machine, "screendump", args)
