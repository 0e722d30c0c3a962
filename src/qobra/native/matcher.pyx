"""Comparing stretches of files without the GIL, in as many threads as call :meth:`Matcher.work`."""

from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp

from qobra.native.build cimport join_build
from qobra.native.files cimport new_room, read_all

join_build(__name__)

cdef extern from "<stdatomic.h>" nogil:
    ctypedef int64_t atomic_int64 "_Atomic int64_t"
    int64_t atomic_fetch_add(atomic_int64 *, int64_t)
    int64_t atomic_load(atomic_int64 *)
    bint atomic_compare_exchange_strong(atomic_int64 *, int64_t *, int64_t)

cdef enum:
    PIECE = 256 << 10        # two of them fit into a processor's own cache

cdef struct Pair:
    int first, second        # files
    int64_t first_offset, second_offset, length


cdef class Matcher:
    """See ``matcher.pyi``."""

    cdef Pair *_pairs
    cdef Py_ssize_t _count
    cdef atomic_int64 _next      # pair to be looked at
    cdef atomic_int64 _suspect

    def __cinit__(self, pairs):
        cdef Pair *pair
        self._count = len(pairs)
        self._pairs = <Pair *>malloc(max(self._count, 1) * sizeof(Pair))
        if self._pairs == NULL:
            raise MemoryError
        pair = self._pairs
        for item in pairs:
            if pair - self._pairs >= self._count:
                raise ValueError("the pairs have become more")
            pair.first, pair.first_offset, pair.second, pair.second_offset, pair.length = item
            if min(pair.first_offset, pair.second_offset, pair.length) < 0:
                raise ValueError("a pair that cannot be")
            pair += 1
        self._count = pair - self._pairs
        (<int64_t *>&self._suspect)[0] = self._count

    def __dealloc__(self):
        free(self._pairs)

    @property
    def suspect(self):
        return atomic_load(&self._suspect) if atomic_load(&self._suspect) < self._count else -1

    def work(self):
        with nogil:
            self._work()

    cdef void _work(self) noexcept nogil:
        cdef uint8_t *first = new_room(PIECE)
        cdef uint8_t *second = new_room(PIECE)
        cdef int64_t number
        while True:
            number = atomic_fetch_add(&self._next, 1)
            # What comes after a pair that differs does not matter any more.
            if number >= self._count or number > atomic_load(&self._suspect):
                break
            if first == NULL or second == NULL or not is_same(&self._pairs[number], first, second):
                self._note(number)
        free(first)
        free(second)

    cdef void _note(self, int64_t number) noexcept nogil:
        cdef int64_t known = atomic_load(&self._suspect)
        while number < known and not atomic_compare_exchange_strong(&self._suspect, &known, number):
            pass


cdef bint is_same(const Pair *pair, uint8_t *first, uint8_t *second) noexcept nogil:
    """False where the two differ or cannot be read."""
    cdef int64_t done = 0, size
    while done < pair.length:
        size = min(PIECE, pair.length - done)
        if read_all(pair.first, first, size, pair.first_offset + done):
            return False
        if read_all(pair.second, second, size, pair.second_offset + done):
            return False
        if memcmp(first, second, size):
            return False
        done += size
    return True
