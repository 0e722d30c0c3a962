"""Sets of pages of memory, by the number of their block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_IN, _OUT = b"\1", b"\0"


class PageSet:
    """Some of the pages of blocks, of which ``pages`` has the sizes. ``count`` says how many.

    A byte a page: 256 KiB for a GiB. Not safe for threads.
    """

    def __init__(self, pages: Sequence[int]) -> None:
        self._empty(pages)

    def _empty(self, pages: Sequence[int]) -> None:
        self._flags = [bytearray(size) for size in pages]
        self._low = [0] * len(self._flags)
        """Nothing of a block lies before it."""
        self.count = 0

    def add(self, block: int, first: int, count: int) -> None:
        """Put ``count`` pages in."""
        flags = self._flags[block]
        self.count += count - flags.count(_IN, first, first + count)
        flags[first : first + count] = _IN * count
        self._low[block] = min(self._low[block], first)

    def remove(self, block: int, first: int, count: int) -> None:
        """Take ``count`` pages out, those of them that are in."""
        flags = self._flags[block]
        self.count -= flags.count(_IN, first, first + count)
        flags[first : first + count] = _OUT * count

    def clear(self) -> None:
        """Take all out."""
        self._empty([len(flags) for flags in self._flags])

    def any(self, block: int, first: int, count: int) -> bool:
        """Whether any of ``count`` pages is in."""
        return self._flags[block].find(_IN, first, first + count) >= 0

    def runs(self, block: int, first: int, count: int) -> Iterator[tuple[int, int]]:
        """The first page and the number of pages of each run that is in, among ``count`` pages."""
        flags = self._flags[block]
        end = min(first + count, len(flags))
        while (start := flags.find(_IN, first, end)) >= 0:
            first = flags.find(_OUT, start, end)
            if first < 0:
                first = end
            yield start, first - start

    def all_runs(self) -> Iterator[tuple[int, int, int]]:
        """Every run: its block, its first page, its number of pages."""
        for block, flags in enumerate(self._flags):
            for first, count in self.runs(block, 0, len(flags)):
                yield block, first, count

    def next_run(self, limit: int) -> tuple[int, int, int] | None:
        """The first run, cut off after ``limit`` pages; None where nothing is in."""
        for block, flags in enumerate(self._flags):
            start = flags.find(_IN, self._low[block])
            self._low[block] = len(flags) if start < 0 else start
            if start >= 0:
                end = flags.find(_OUT, start, start + limit)
                return block, start, (min(limit, len(flags) - start) if end < 0 else end - start)
        return None
