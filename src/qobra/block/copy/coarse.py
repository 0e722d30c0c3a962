"""What lies where, as far as a copy is to follow it: holes in a file count where they are whole units.

A guest that writes 4 KiB here and there leaves clusters in its image's file that are mostly holes. To look each of them
up, and to copy around it, takes longer than to copy the cluster.
"""

from __future__ import annotations

import errno

from qobra.block.copy.ranges import may_read_past
from qobra.block.extents import DATA, ZERO, resolve
from qobra.block.protocol.file import FileNode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.extents import Run
    from qobra.block.node import BlockNode

UNIT = 64 << 10
"""Bytes of a hole that is worth to be looked for."""


def resolve_coarse(node: BlockNode, start: int, length: int) -> list[Run]:
    """:func:`resolve` with the leaves' holes, those of files only where they are whole units of ``node``.

    The runs tell where to read what is not zero, as long as nothing under ``node`` has to see the reads.
    """
    if not may_read_past(node):
        return resolve(node, start, length, want_zero=True)
    runs: list[Run] = []
    for run in resolve(node, start, length):
        leaf = run.leaf
        if run.kind != DATA or leaf is None or leaf.children:
            runs.append(run)
        else:
            # What lies past the end of the leaf was never written.
            inside = max(0, min(run.length, leaf.length - run.offset))
            if inside:
                within = run if inside == run.length else run._replace(length=inside)
                runs += _split(within, leaf) if isinstance(leaf, FileNode) else _with_zeroes(within, leaf)
            if inside < run.length:
                start, size = run.start + inside, run.length - inside
                runs.append(run._replace(start=start, length=size, kind=ZERO, leaf=None, offset=0))
    return runs


def _with_zeroes(run: Run, leaf: BlockNode) -> list[Run]:
    """``run`` as ``leaf`` itself knows it."""
    shift = run.start - run.offset
    return [
        each._replace(start=each.start + shift, flags=run.flags, depth=run.depth, layer=run.layer)
        for each in resolve(leaf, run.offset, run.length, want_zero=True)
    ]


def _split(run: Run, leaf: FileNode) -> list[Run]:
    """``run`` with the holes of its file as ZERO."""
    runs: list[Run] = []
    position, end = run.start, run.start + run.length
    shift = run.offset - run.start
    data = position  # up to here nothing is known to be zero
    while position < end:
        try:
            found = leaf.next_data(position + shift) - shift
        except OSError as error:
            if error.errno != errno.ENXIO:
                break  # the file system cannot tell
            found = end
        first = -(-position // UNIT) * UNIT
        last = end if found >= end else found // UNIT * UNIT
        if first < last:
            if data < first:
                runs.append(run._replace(start=data, length=first - data, offset=data + shift))
            runs.append(run._replace(start=first, length=last - first, offset=first + shift, kind=ZERO))
            data = last
        # A hole that begins in the same unit counts from the next one on at most.
        position = found // UNIT * UNIT + UNIT
        if position >= end:
            break
        try:
            position = leaf.next_hole(position + shift) - shift
        except OSError:
            break
    if data == run.start:
        return [run]
    if data < end:
        runs.append(run._replace(start=data, length=end - data, offset=data + shift))
    return runs
