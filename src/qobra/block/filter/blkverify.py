"""The ``blkverify`` driver: does everything to two images, and stops the process when they read differently."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NoReturn

from qobra.block import permissions
from qobra.block.buffers import Buffer
from qobra.block.extents import COMPUTED, DATA, Extent
from qobra.block.node import BlockNode, Options, drivers
from qobra.block.opening import Opening
from qobra.errors import QobraError
from qobra.report import print_error


@drivers.register("blkverify")
class BlkverifyNode(BlockNode):
    """``test`` is the image under test, ``raw`` holds what it should read. A difference ends the process at once."""

    driver = "blkverify"
    protocols = ("blkverify",)
    can_reopen = False
    named_by_prefix = True
    strong_options = ()
    is_filter = True
    is_transparent = True
    sees_reads = True

    @classmethod
    def parse_filename(cls, filename: str) -> Options | None:
        from qobra.block.filename import parse_filename

        if not filename.startswith("blkverify:"):
            # Named by its driver, it takes a name for that of the image under test.
            return {"driver": cls.driver, "test": {"file": parse_filename(filename)}}
        raw, colon, test = filename[10:].partition(":")
        if not colon:
            raise QobraError("blkverify requires raw copy and original image path", errno=errno.EINVAL)
        return {"driver": cls.driver, "raw": parse_filename(raw), "test": {"file": parse_filename(test)}}

    @property
    def filtered(self) -> BlockNode | None:
        return self.children.get("raw")

    @property
    def _raw(self) -> BlockNode:
        return self.children["raw"]

    @property
    def _test(self) -> BlockNode:
        return self.children["test"]

    def plain_filename(self, options: Options) -> str:
        raw, test = self._raw.exact_filename, self._test.exact_filename
        return f"blkverify:{raw}:{test}" if raw and test else ""

    def cluster_size(self) -> int:
        return self._raw.cluster_size()

    def allocated_size(self) -> int | None:
        return None  # as of a protocol that cannot tell

    def open(self, opening: Opening) -> None:
        opening.child("raw", permissions.ROLE_FILTERED | permissions.ROLE_PRIMARY)
        opening.child("test", permissions.ROLE_DATA)
        self.length = self._test.length

    def child_resized(self, name: str) -> None:
        self.length = self._test.length

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        if want_zero:
            return (Extent(length, DATA, self._raw, offset),)  # which holds what; for data the filter is asked
        return (Extent(length, COMPUTED),)

    def read_computed(self, offset: int, view: memoryview) -> None:
        self._test.read_into(offset, view)
        expected = self._raw.read(offset, len(view))
        if view != expected:
            end_for_mismatch("blkverify: read", offset, view, expected)

    def plain_writes(self) -> bool:
        return False

    def _write(self, offset: int, data: Buffer) -> None:
        self._test.write(offset, data)
        self._raw.write(offset, data)

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        self._raw.truncate(length, preallocation=preallocation, exact=exact)

    def flush(self) -> None:
        # Only the image under test matters: the raw one is scratch.
        self._test.flush()


def end_for_mismatch(who: str, offset: int, data: Buffer, expected: Buffer) -> NoReturn:
    """End the process, as the user asked for: two images of the same disk read differently."""
    pairs = zip(memoryview(data), memoryview(expected), strict=True)
    where = next(index for index, (one, other) in enumerate(pairs) if one != other)
    print_error(f"{who} offset={offset} bytes={len(expected)} contents mismatch at offset {offset + where}")
    os._exit(1)
