"""``-l SNAPSHOT``: an internal snapshot in place of the disk's present state."""

from __future__ import annotations

from qobra.cli._tool.report import Program, ToolError
from qobra.errors import QobraError, strerror
from qobra.option_list import option_pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class SnapshotParam:
    """What the ``-l`` of a command line ask for: the last list of options, or else the last id or name."""

    def __init__(self, program: Program, *, quote: str = "'") -> None:
        """``quote`` is the program's way to begin a quotation."""
        self._program = program
        self._quote = quote
        self._text: str | None = None
        self._options: dict[str, str] | None = None

    @property
    def wanted(self) -> str | dict[str, str] | None:
        """An id or a name, or options with both apart; None if nothing was asked for."""
        return self._text if self._options is None else self._options

    def __bool__(self) -> bool:
        return self.wanted is not None

    def take(self, text: str) -> None:
        """Read an id or a name, or ``snapshot.id=ID,snapshot.name=NAME``. Raises ToolError."""
        if not text.startswith("snapshot."):
            self._text = text
            return
        options: dict[str, str] = {}
        for name, value in option_pairs(text, warn=self._program.warning):
            if name not in ("snapshot.id", "snapshot.name"):
                self._program.error(f"Invalid parameter '{name}'")
                raise ToolError(f"Failed in parsing snapshot param {self._quote}{text}'")
            options[name.removeprefix("snapshot.")] = value
        self._options = options

    def load(self, node: Any) -> None:
        """Let ``node`` (read-only) show the snapshot. Raises ToolError."""
        if not hasattr(node, "snapshot_load"):
            raise ToolError(
                f"Failed to load snapshot: Block format '{node.driver}' used by device '' does not support temporarily "
                "loading internal snapshots"
            )
        snapshots = node.snapshot_list()
        if self._options is not None:
            found = [each for each in snapshots if all(each[name] == text for name, text in self._options.items())]
        else:
            found = [each for each in snapshots if each["id"] == self._text] or [
                each for each in snapshots if each["name"] == self._text
            ]
        if not found:
            raise ToolError("Failed to load snapshot: Can't find snapshot")
        try:
            node.snapshot_load(found[0]["id"])
        except (OSError, QobraError) as error:
            raise ToolError(f"Failed to load snapshot: {strerror(error) if isinstance(error, OSError) else error}")
