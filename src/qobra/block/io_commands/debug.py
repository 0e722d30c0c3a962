"""The commands that stop requests at events of a ``blkdebug`` node: ``break``, ``resume``, ``wait_break``, ..."""

from __future__ import annotations

import time
from collections.abc import Callable

from qobra.block.filter.blkdebug import BlkdebugNode
from qobra.block.io_commands._interpreter import Failed, Interpreter, io_command
from qobra.block.node import BlockNode

POLL_SECONDS = 0.002


def _blkdebug(interpreter: Interpreter) -> BlkdebugNode | None:
    """The first node from the top that can stop requests, or None."""
    node: BlockNode | None = interpreter.node
    while node is not None:
        if isinstance(node, BlkdebugNode):
            return node
        node = node.filtered or node.children.get("file")
    return None


def _call(interpreter: Interpreter, what: str, act: Callable[[BlkdebugNode], bool]) -> None:
    node = _blkdebug(interpreter)
    if node is None:
        raise Failed(f"{what}: Operation not supported")
    if not act(node):
        raise Failed(f"{what}: No such file or directory")


@io_command("break", "event tag", "hold the next request that comes to an event, under a tag", least=2, most=2)
def set_break(interpreter: Interpreter, words: list[str]) -> None:
    """Stop the next request that comes to an event."""
    _call(interpreter, "Could not set breakpoint", lambda node: node.set_breakpoint(words[1], words[2]))


@io_command("remove_break", "tag", "take breakpoints with a tag back", least=1, most=1)
def remove_break(interpreter: Interpreter, words: list[str]) -> None:
    """Take a breakpoint back, and let go what it has stopped."""
    _call(interpreter, f"Could not remove breakpoint {words[1]}", lambda node: node.remove_breakpoint(words[1]))


@io_command("resume", "tag", "let go the request that is held under a tag", least=1, most=1)
def resume(interpreter: Interpreter, words: list[str]) -> None:
    """Let a stopped request go on."""
    _call(interpreter, "Could not resume request", lambda node: node.resume(words[1]))


@io_command("wait_break", "tag", "wait until a request is held under a tag", least=1, most=1)
def wait_break(interpreter: Interpreter, words: list[str]) -> None:
    """Wait until a request has stopped."""
    node = _blkdebug(interpreter)
    if node is None:
        raise Failed("Could not wait for the request: Operation not supported")
    while not node.is_suspended(words[1]):
        time.sleep(POLL_SECONDS)
