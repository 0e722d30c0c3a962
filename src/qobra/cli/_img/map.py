"""``map``: where the bytes of an image live, as text or as the reference's list of MapEntry."""

from __future__ import annotations

import sys
from itertools import islice

from qobra.block.extents import ABSENT, ALLOCATED, COMPUTED, DATA, UNALLOCATED, ZERO
from qobra.cli._img._pieces import disk_size
from qobra.cli._img.info import check_output
from qobra.cli._tool.opening import STORED_BITMAPS, command_line, node_of, opening
from qobra.cli._tool.report import Program, ToolError, usage
from qobra.native import compiled
from qobra.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from qobra.block.format.qcow2.packed import Block
    from qobra.block.node import BlockNode

_compiled = compiled("l2")

HELP = """\
map [-f FMT | --image-opts] [--start-offset OFFSET] [--max-length LENGTH] [--output human|json] [-U] [--object DEF]
FILENAME

Say where the bytes of an image live: in which file of the chain and at which offset, or that they read as zeroes.

  --start-offset OFFSET  begin there
  --max-length LENGTH    look at no more than that
"""

BATCH = 1000
STEP = 1 << 30
"""Bytes of the image that are looked at together: bounds the memory that a fragmented image takes."""


class Entry(NamedTuple):
    """A run of the image that one layer answers for; ``offset`` is None where it has no place in a file."""

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    offset: int | None
    file: BlockNode | None

    def follows(self, last: Entry) -> bool:
        """Whether the two are one run."""
        return (
            last[2:6] == self[2:6]
            and last.file is self.file
            and (self.offset is None) == (last.offset is None)
            and (self.offset is None or last.offset is None or last.offset + last.length == self.offset)
        )


def main(program: Program, arguments: list[str]) -> int:
    """Run the subcommand."""
    start, limit = 0, -1

    def look(option: str, value: str) -> None:
        nonlocal start, limit
        if option == "s":
            start = program.number("start offset", value)
        elif option == "l":
            limit = program.number("max length", value)

    line, images = command_line(
        program,
        arguments,
        "f:s:l:U",
        ("format=|f", "output=", "image-opts", "force-share|U", "start-offset=|s", "max-length=|l"),
        look,
    )
    with images:
        if len(line.operands) != 1:
            raise usage("Expecting one image file name")
        is_json = check_output(line)
        node = node_of(images.open(line.operands[0], **opening(line), options=STORED_BITMAPS))
        size = disk_size(node)
        end = size if limit < 0 else min(size, start + limit)
        blocks = node.packed_map(start, end) if start < end <= node.length else None
        entries = walk(node, start, end) if blocks is None else _unpacked(blocks, node.file)
        if is_json and blocks is not None and _compiled is not None:
            _print_lines(_compiled.json_lines(*block) for block in blocks)
        elif is_json:
            _print_json(entries, start)
        else:
            _print_human(entries)
    return 0


def _print_json(entries: Iterator[Entry], start: int) -> None:
    # Many at once: a fragmented image has millions.
    batches = iter(lambda: ",\n".join(_json_entry(entry) for entry in islice(entries, BATCH)), "")
    _print_lines(
        batches, f'{{ "start": {start}, "length": 0, "depth": 0, "present": false, "zero": false, "data": false}}'
    )


def _print_lines(batches: Iterator[str], nothing: str = "") -> None:
    opening = "["
    for batch in batches:
        sys.stdout.write(opening + batch)
        opening = ",\n"
    sys.stdout.write("]\n" if opening != "[" else f"[{nothing}]\n")


def _unpacked(blocks: Iterator[Block], file: BlockNode) -> Iterator[Entry]:
    from qobra.block.format.qcow2.packed import NOWHERE

    for runs, count in blocks:
        for at in range(0, 4 * count, 4):
            start, length, kind, place = runs[at : at + 4]
            offset = place if place != NOWHERE else None
            present, zero, data = kind != ABSENT, kind not in (DATA, COMPUTED), kind not in (ABSENT, ZERO)
            yield Entry(start, length, 0, present, zero, data, offset, file if offset is not None else None)


def _json_entry(entry: Entry) -> str:
    start, length, depth, present, zero, data, offset, _file = entry
    place = "" if offset is None else f', "offset": {offset}'
    return (
        f'{{ "start": {start}, "length": {length}, "depth": {depth}, "present": {_word(present)}, '
        f'"zero": {_word(zero)}, "data": {_word(data)}{place}}}'
    )


def _word(value: bool) -> str:
    return "true" if value else "false"


def _print_human(entries: Iterator[Entry]) -> None:
    print(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File")
    for entry in entries:
        if not entry.data or entry.zero:
            continue
        if entry.offset is None or entry.file is None:
            raise ToolError("File contains external, encrypted or compressed clusters.")
        print(
            f"{hexadecimal(entry.start):<16}{hexadecimal(entry.length):<16}{hexadecimal(entry.offset):<16}{entry.file.filename}"
        )


def hexadecimal(value: int) -> str:
    """As printf's ``%#x``, which leaves a plain 0."""
    return f"{value:#x}" if value else "0"


def walk(node: BlockNode, start: int, end: int) -> Iterator[Entry]:
    """The entries of ``node`` between ``start`` and ``end``, merged where they touch."""
    last: Entry | None = None
    while start < end:
        length = min(STEP, end - start)
        for entry in _padded(node, start, length):
            if last is not None and entry.follows(last):
                last = last._replace(length=last.length + entry.length)
            else:
                if last is not None:
                    yield last
                last = entry
        start += length
    if last is not None:
        yield last


def _padded(node: BlockNode, start: int, length: int) -> Iterator[Entry]:
    """Entries of a range that may end in the last, incomplete sector of a file."""
    inside = max(0, min(length, node.length - start))
    plain = node
    while plain.is_transparent and plain.children:
        plain = plain.file
    last: Entry | None = None
    for entry in _entries(node, start, inside, 0, 0) if inside else ():
        if last is not None:
            yield last
        last = entry
    if last is not None:
        if plain.request_alignment > 1:
            # Of a file that does whole sectors only, a sector is as a whole what is said of its last byte.
            last = last._replace(length=last.length + length - inside)
            inside = length
        yield last
    if inside < length:
        offset, file = (start + inside, plain) if plain.is_leaf else (None, None)
        yield Entry(start + inside, length - inside, 0, True, True, False, offset, file)


def _entries(node: BlockNode, start: int, length: int, shift: int, depth: int) -> Iterator[Entry]:
    """What ``length`` bytes from ``start`` of ``node`` are; the image's offset is ``start + shift``."""
    while node.is_filter and node.filtered is not None:
        node = node.filtered
    for extent in node.map(start, length):
        size = extent.length
        kind = extent.kind
        child = extent.child
        if kind == ABSENT:
            backing = node.backing
            inside = 0 if backing is None else max(0, min(size, backing.length - start))
            if inside and backing is not None:
                yield from _entries(backing, start, inside, shift, depth + 1)
            if inside < size:
                yield Entry(start + shift + inside, size - inside, depth, False, True, False, None, None)
        elif kind == COMPUTED:
            held = not extent.flags & UNALLOCATED
            yield Entry(start + shift, size, depth, held, False, held, None, None)
        elif kind == DATA and child is not None and child is not node:
            yield from _below(node, child, start + shift, extent.offset, size, depth)
        else:
            absent = bool(extent.flags & UNALLOCATED)
            data = (kind == DATA and not absent) or bool(extent.flags & ALLOCATED)
            place = extent.offset if child is not None and not absent else None
            yield Entry(start + shift, size, depth, not absent, kind == ZERO, data, place, child)
        start += size


def _below(node: BlockNode, child: BlockNode, start: int, offset: int, length: int, depth: int) -> Iterator[Entry]:
    """A raw node is what its file is; another node's data keeps the place in its own file."""
    if node.is_transparent:
        inside = max(0, min(length, child.length - offset))
        if inside:
            yield from _entries(child, offset, inside, start - offset, depth)
        if inside < length:
            yield Entry(start + inside, length - inside, depth, True, True, False, None, None)
    elif child.is_leaf and _may_be_holes(node):
        inside = max(0, min(length, child.length - offset))
        for extent in child.map(offset, inside) if inside else ():
            yield Entry(start, extent.length, depth, True, extent.kind == ZERO, True, offset, child)
            start, offset = start + extent.length, offset + extent.length
        if inside < length:
            yield Entry(start, length - inside, depth, True, True, True, offset, child)
    else:
        yield Entry(start, length, depth, True, False, True, offset, child)


def _may_be_holes(node: BlockNode) -> bool:
    """Whether the driver thinks that its data may be holes of the file; asked once for each node."""
    known: bool | None = node.__dict__.get("_data_may_be_holes")
    if known is None:
        known = node.__dict__["_data_may_be_holes"] = node.data_may_be_holes()
    return known
