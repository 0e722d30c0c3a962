"""The commands that are about the file: ``open``, ``close``, ``reopen``, ``info``, ``map``, ``truncate`` and others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.block import permissions
from qobra.block.extents import ABSENT
from qobra.block.io_commands._interpreter import SECTOR, Interpreter, Misused, io_command
from qobra.block.node import BlockNode
from qobra.errors import QobraError
from qobra.units import io_size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPEN_HELP = """
 opens a file, with what it lies on

 Example:
 'open -n -o driver=raw /tmp/data' - opens a raw file for reading and writing, past the host's cache

 -r, -- read-only
 -s, -- write to a temporary file instead, which is gone afterwards
 -C, -- copy what is read from the backing file
 -n, -- past the host's cache, short for -t none
 -U, -- even if others write to it
 -k, -- Linux AIO
 -i, -- way of doing I/O (threads, native, io_uring)
 -t, -- cache mode
 -d, -- discard mode
 -o, -- options of the node"""

_REOPEN_HELP = """
 changes the options of the open file

 Example:
 'reopen -o lazy-refcounts=on' - lets a qcow2 image write its reference counts late

 -r, -- read-only
 -w, -- writable
 -c, -- cache mode
 -o, -- options of the node
"""

MAP_STEP = 1 << 30


@io_command("open", "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]", "work on another image",
            alias="o", least=1, details=_OPEN_HELP, needs_file=False)  # fmt: skip
def open_file(interpreter: Interpreter, words: list[str]) -> None:
    """Open a file to work on."""
    if interpreter.open_file is None:
        raise QobraError("Operation not supported")
    interpreter.backend = interpreter.open_file(words)


@io_command("close", "", "let go of the image", alias="c", most=0)
def close_file(interpreter: Interpreter, words: list[str]) -> None:
    """Close it."""
    if interpreter.close_file is None:
        raise QobraError("Operation not supported")
    from qobra.block.io_commands.asynchronous import wait_all

    wait_all(interpreter)
    interpreter.backend = None
    interpreter.close_file()


@io_command("reopen", "[(-r|-w)] [-c cache] [-o options]", "change how the image is open", details=_REOPEN_HELP)
def reopen(interpreter: Interpreter, words: list[str]) -> None:
    """Change options in place."""
    from qobra.block.cache_modes import CACHE_MODES

    met: set[str] = set()

    def check(option: str, value: str) -> None:
        if option == "c" and value not in CACHE_MODES:
            raise QobraError(f"Invalid cache option: {value}")
        if option in "rw" and not met.isdisjoint("rw"):
            raise QobraError("Only one -r/-w option may be given")
        met.add(option)

    options, operands = interpreter.options(words, "c:o:rw", check=check)
    if operands:
        raise Misused
    node, root = interpreter.node, interpreter.root
    changes: dict[str, Any] = {}
    if "o" in options:
        from qobra.block.change_options import parse_changes

        changes = parse_changes(node, options["o"], interpreter.warn)
    if "r" in options or "w" in options:
        if "read-only" in changes:
            raise QobraError("Cannot set both -r/-w and 'read-only'")
        changes["read-only"] = "r" in options
    if "c" in options:
        if "cache" in changes:
            raise QobraError("Cannot set both -c and the cache options")
        through, direct, no_flush = CACHE_MODES[options["c"]]
        changes["cache"] = {"direct": direct, "no-flush": no_flush}
        root.writeback = not through
    from qobra.block.change_options import change_options, typed_changes

    if typed_changes(node, changes).get("read-only"):
        if root.inserted() is not node:
            raise QobraError(f"Can't set node '{node.node_name}' to r/o with copy-on-read enabled")
        root.set_permissions(root.perm & ~(permissions.WRITE | permissions.WRITE_UNCHANGED), root.shared)
    if changes:
        change_options(node, changes)
    if "w" in options:
        root.set_permissions(root.perm | permissions.WRITE, root.shared)


@io_command("truncate", "[-m prealloc_mode] off", "make the image longer or shorter",
            alias="t", least=1, most=3, writes=True)  # fmt: skip
def truncate(interpreter: Interpreter, words: list[str]) -> None:
    """Change the size."""

    def check(_option: str, value: str) -> None:
        if value not in ("off", "metadata", "falloc", "full"):
            raise QobraError(f"Invalid preallocation mode '{value}'")

    options, operands = interpreter.options(words, "m:", check=check)
    mode = options.get("m", "off")
    if not operands:
        raise Misused
    length = interpreter.number(operands[0], shown=words[1])  # more operands are let pass
    root = interpreter.root
    perm = root.perm
    root.set_permissions(perm | permissions.RESIZE, root.shared)
    try:
        interpreter.node.truncate(length, preallocation=mode, exact=False)
    finally:
        root.set_permissions(perm, root.shared)


@io_command("length", "", "how long the image is", alias="l", most=0)
def length(interpreter: Interpreter, words: list[str]) -> None:
    """The size, for a person."""
    interpreter.out(io_size_text(_disk_size(interpreter.node)) + "\n")


@io_command("flush", "", "see that what was written is on the disk", alias="f", most=0)
def flush(interpreter: Interpreter, words: list[str]) -> None:
    """See that everything is on stable storage."""
    interpreter.root.flush(counted=False)


@io_command("info", "", "format, size of clusters, and what the format tells", alias="i", most=0)
def info(interpreter: Interpreter, words: list[str]) -> None:
    """Format, cluster size, and what the format has to tell."""
    from qobra.block.describe import value_lines

    node = interpreter.node
    # A protocol is shown as both.
    interpreter.out(f"format name: {node.driver}\n" * (2 if node.is_protocol() else 1))
    place: BlockNode | None = node
    while place is not None and (place.is_filter or place.is_transparent):
        place = place.primary()
    if place is None or not (place.is_format or place.is_leaf):
        return  # what is below has no such figures
    interpreter.out(
        f"cluster size: {io_size_text(node.cluster_size())}\nvm state offset: {io_size_text(place.vm_state_offset)}\n"
    )
    specific = node.info().get("format-specific")
    if specific and specific.get("data"):
        interpreter.out("Format specific information:\n")
        interpreter.detail("".join(f"{line}\n" for line in value_lines(specific["data"], 1)))


@io_command("alloc", "offset [count]", "how much of a range this layer holds itself", alias="a", least=1, most=2)
def alloc(interpreter: Interpreter, words: list[str]) -> None:
    """How much of a range the node holds itself."""
    start = interpreter.number(words[1])
    count = interpreter.number(words[2]) if len(words) > 2 else SECTOR
    end = min(_disk_size(interpreter.node), start + count)
    total = max(0, end - start)
    held = sum(size for _offset, size, held in _allocation(interpreter.node, start, end) if held)
    interpreter.out(f"{held}/{total} bytes allocated at offset {io_size_text(start)}\n")


@io_command("map", "", "which parts this layer holds itself", most=0)
def show_map(interpreter: Interpreter, words: list[str]) -> None:
    """What the node holds itself, and what it does not."""
    for offset, size, held in _allocation(interpreter.node, 0, _disk_size(interpreter.node)):
        interpreter.out(
            f"{io_size_text(size)} (0x{size:x}) bytes {'    allocated' if held else 'not allocated'} "
            f"at offset {io_size_text(offset)} (0x{offset:x})\n"
        )


def _disk_size(node: BlockNode) -> int:
    return -(-node.length // SECTOR) * SECTOR


def _allocation(node: BlockNode, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Runs ``(offset, size, held)`` of a range, merged."""
    while node.is_filter and node.filtered is not None:
        node = node.filtered
    last: tuple[int, int, bool] | None = None
    while start < end:
        inside = min(MAP_STEP, end - start, max(0, node.length - start))
        runs = [(each.length, each.kind != ABSENT) for each in node.map(start, inside)] if inside else []
        for size, held in runs or [(end - start, True)]:
            if last is not None and last[2] == held:
                last = (last[0], last[1] + size, held)
            else:
                if last is not None:
                    yield last
                last = (start, size, held)
            start += size
    if last is not None:
        yield last
