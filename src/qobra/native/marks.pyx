"""What loops without the GIL have written, for a dirty bitmap to take over: bits that are set one by one and taken a page
at a time, both atomically.

A bitmap's own bits stay where they are and under its lock. Loops set bits here, and whoever looks at the bitmap takes
them first (:meth:`Marks.take`), so that for everybody else a mark is in the bitmap from the moment that it was set. Memory
of a page, once there, stays for as long as the object.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free

from qobra.native.atomics cimport (
    install_page, or_word, peek, peek_byte, peek_page, peek_word, put, put_byte, swap, swap_byte, swap_word,
)
from qobra.native.build cimport join_build

join_build(__name__)

cdef extern from "<endian.h>" nogil:
    uint64_t htole64(uint64_t)

cdef enum:
    PAGE_BITS = 15                       # granules of a page, as in qobra.block.bits
    PAGE_GRANULES = 1 << PAGE_BITS
    PAGE_WORDS = PAGE_GRANULES >> 6
    PAGE_BYTES = PAGE_GRANULES >> 3
    MOST_PAGES = 1 << 20                 # 16 TiB at 512 bytes, 2 PiB at 64 KiB


cdef class Marks:
    """Marks of ``granules`` granules of ``1 << shift`` bytes. Raises ValueError for more than can be kept."""

    def __cinit__(self, uint64_t granules, int shift):
        cdef size_t pages = <size_t>((granules >> PAGE_BITS) + 1)
        if not 0 <= shift < 63 or granules >> PAGE_BITS >= MOST_PAGES:
            raise ValueError("more granules than marks are kept of")
        self.table.granules, self.table.shift, self.table.page_count = granules, shift, pages
        self.table.pages = <uint64_t **>calloc(pages, sizeof(uint64_t *))
        self.table.page_waits = <uint8_t *>calloc((pages + 7) >> 3, 8)
        if self.table.pages == NULL or self.table.page_waits == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef size_t number
        if self.table.pages != NULL:
            for number in range(self.table.page_count):
                free(self.table.pages[number])
        free(self.table.pages)
        free(self.table.page_waits)

    @property
    def waiting(self):
        """Whether there is something to take."""
        return peek(&self.table.waits) != 0

    def mark(self, uint64_t offset, uint64_t length):
        """Mark the granules that ``length`` bytes from ``offset`` touch; those past the end are left out."""
        with nogil:
            add_marks(&self.table, offset, length)

    def take(self):
        """The marks since the last call, as (page number, bytes of the page); None: everything is marked. Not for several
        threads at once."""
        cdef MarkTable *table = &self.table
        cdef size_t number
        cdef bint everything
        if not swap(&table.waits, 0):
            return []
        everything = swap(&table.all, 0) != 0
        found = []
        for number in range(table.page_count):
            if number & 7 == 0 and not peek_word(<uint64_t *>&table.page_waits[number]):
                # None of these eight; what is marked from now on is told of once more.
                continue
            if peek_byte(&table.page_waits[number]) and swap_byte(&table.page_waits[number], 0):
                found.append((number, take_page(peek_page(&table.pages[number]))))
        return None if everything else found


cdef bytes take_page(uint64_t *page):
    cdef bytes result = PyBytes_FromStringAndSize(NULL, PAGE_BYTES)
    cdef uint64_t *out = <uint64_t *>PyBytes_AS_STRING(result)
    cdef size_t index
    for index in range(<size_t>PAGE_WORDS):
        out[index] = swap_word(page + index, 0) if peek_word(page + index) else 0
    return result


cdef uint64_t *page_at(MarkTable *table, size_t number) noexcept nogil:
    """The page, new if it was not there; NULL if there is no memory."""
    cdef uint64_t *page = peek_page(&table.pages[number])
    if page == NULL:
        page = <uint64_t *>calloc(1, PAGE_BYTES)
        if page != NULL and not install_page(&table.pages[number], page):
            free(page)  # another thread was first
            page = peek_page(&table.pages[number])
    return page


cdef void add_marks(MarkTable *table, uint64_t offset, uint64_t length) noexcept nogil:
    """See :meth:`Marks.mark`. What was written before the call is seen by whoever takes a mark."""
    cdef uint64_t first, last, word, mask
    cdef uint64_t *page
    cdef size_t number
    if not length or length > <uint64_t>0xFFFFFFFFFFFFFFFF - offset:
        return
    first, last = offset >> table.shift, (offset + length - 1) >> table.shift
    if first >= table.granules:
        return
    last = min(last, table.granules - 1)
    while True:
        number = <size_t>(first >> PAGE_BITS)
        page = page_at(table, number)
        if page == NULL:
            put(&table.all, 1)
            put(&table.waits, 1)
            return
        while True:
            word = first >> 6
            mask = <uint64_t>0xFFFFFFFFFFFFFFFF << (first & 63)
            if last >> 6 == word:
                mask &= <uint64_t>0xFFFFFFFFFFFFFFFF >> (63 - (last & 63))
            mask = htole64(mask)
            # A bit that is there already is taken after this.
            if peek_word(&page[word & (PAGE_WORDS - 1)]) & mask != mask:
                or_word(&page[word & (PAGE_WORDS - 1)], mask)
            first = (word + 1) << 6
            if first > last or not first & (PAGE_GRANULES - 1):
                break
        # The other way round than they are taken. Also for bits that were there: who set them may not have got here.
        if not peek_byte(&table.page_waits[number]):
            put_byte(&table.page_waits[number], 1)
        if not peek(&table.waits):
            put(&table.waits, 1)
        if first > last:
            return
