"""The ``null-co`` driver: reads as zeroes or as garbage, keeps nothing."""

from __future__ import annotations

from collections.abc import Sequence

from qobra.block import permissions
from qobra.block.buffers import Buffer, fill_zero
from qobra.block.extents import COMPUTED, UNALLOCATED, ZERO, Extent
from qobra.block.node import BlockNode, Options, drivers
from qobra.block.opening import Opening
from qobra.errors import QobraError


@drivers.register("null-co")
class NullNode(BlockNode):
    """``size`` bytes (1 GiB) that swallow writes; with ``read-zeroes`` they read as zeroes.

    ``latency-ns`` is slept in each request.
    """

    driver = "null-co"
    protocols = ("null-co",)
    strong_options = ("size", "read-zeroes")
    reports_info = False

    @classmethod
    def parse_filename(cls, filename: str) -> Options | None:
        if filename != f"{cls.driver}://":
            raise QobraError(f"The only allowed filename for this driver is '{cls.driver}://'")
        return {"driver": cls.driver}

    def open(self, opening: Opening) -> None:
        self.length = opening.options.get("size", 1 << 30)
        self._latency_ns = opening.options.get("latency-ns", 0)
        self._read_zeroes = opening.options.get("read-zeroes", False)
        if self.length < 0:
            raise QobraError("Parameter 'size' expects a non-negative number below 2^64")
        if not 0 <= self._latency_ns < 1 << 63:
            raise QobraError("latency-ns is invalid")

    def plain_filename(self, options: Options) -> str:
        return f"{self.driver}://" if options.keys() <= {"driver", "filename"} else ""

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        if self._read_zeroes and not self._latency_ns:
            return (Extent(length, ZERO, self, offset),)
        return (Extent(length, COMPUTED, None, offset, 0 if self._read_zeroes else UNALLOCATED),)

    def _read(self, offset: int, view: memoryview) -> None:
        self._sleep()
        if self._read_zeroes:
            fill_zero(view)

    def read_computed(self, offset: int, view: memoryview) -> None:
        self._read(offset, view)

    def check_write(self, offset: int, length: int) -> None:
        if self.perm & permissions.RESIZE:
            # Like a file it grows under whoever may resize it.
            length = min(length, max(0, self.length - offset))
            offset = min(offset, self.length)
        super().check_write(offset, length)

    def written(self, offset: int, length: int) -> None:
        self.length = max(self.length, offset + length)
        super().written(offset, length)

    def _write(self, offset: int, data: Buffer) -> None:
        self._sleep()

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        self._sleep()
        return True

    def _flush(self) -> None:
        self._sleep()

    def _sleep(self) -> None:
        if self._latency_ns:
            import time

            time.sleep(self._latency_ns / 1e9)

    def has_zero_init(self) -> bool:
        return True

    def allocated_size(self) -> int | None:
        return 0
