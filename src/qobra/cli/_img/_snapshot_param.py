"""``-l SNAPSHOT``: an internal snapshot in place of the disk's present state."""

from __future__ import annotations

from qobra.cli._tool.report import Program, ToolError
from qobra.errors import QobraError, strerror
from qobra.option_list import option_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def load_snapshot(program: Program, node: Any, text: str, *, quote: str = "'") -> None:
    """Let ``node`` (read-only) show the snapshot that ``text`` means. Raises ToolError.

    ``text`` is an id or a name, or ``snapshot.id=ID,snapshot.name=NAME``. ``quote`` is the
    program's way to begin a quotation.
    """
    wanted: dict[str, str] = {}
    if text.startswith("snapshot."):
        for name, value in option_pairs(text, warn=program.warning):
            if name not in ("snapshot.id", "snapshot.name"):
                program.error(f"Invalid parameter '{name}'")
                raise ToolError(f"Failed in parsing snapshot param {quote}{text}'")
            wanted[name.removeprefix("snapshot.")] = value
    if not hasattr(node, "snapshot_load"):
        raise ToolError(
            f"Failed to load snapshot: Block format '{node.driver}' used by device '' does not support temporarily "
            "loading internal snapshots"
        )
    snapshots = node.snapshot_list()
    if wanted:
        found = [each for each in snapshots if all(each[name] == value for name, value in wanted.items())]
    else:
        found = [each for each in snapshots if each["id"] == text] or [
            each for each in snapshots if each["name"] == text
        ]
    if not found:
        raise ToolError("Failed to load snapshot: Can't find snapshot")
    try:
        node.snapshot_load(found[0]["id"])
    except (OSError, QobraError) as error:
        raise ToolError(f"Failed to load snapshot: {strerror(error) if isinstance(error, OSError) else error}")
