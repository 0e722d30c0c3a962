"""A set of small integers as bits: sparse, fast on ranges, in the layout that images and sockets want.

The bits lie in pages of 4 KiB. A page that is all clear is not there, and pages that are all set share one constant,
so that a bitmap of an empty or wholly dirty disk of many terabytes takes no memory. Inside a page, the lowest bit of
the first byte is the lowest number: bytes of the set can be stored as they are (qcow2's bitmaps, "qcow2 spec,
Bitmaps"). Big integers do the work on whole pages.

A page may also be left where it is stored, and is read then whenever it is looked at (:class:`Stored`).

Not thread-safe; :class:`qobra.block.bitmap.DirtyBitmap` has the lock.
"""

from __future__ import annotations

from qobra.native import compiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PAGE_BITS = 15
"""Numbers in a page, as a power of two."""
PAGE_SIZE = 1 << PAGE_BITS
PAGE_BYTES = PAGE_SIZE >> 3

_FULL = b"\xff" * PAGE_BYTES
_EMPTY = bytes(PAGE_BYTES)

Page = bytes | bytearray


class Stored:
    """A page that is not in memory: ``read(offset, length)`` gives it. For those who hold large sets for a moment."""

    __slots__ = ("_offset", "_read")

    def __init__(self, read: Callable[[int, int], bytes], offset: int) -> None:
        self._read = read
        self._offset = offset

    def read(self) -> bytes:
        """The page."""
        return self._read(self._offset, PAGE_BYTES)


def pure_union(mine: Page, theirs: Page) -> Page:
    """What is in one of two pages of the same size: ``mine`` itself where that is all, else new bytes."""
    before = int.from_bytes(mine, "little")
    value = before | int.from_bytes(theirs, "little")
    return mine if value == before else value.to_bytes(len(mine), "little")


class Bits:
    """A subset of ``range(size)``."""

    __slots__ = ("changed", "pages", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = True
        """Has been changed since somebody set this to False."""
        self.pages: dict[int, Page | Stored] = {}

    def _get(self, number: int) -> Page | None:
        page = self.pages.get(number)
        return page.read() if isinstance(page, Stored) else page

    def copy(self) -> Bits:
        """An independent set of the same numbers."""
        result = Bits(self.size)
        result.pages = {
            number: bytes(page) if isinstance(page, bytearray) else page for number, page in self.pages.items()
        }
        return result

    def __contains__(self, number: int) -> bool:
        page = self._get(number >> PAGE_BITS)
        return page is not None and bool(page[(number & PAGE_SIZE - 1) >> 3] & 1 << (number & 7))

    def count(self) -> int:
        """How many numbers are in the set."""
        total = 0
        for page in self.pages.values():
            if page is _FULL:
                total += PAGE_SIZE
            else:
                total += int.from_bytes(page.read() if isinstance(page, Stored) else page, "little").bit_count()
        return total

    # -- changing ---------------------------------------------------------------------------------------------

    def set(self, first: int, end: int) -> None:
        """Add ``range(first, end)``."""
        self._assign(first, min(end, self.size), True)

    def clear(self, first: int, end: int) -> None:
        """Remove ``range(first, end)``."""
        self._assign(first, min(end, self.size), False)

    def _assign(self, first: int, end: int, value: bool) -> None:
        self.changed = True
        while first < end:
            number = first >> PAGE_BITS
            base = number << PAGE_BITS
            stop = min(end, base + PAGE_SIZE)
            if stop - first == PAGE_SIZE:
                if value:
                    self.pages[number] = _FULL
                else:
                    self.pages.pop(number, None)
            else:
                page = self.pages.get(number)
                if value and page is not _FULL:
                    _fill(self._writable(number), first - base, stop - base, True)
                elif not value and page is not None:
                    _fill(self._writable(number), first - base, stop - base, False)
            first = stop

    def _writable(self, number: int) -> bytearray:
        page = self._get(number)
        if not isinstance(page, bytearray):
            page = self.pages[number] = bytearray(page or PAGE_BYTES)
        return page

    def merge(self, other: Bits) -> None:
        """Add every number of ``other``, which has the same size."""
        form = compiled("bits")  # not at import, which every program pays for
        union = pure_union if form is None else form.union
        self.changed = True
        for number, theirs in other.pages.items():
            mine = self._get(number)
            if mine is None or theirs is _FULL:
                self.pages[number] = bytes(theirs) if isinstance(theirs, bytearray) else theirs
            elif mine is not _FULL:
                both = union(mine, theirs.read() if isinstance(theirs, Stored) else theirs)
                if both is not mine:
                    self.pages[number] = _FULL if both == _FULL else both

    def resize(self, size: int) -> None:
        """Let the set be one of ``range(size)``: numbers past it are dropped, new ones are not in the set."""
        if size < self.size:
            self.clear(size, self.size)
            for number in [number for number in self.pages if number << PAGE_BITS >= size]:
                del self.pages[number]
        self.size = size
        self.changed = True

    def add_pages(self, pages: Iterable[tuple[int, bytes]]) -> None:
        """Add what is in whole ``pages``, given by their numbers; numbers past the end are dropped."""
        other = Bits(self.size)
        for number, page in pages:
            other.load(number << PAGE_BITS, page)
        self.merge(other)

    # -- finding ----------------------------------------------------------------------------------------------

    def next_set(self, first: int, end: int) -> int:
        """The lowest number of the set in ``range(first, end)``, or ``end`` where there is none."""
        end = min(end, self.size)
        if len(self.pages) < (end - first) >> PAGE_BITS >> 3:
            return self._next_set_sparse(first, end)
        while first < end:
            page = self._get(first >> PAGE_BITS)
            if page is not None:
                found = _find(page, first & PAGE_SIZE - 1, False)
                if found < PAGE_SIZE:
                    return min(end, (first & -PAGE_SIZE) + found)
            first = (first & -PAGE_SIZE) + PAGE_SIZE
        return max(end, 0)

    def _next_set_sparse(self, first: int, end: int) -> int:
        """:meth:`next_set` where looking at the pages that exist is less work than asking for each."""
        for number in sorted(number for number in tuple(self.pages) if number >= first >> PAGE_BITS):
            base = number << PAGE_BITS
            page = self._get(number)
            if page is not None:
                found = _find(page, max(0, first - base), False)
                if found < PAGE_SIZE:
                    return min(end, base + found)
        return end

    def next_clear(self, first: int, end: int) -> int:
        """The lowest number in ``range(first, end)`` that is not in the set, or ``end``."""
        end = min(end, self.size)
        while first < end:
            page = self._get(first >> PAGE_BITS)
            if page is None:
                return first
            if page is not _FULL:
                found = _find(page, first & PAGE_SIZE - 1, True)
                if found < PAGE_SIZE:
                    return min(end, (first & -PAGE_SIZE) + found)
            first = (first & -PAGE_SIZE) + PAGE_SIZE
        return end

    def runs(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """The longest ranges ``(start, stop)`` of the set inside ``range(first, end)``, in order.

        The set may change meanwhile; what lies behind the iterator is not looked at again.
        """
        end = min(end, self.size)
        while (start := self.next_set(first, end)) < end:
            first = self.next_clear(start, end)
            yield start, first

    # -- as bytes ---------------------------------------------------------------------------------------------

    def to_bytes(self, first: int, end: int) -> bytes:
        """The bits of ``range(first, end)`` as bytes, lowest bit first; ``first`` is a multiple of 8."""
        parts = []
        while first < end:
            base = first & -PAGE_SIZE
            stop = min(end, base + PAGE_SIZE)
            low, high = (first - base) >> 3, (stop - base + 7) >> 3
            page = self._get(first >> PAGE_BITS)
            parts.append(_EMPTY[low:high] if page is None else page[low:high])
            first = stop
        return b"".join(parts)

    def refer(self, first: int, read: Callable[[int, int], bytes], offset: int, length: int) -> None:
        """:meth:`load` of ``length`` bytes at ``offset`` that stay where they are, where whole pages of the set do."""
        end = offset + length
        self.changed = True
        while offset < end and first < self.size:
            if not first & PAGE_SIZE - 1 and end - offset >= PAGE_BYTES and self.size - first >= PAGE_SIZE:
                self.pages[first >> PAGE_BITS] = Stored(read, offset)
                size = PAGE_BYTES
            else:
                size = min(end - offset, PAGE_BYTES - ((first & PAGE_SIZE - 1) >> 3))
                self.load(first, read(offset, size))
            offset += size
            first += size << 3

    def load(self, first: int, data: bytes | bytearray | memoryview) -> None:
        """Take the bits from number ``first``, a multiple of 8, on from ``data``; bits past the end are dropped."""
        position = 0
        self.changed = True
        while position < len(data) and first < self.size:
            low = (first & PAGE_SIZE - 1) >> 3
            part = bytes(data[position : position + PAGE_BYTES - low])
            number = first >> PAGE_BITS
            if len(part) == PAGE_BYTES:
                if part == _EMPTY:
                    self.pages.pop(number, None)
                else:
                    self.pages[number] = _FULL if part == _FULL else part
            elif any(part) or number in self.pages:
                self._writable(number)[low : low + len(part)] = part
            position += len(part)
            first += len(part) << 3
        if first > self.size and self.size & PAGE_SIZE - 1 and self.size >> PAGE_BITS in self.pages:
            _fill(self._writable(self.size >> PAGE_BITS), self.size & PAGE_SIZE - 1, PAGE_SIZE, False)


def _fill(page: bytearray, first: int, end: int, value: bool) -> None:
    """Set or clear ``range(first, end)`` of a page."""
    low, high = first >> 3, end >> 3
    head = 0xFF << (first & 7) & 0xFF
    tail = 0xFF >> (8 - (end & 7))
    if low == high:
        head &= tail
        page[low] = page[low] | head if value else page[low] & ~head
        return
    page[low] = page[low] | head if value else page[low] & ~head
    if high - low > 1:
        page[low + 1 : high] = _FULL[: high - low - 1] if value else bytes(high - low - 1)
    if tail:
        page[high] = page[high] | tail if value else page[high] & ~tail


def _find(page: Page, first: int, invert: bool) -> int:
    """The lowest set (or, inverted, clear) bit of the page from ``first`` on; PAGE_SIZE where there is none."""
    low = first >> 3
    # What is looked for is mostly near, so look at 8 bytes before the rest.
    for start, end in ((low, low + 8), (low + 8, PAGE_BYTES)):
        part = page[start:end]
        value = int.from_bytes(part, "little")
        if invert:
            value ^= (1 << (len(part) << 3)) - 1
        if start == low:
            value &= -1 << (first & 7)
        if value:
            return (start << 3) + (value & -value).bit_length() - 1
    return PAGE_SIZE
