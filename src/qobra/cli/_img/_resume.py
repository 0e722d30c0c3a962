"""``convert --resume``: a journal beside the target, so that a copy that was killed goes on where it was.

The journal says what is copied and how far the target is known to hold it. It is written after the target's metadata,
now and then, and removed when all is done; while it is there, the target is not whole.
"""

from __future__ import annotations

import os
import time

from qobra.cli._tool.report import ToolError
from qobra.errors import strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.block.node import BlockNode

SUFFIX = ".resume"
STEP = 256 << 20
"""Bytes between two entries at most."""
SECONDS = 2.0
"""Between two entries at most: a source may be far away."""
MAX_JOURNAL = 1 << 20


class Journal:
    """How far the copy to ``output`` is. ``order`` is what must be the same for it to go on."""

    def __init__(self, output: str, order: dict[str, Any]) -> None:
        self.path = output.removeprefix("file:") + SUFFIX
        self._output = output.removeprefix("file:")
        self._order = order
        self.done = 0
        """Bytes from the beginning that the target holds."""
        self._noted = 0
        self._when = time.monotonic()

    def load(self) -> bool:
        """Whether there is something to go on with. Raises ToolError where it is of another copy."""
        import json

        try:
            with open(self.path, "rb") as stream:
                entry = json.loads(stream.read(MAX_JOURNAL))
            done = int(entry["done"])
            order = entry["order"]
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError):
            raise ToolError(f"'{self.path}' is no journal of a copy; remove it to begin anew")
        if order != self._order or done < 0:
            raise ToolError(f"'{self.path}' is the journal of another copy, or its source has changed")
        if not done or not os.path.exists(self._output):
            return False  # the target may not even have been made as a whole
        self.done = self._noted = done
        return True

    def begin(self) -> None:
        """A new copy begins."""
        self._write(0)

    def add(self, length: int, target: BlockNode) -> None:
        """``length`` more bytes, in order, are in the target."""
        self.done += length
        if self.done - self._noted >= STEP or time.monotonic() - self._when >= SECONDS:
            # What the journal says must be so in the file, whenever the process is killed.
            target.flush()
            self._write(self.done)

    def finish(self) -> None:
        """The target is whole."""
        os.unlink(self.path)

    def _write(self, done: int) -> None:
        import json

        self._noted, self._when = done, time.monotonic()
        fresh = self.path + ".new"
        try:
            with open(fresh, "w", encoding="utf-8") as stream:
                json.dump({"order": self._order, "done": done}, stream)
            os.replace(fresh, self.path)
        except OSError as error:
            raise ToolError(f"Could not write '{self.path}': {strerror(error)}")


def identity(nodes: list[BlockNode]) -> list[list[int]]:
    """Size and time of each file that the sources are in, to notice that one has changed."""
    found = []
    pending = list(nodes)
    while pending:
        node = pending.pop(0)
        pending += [node.children[name] for name in sorted(node.children)]
        if node.is_leaf and node.fd >= 0:
            status = os.fstat(node.fd)
            found.append([status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns])
    return found
