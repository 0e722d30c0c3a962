"""What L2 tables refer to, counts of that, and COPIED flags by it, without the GIL.

The compiled form of ``qobra.block.format.qcow2.references``, which says what each function is for.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport qsort

from qobra.native.buffers cimport items
from qobra.native.build cimport join_build

join_build(__name__)

cdef extern from "<endian.h>" nogil:
    uint64_t be64toh(uint64_t word)

cdef uint64_t COMPRESSED = 1ULL << 62
cdef uint64_t OFFSET = 0x00FFFFFFFFFFFE00ULL
cdef uint64_t RUN_MASK = 0xFFFF

ctypedef fused count_t:
    uint8_t
    uint16_t
    uint32_t
    uint64_t


cdef inline uint64_t entry_at(const uint8_t *table, Py_ssize_t at) noexcept nogil:
    return be64toh((<const uint64_t *>(table + at))[0])


cdef inline Py_ssize_t push(
    uint64_t *runs, Py_ssize_t count, uint64_t first, uint64_t clusters, uint64_t mask
) noexcept nogil:
    """Append a run, in two where it goes over a multiple of ``mask`` + 1; the new number of runs."""
    cdef uint64_t size
    while clusters:
        size = min(clusters, mask + 1 - (first & mask))
        runs[count] = first << 16 | (size - 1)
        count += 1
        first += size
        clusters -= size
    return count


def collect(table, Py_ssize_t at, Py_ssize_t step, int bits, uint64_t limit, int split, runs, Py_ssize_t count):
    """See ``references.pure_collect``."""
    cdef Py_ssize_t stop, room
    table, runs = memoryview(table), memoryview(runs)
    cdef const uint8_t *words = <const uint8_t *>items(table, 1, False, &stop)
    cdef uint64_t *into = <uint64_t *>items(runs, 8, True, &room)
    if not 9 <= bits <= 21 or not 3 <= split <= 16 or limit > 1ULL << 47 or step not in (8, 16):
        raise ValueError("arguments are out of range")
    if at < 0 or at % step or stop % step or count < 0:
        raise ValueError("arguments are out of range")
    room -= 2
    if at >= stop or count > room:
        return at, count
    cdef uint64_t word, offset, cluster, last, end, mask = (1ULL << split) - 1
    cdef uint64_t unaligned = (1ULL << bits) - 1
    cdef int size_shift = 62 - (bits - 8)
    with nogil:
        while at < stop and count <= room:
            word = (<const uint64_t *>(words + at))[0]
            if not word:
                at += step
                continue
            word = be64toh(word)
            if word & COMPRESSED:
                offset = word & ((1ULL << size_shift) - 1)
                end = (offset & ~511ULL) + (((word & ~COMPRESSED & ~(1ULL << 63)) >> size_shift) + 1) * 512
                cluster = offset >> bits
                if cluster >= limit:
                    break
                last = min((end - 1) >> bits, limit - 1)
                count = push(into, count, cluster, last - cluster + 1, mask)
            elif word & OFFSET:
                offset = word & OFFSET
                cluster = offset >> bits
                if offset & unaligned or cluster >= limit:
                    break
                if count and cluster & mask and (into[count - 1] >> 16) + (into[count - 1] & RUN_MASK) + 1 == cluster:
                    into[count - 1] += 1
                else:
                    into[count] = cluster << 16
                    count += 1
            at += step
    return at, count


cdef int compare(const void *left, const void *right) noexcept nogil:
    cdef uint64_t a = (<const uint64_t *>left)[0], b = (<const uint64_t *>right)[0]
    return (a > b) - (a < b)


def sort(runs, Py_ssize_t count):
    """See ``references.pure_sort``."""
    cdef Py_ssize_t at = 1, given
    runs = memoryview(runs)
    cdef uint64_t *words = <uint64_t *>items(runs, 8, True, &given)
    if not 0 <= count <= given:
        raise ValueError("there are not so many runs")
    if count < 2:
        return
    with nogil:
        while at < count and words[at - 1] <= words[at]:
            at += 1
        if at < count:
            qsort(words, count, sizeof(uint64_t), compare)


cdef Py_ssize_t add_to(
    count_t *counts, uint64_t entries, uint64_t base, const uint64_t *runs, Py_ssize_t at, Py_ssize_t end, int sign,
    uint64_t maximum,
) noexcept nogil:
    cdef uint64_t first, size, each, bound = maximum if sign > 0 else 0
    cdef count_t delta = <count_t>1 if sign > 0 else <count_t>(-1)
    while at < end:
        first = runs[at] >> 16
        size = (runs[at] & RUN_MASK) + 1
        if first < base or first - base + size > entries:
            break
        first -= base
        for each in range(first, first + size):
            if counts[each] == bound:
                return at
        for each in range(first, first + size):
            counts[each] += delta
        at += 1
    return at


cdef Py_ssize_t free_in(
    const count_t *counts, uint64_t entries, uint64_t base, const uint64_t *runs, Py_ssize_t *at, Py_ssize_t end,
    uint64_t *into, Py_ssize_t room,
) noexcept nogil:
    cdef uint64_t first, size, each, done = 0
    cdef Py_ssize_t made = 0
    while at[0] < end:
        first = runs[at[0]] >> 16
        size = (runs[at[0]] & RUN_MASK) + 1
        if first < base or first - base + size > entries or made + <Py_ssize_t>(size + 1) // 2 > room:
            break
        first -= base
        for each in range(max(first, done), first + size):
            if not counts[each]:
                if made and into[2 * made - 2] + into[2 * made - 1] == base + each:
                    into[2 * made - 1] += 1
                else:
                    into[2 * made] = base + each
                    into[2 * made + 1] = 1
                    made += 1
        done = max(done, first + size)
        at[0] += 1
    return made


cdef void ones_of(const count_t *counts, Py_ssize_t entries, uint8_t *ones) noexcept nogil:
    cdef Py_ssize_t at
    for at in range(entries):
        ones[at >> 3] |= <uint8_t>((counts[at] == 1) << (at & 7))


cdef void *hold(Py_buffer *view, object counts, int width, bint writable, Py_ssize_t *entries) except NULL:
    """Take the buffer of ``counts``, whose ``entries`` have ``width`` bytes each."""
    if width not in (1, 2, 4, 8):
        raise ValueError("counts have no such width")
    PyObject_GetBuffer(counts, view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
    entries[0] = view.len // width
    if not view.len:
        PyBuffer_Release(view)
        raise ValueError("there are no counts")
    return view.buf


def add(counts, int width, uint64_t base, runs, Py_ssize_t at, Py_ssize_t end, int sign, uint64_t maximum):
    """See ``references.pure_add``."""
    cdef Py_ssize_t given, entries
    runs = memoryview(runs)
    cdef const uint64_t *words = <const uint64_t *>items(runs, 8, False, &given)
    if not 0 <= at <= end <= given or sign not in (1, -1):
        raise ValueError("arguments are out of range")
    if at == end:
        return at
    cdef Py_buffer view
    cdef void *held = hold(&view, counts, width, True, &entries)
    with nogil:
        if width == 1:
            at = add_to[uint8_t](<uint8_t *>held, entries, base, words, at, end, sign, maximum)
        elif width == 2:
            at = add_to[uint16_t](<uint16_t *>held, entries, base, words, at, end, sign, maximum)
        elif width == 4:
            at = add_to[uint32_t](<uint32_t *>held, entries, base, words, at, end, sign, maximum)
        else:
            at = add_to[uint64_t](<uint64_t *>held, entries, base, words, at, end, sign, maximum)
    PyBuffer_Release(&view)
    return at


def free_of(counts, int width, uint64_t base, runs, Py_ssize_t at, Py_ssize_t end, into):
    """See ``references.pure_free_of``."""
    cdef Py_ssize_t given, room, entries, made
    runs, into = memoryview(runs), memoryview(into)
    cdef const uint64_t *words = <const uint64_t *>items(runs, 8, False, &given)
    cdef uint64_t *out = <uint64_t *>items(into, 8, True, &room)
    if not 0 <= at <= end <= given or room < 1 << 16:
        raise ValueError("arguments are out of range")
    if at == end:
        return at, 0
    room //= 2
    cdef Py_buffer view
    cdef void *held = hold(&view, counts, width, False, &entries)
    with nogil:
        if width == 1:
            made = free_in[uint8_t](<uint8_t *>held, entries, base, words, &at, end, out, room)
        elif width == 2:
            made = free_in[uint16_t](<uint16_t *>held, entries, base, words, &at, end, out, room)
        elif width == 4:
            made = free_in[uint32_t](<uint32_t *>held, entries, base, words, &at, end, out, room)
        else:
            made = free_in[uint64_t](<uint64_t *>held, entries, base, words, &at, end, out, room)
    PyBuffer_Release(&view)
    return at, made


def note_ones(counts, int width, ones, Py_ssize_t first):
    """See ``references.pure_note_ones``."""
    cdef Py_buffer view
    cdef Py_ssize_t entries, size
    cdef void *held
    ones = memoryview(ones)
    cdef uint8_t *into = <uint8_t *>items(ones, 1, True, &size)
    if first < 0 or first & 7:
        raise ValueError("arguments are out of range")
    held = hold(&view, counts, width, False, &entries)
    entries = min(entries, size * 8 - first)
    if entries > 0:
        into += first >> 3
        with nogil:
            if width == 1:
                ones_of[uint8_t](<uint8_t *>held, entries, into)
            elif width == 2:
                ones_of[uint16_t](<uint16_t *>held, entries, into)
            elif width == 4:
                ones_of[uint32_t](<uint32_t *>held, entries, into)
            else:
                ones_of[uint64_t](<uint64_t *>held, entries, into)
    PyBuffer_Release(&view)


def clear_flags(table, Py_ssize_t step):
    """See ``references.pure_clear_flags``."""
    cdef Py_ssize_t at = 0, size, first = -1, last = -1
    table = memoryview(table)
    cdef uint8_t *words = <uint8_t *>items(table, 1, True, &size)
    if step not in (8, 16):
        raise ValueError("entries have no such size")
    size = size // step * step
    with nogil:
        while at < size:
            if words[at] & 0x80:
                words[at] &= 0x7F
                if first < 0:
                    first = at
                last = at
            at += step
    if first < 0:
        return 0, 0
    return first, last + step


def set_flags(table, Py_ssize_t step, int bits, ones, uint64_t base):
    """See ``references.pure_set_flags``."""
    cdef Py_ssize_t at = 0, size, ones_size, first = -1, last = -1
    table, ones = memoryview(table), memoryview(ones)
    cdef uint8_t *words = <uint8_t *>items(table, 1, True, &size)
    cdef const uint8_t *one = <const uint8_t *>items(ones, 1, False, &ones_size)
    if step not in (8, 16) or not 9 <= bits <= 21:
        raise ValueError("arguments are out of range")
    size = size // step * step
    cdef uint64_t word, cluster, known = <uint64_t>ones_size * 8
    cdef uint8_t flag
    with nogil:
        while at < size:
            word = (<const uint64_t *>(words + at))[0]
            if word:
                word = be64toh(word)
                if word & OFFSET and not word & COMPRESSED:
                    cluster = (word & OFFSET) >> bits
                    if cluster >= base and cluster - base < known:
                        cluster -= base
                        flag = <uint8_t>((one[cluster >> 3] >> (cluster & 7) & 1) << 7)
                        if (words[at] & 0x80) != flag:
                            words[at] ^= 0x80
                            if first < 0:
                                first = at
                            last = at
            at += step
    if first < 0:
        return 0, 0
    return first, last + step
