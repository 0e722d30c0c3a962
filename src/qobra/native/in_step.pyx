"""Two disks that are kept in step by whoever writes one of them, without the GIL.

A mirror copies a disk, and copies once more what was written meanwhile. For each small write of a guest that is a mark,
a read and a write, by a thread that takes its processor from the guest's; where source and target are the same already,
the guest's own thread has the data at hand, and one write more keeps them the same.

A granule is *apart*, or *in step*. Who writes the source takes the *lane* of the place, and writes the target as well
if the granules are in step; else, or if another holds the lane, or if the target cannot be written at once, they are
marked in the dirty bitmap after the write, and are apart. The job that copies says that granules are apart
(:meth:`InStep.hold`) and waits for those who hold a lane; then whatever is written to the source is either in the
target already, or will be marked. So it may clear their marks, copy them and say that they are in step
(:meth:`InStep.release`), in this order. A mark that comes from elsewhere, by who knows nothing of this, does not
matter: what is marked is copied, and before that all lanes are waited for.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from qobra.native.atomics cimport and_word, install_page, or_word, peek, peek_page, peek_word, put, swap
from qobra.native.build cimport join_build
from qobra.native.marks cimport Marks

join_build(__name__)

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <time.h>
    #include <unistd.h>
    #define qobra_peek_target(pointer) __atomic_load_n((pointer), __ATOMIC_SEQ_CST)
    #define qobra_put_target(pointer, value) __atomic_store_n((pointer), (value), __ATOMIC_SEQ_CST)
    static inline int64_t qobra_now(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
    }
    """
    void *peek_target "qobra_peek_target"(void **)
    void put_target "qobra_put_target"(void **, void *)
    int64_t now_ns "qobra_now"()
    int usleep(unsigned)

cdef enum:
    PAGE_BITS = 15                  # granules of a page
    PAGE_GRANULES = 1 << PAGE_BITS
    PAGE_WORDS = PAGE_GRANULES >> 6
    LANE_BITS = 16                  # a lane is for so many bytes of the disk, and for every sixteenth of such
    SLOW_NS = 5_000_000             # a write to the target that takes longer is too slow for a guest to wait for,
    REST = 20                       # and none is tried for so many times as long

cdef uint64_t ALL = 0xFFFFFFFFFFFFFFFF


cdef class InStep:
    """See ``in_step.pyi``."""

    def __cinit__(self, Marks marks not None):
        self._marks = marks
        self.table.marks = &marks.table
        self.table.page_count = <size_t>((marks.table.granules >> PAGE_BITS) + 1)
        self.table.pages = <uint64_t **>calloc(self.table.page_count, sizeof(uint64_t *))
        if self.table.pages == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef size_t number
        if self.table.pages != NULL:
            for number in range(self.table.page_count):
                free(self.table.pages[number])
        free(self.table.pages)

    @property
    def marks(self):
        return self._marks

    @property
    def target(self):
        return self._target

    def aim(self, target):
        from qobra.native.places import Places

        if target is self._target:
            return
        if target is not None and not isinstance(target, Places):
            raise TypeError("not places")
        put_target(&self.table.target, NULL)
        with nogil:
            wait_for_lanes(&self.table)
        self._target = target
        if target is not None:
            put_target(&self.table.target, <void *>target)

    def hold(self, uint64_t offset, uint64_t length):
        with nogil:
            set_apart(&self.table, offset, length)
            wait_for_lanes(&self.table)

    def hold_bits(self, uint64_t offset, bits):
        cdef Py_buffer view
        cdef uint64_t number = offset >> self.table.marks.shift, word
        cdef size_t index = 0
        cdef uint64_t *place
        if number & 7:
            raise ValueError("not where a byte of bits begins")
        PyObject_GetBuffer(bits, &view, PyBUF_SIMPLE)
        try:
            with nogil:
                while index < <size_t>view.len:
                    if (<uint8_t *>view.buf)[index]:
                        place = word_of(&self.table, number + 8 * index)
                        if place != NULL:
                            word = <uint64_t>(<uint8_t *>view.buf)[index] << ((number + 8 * index) & 63)
                            if peek_word(place) & word != word:
                                or_word(place, word)
                    index += 1
                wait_for_lanes(&self.table)
        finally:
            PyBuffer_Release(&view)

    def release(self, uint64_t offset, uint64_t length, uint64_t end):
        cdef int shift = self.table.marks.shift
        cdef uint64_t unit = <uint64_t>1 << shift
        cdef uint64_t first = (offset + unit - 1) >> shift
        cdef uint64_t stop = self.table.marks.granules if offset + length >= end else (offset + length) >> shift
        cdef uint64_t mask
        cdef uint64_t *place
        with nogil:
            while first < stop:
                mask = ALL << (first & 63)
                if stop - (first & ~<uint64_t>63) < 64:
                    mask &= ALL >> (64 - (stop & 63))
                place = new_word_of(&self.table, first)
                if place != NULL:
                    and_word(place, ~mask)
                first = (first | 63) + 1

    def release_bits(self, uint64_t offset, bits, left):
        cdef Py_buffer view, rest
        cdef uint64_t number = offset >> self.table.marks.shift
        cdef uint8_t done
        cdef size_t index = 0
        cdef uint64_t *place
        if number & 7:
            raise ValueError("not where a byte of bits begins")
        PyObject_GetBuffer(bits, &view, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(left, &rest, PyBUF_SIMPLE)
            try:
                if view.len != rest.len:
                    raise ValueError("not bits of the same granules")
                with nogil:
                    while index < <size_t>view.len:
                        done = (<uint8_t *>view.buf)[index] & ~(<uint8_t *>rest.buf)[index]
                        if done:
                            place = new_word_of(&self.table, number + 8 * index)
                            if place != NULL:
                                and_word(place, ~(<uint64_t>done << ((number + 8 * index) & 63)))
                        index += 1
            finally:
                PyBuffer_Release(&rest)
        finally:
            PyBuffer_Release(&view)

    def is_in_step(self, uint64_t offset, uint64_t length):
        return in_step(&self.table, offset, length)


cdef inline uint64_t *word_of(StepTable *table, uint64_t number) noexcept nogil:
    """Where the granule's bit is; NULL if it and all of its page are apart."""
    cdef uint64_t *page
    if number >= table.marks.granules:
        return NULL
    page = peek_page(&table.pages[number >> PAGE_BITS])
    return page + ((number >> 6) & (PAGE_WORDS - 1)) if page != NULL else NULL


cdef uint64_t *new_word_of(StepTable *table, uint64_t number) noexcept nogil:
    """The same, with a new page if need be; by the job's threads only. NULL if there is no memory."""
    cdef uint64_t *page
    if number < table.marks.granules and peek_page(&table.pages[number >> PAGE_BITS]) == NULL:
        page = <uint64_t *>malloc(8 * PAGE_WORDS)
        if page == NULL:
            return NULL
        memset(page, 0xFF, 8 * PAGE_WORDS)
        if not install_page(&table.pages[number >> PAGE_BITS], page):
            free(page)  # another thread was first
    return word_of(table, number)


cdef void set_apart(StepTable *table, uint64_t offset, uint64_t length) noexcept nogil:
    """Also after a write to the source that is not in the target, or not all of it; before its lane is left."""
    cdef int shift = table.marks.shift
    cdef uint64_t first = offset >> shift, last, mask
    cdef uint64_t *place
    if not length:
        return
    last = (offset + length - 1) >> shift
    while first <= last:
        mask = ALL << (first & 63)
        if last >> 6 == first >> 6:
            mask &= ALL >> (63 - (last & 63))
        place = word_of(table, first)
        if place != NULL and peek_word(place) & mask != mask:
            or_word(place, mask)
        first = (first | 63) + 1


cdef bint in_step(StepTable *table, uint64_t offset, uint64_t length) noexcept nogil:
    cdef int shift = table.marks.shift
    cdef uint64_t first = offset >> shift, last = (offset + length - 1) >> shift
    cdef uint64_t *place
    while first <= last:
        place = word_of(table, first)
        if place == NULL or peek_word(place) >> (first & 63) & 1:
            return False
        first += 1
    return True


cdef void wait_for_lanes(StepTable *table) noexcept nogil:
    """Wait for all who hold a lane now. Each holds it for a write or two."""
    cdef int index
    for index in range(LANES):
        while swap(&table.lanes[index].held, 1):
            usleep(20)
        put(&table.lanes[index].held, 0)


cdef void *get_target(StepTable *table) noexcept nogil:
    """What is to be written, too; it stays for as long as the lane is held. NULL: nothing."""
    return peek_target(&table.target)


cdef Lane *step_in(StepTable *table, uint64_t offset, uint64_t length) noexcept nogil:
    """Before a write to the source: the lane, if the target is to be written, too. Else NULL."""
    cdef Lane *lane = &table.lanes[(offset >> LANE_BITS) & (LANES - 1)]
    cdef int64_t resume
    if peek_target(&table.target) == NULL or not length or (offset ^ (offset + length - 1)) >> LANE_BITS:
        return NULL
    resume = peek(&table.resume)
    if resume and now_ns() < resume:
        return NULL
    if swap(&lane.held, 1):
        return NULL
    if peek_target(&table.target) == NULL or not in_step(table, offset, length):
        step_out(lane)
        return NULL
    return lane


cdef void step_out(Lane *lane) noexcept nogil:
    put(&lane.held, 0)


cdef int64_t begin_write() noexcept nogil:
    return now_ns()


cdef void end_write(StepTable *table, int64_t begun) noexcept nogil:
    """A write to the target that began then has ended: try none for a while if it was slow."""
    cdef int64_t now = now_ns()
    if now - begun > SLOW_NS:
        put(&table.resume, now + REST * (now - begun))
