"""Let the disk write while the copy goes on, so that the flush at its end has little left to wait for."""

from __future__ import annotations

from qobra.lean import Condition, Lock, start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.node import BlockNode
    from qobra.block.protocol.file import FileNode

STEP = 32 << 20
"""Bytes that are copied before the disk is told to write them."""


class Writeback:
    """Syncs the files under ``target`` again and again in a thread of its own, as data comes in.

    It promises nothing: whoever needs the data on stable storage flushes the node.
    """

    def __init__(self, target: BlockNode) -> None:
        self._files = _files(target)
        self._pending = 0
        self._condition = Condition()
        self._closed = False
        self._ended: Lock | None = None
        """Held until the thread has ended; None until there is one."""

    def note(self, length: int) -> None:
        """``length`` bytes were copied."""
        if not self._files:
            return
        with self._condition:
            self._pending += length
            if self._pending >= STEP:
                if self._ended is None:
                    self._ended = Lock()
                    self._ended.acquire()
                    start_thread(self._run, self._ended, name="writeback", imports=False)
                self._condition.notify()

    def close(self) -> None:
        """End the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._ended is not None:
            with self._ended:
                pass

    def _run(self, ended: Lock) -> None:
        try:
            self._sync()
        finally:
            ended.release()

    def _sync(self) -> None:
        while True:
            with self._condition:
                while self._pending < STEP and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                self._pending = 0
            for file in self._files:
                try:
                    file.sync()
                except OSError:
                    return  # the flush will tell


def _files(node: BlockNode) -> list[FileNode]:
    from qobra.block.protocol.file import FileNode

    found: list[FileNode] = []
    pending = [node]
    while pending:
        each = pending.pop()
        if isinstance(each, FileNode) and not each.cache_no_flush and not each.read_only:
            found.append(each)
        pending.extend(child for name, child in each.children.items() if name != "backing" or each.is_filter)
    return found
