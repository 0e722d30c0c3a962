"""``snapshot``: list, take, apply and delete the internal snapshots of an image."""

from __future__ import annotations

import errno
import os

from qobra.block.describe import snapshot_lines
from qobra.cli._img._target import reason
from qobra.cli._tool.opening import command_line, node_of, opening
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.errors import QobraError, errno_of, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HELP = """\
snapshot [-l | -a SNAPSHOT | -c NAME | -d NAME] [--image-opts] [-q] [-U] [--object DEF] FILENAME

List the snapshots inside an image (-l), return to one by its id or name (-a), take one (-c)
or delete one (-d).
"""


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    action = name = ""

    def look(option: str, value: str) -> None:
        nonlocal action, name
        if option in "lacd":
            if action:
                raise usage("Cannot mix '-l', '-a', '-c', '-d'")
            action, name = option, value

    line, images = command_line(program, arguments, "la:c:d:qU", ("image-opts", "force-share|U"), look)
    with images:
        if len(line.operands) != 1:
            raise usage("Expecting one image file name")
        writes = action != "l"
        backend = images.open(
            line.operands[0],
            **opening(line),
            writable=writes,
            resize=writes,
            options={"discard": "unmap"} if writes else None,
        )
        node = node_of(backend)
        if action == "l":
            snapshots = node.snapshot_list()
            if snapshots:
                print("\n".join(["Snapshot list:", *snapshot_lines(snapshots)]))
            return 0
        if action:
            with images.layer.drained():
                _ACTIONS[action](node, name)
    return 0


def _create(node: Any, name: str) -> None:
    try:
        if not node.keeps_snapshots:
            raise OSError(errno.ENOTSUP, "Operation not supported")
        node.snapshot_create(name, icount=0)  # no machine has run, and none is needed to go back to it
    except (OSError, QobraError) as error:
        number = errno_of(error)
        raise ToolError(f"Could not create snapshot '{name}': -{number} ({os.strerror(number)})")


def _apply(node: Any, name: str) -> None:
    if not node.keeps_snapshots:
        raise ToolError(f"Could not apply snapshot '{name}': Block driver does not support snapshots")
    try:
        node.snapshot_apply(name)
    except (OSError, QobraError) as error:
        if error.errno == errno.EBUSY:
            raise ToolError(f"Could not apply snapshot '{name}': {error}")
        raise ToolError(f"Could not apply snapshot '{name}': Failed to load snapshot: {reason(error)}")


def _delete(node: Any, name: str) -> None:
    snapshots = node.snapshot_list()
    found = [each for each in snapshots if each["name"] == name]
    if not found:
        raise ToolError(f"Could not delete snapshot '{name}': snapshot not found")
    try:
        node.snapshot_delete(found[0]["id"], name)
    except (OSError, QobraError) as error:
        why = strerror(error) if isinstance(error, OSError) else error
        raise ToolError(f"Could not delete snapshot '{name}': {why}")


_ACTIONS = {"c": _create, "a": _apply, "d": _delete}
