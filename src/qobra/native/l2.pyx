"""Scanning qcow2 L2 tables as they are on disk, without the GIL.

The compiled form of ``qobra.block.format.qcow2.check`` (counting references) and of ``...qcow2.packed`` (runs).
"""

from libc.errno cimport ENXIO, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strlen

cdef extern from "<endian.h>" nogil:
    uint64_t be64toh(uint64_t word)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <unistd.h>
    """
    int64_t lseek(int fd, int64_t offset, int whence) nogil
    int SEEK_DATA
    int SEEK_HOLE

cdef uint64_t COPIED = 1ULL << 63
cdef uint64_t COMPRESSED = 1ULL << 62
cdef uint64_t ZERO_FLAG = 1
cdef uint64_t OFFSET = 0x00FFFFFFFFFFFE00ULL
cdef uint64_t NOWHERE = 0xFFFFFFFFFFFFFFFFULL

# Kinds of runs, those of ``packed``.
cdef uint64_t DATA = 0, ZERO = 1, ABSENT = 2, COMPUTED = 3, HOLE = 4


def count_entries(
    const uint8_t[::1] table, Py_ssize_t first, uint8_t[::1] seen, const uint8_t[::1] stored, int bits,
    Py_ssize_t limit, int weight, bint active, uint64_t[::1] tally,
):
    """See ``check.Checker._count_tables``: count from entry ``first`` on, and return the first that needs a closer look.

    ``tally`` is allocated, fragmented and compressed clusters, and where the next cluster lies if it goes on in a row.
    """
    cdef Py_ssize_t at = first, entries = table.shape[0] // 8, cluster, last, each
    cdef uint64_t word, size_shift, offset, end
    cdef uint64_t allocated = 0, fragmented = 0, compressed = 0, following
    if tally.shape[0] < 4 or first < 0 or not 9 <= bits <= 21 or not 0 < weight < 255:
        raise ValueError("arguments are out of range")
    limit = min(limit, seen.shape[0], stored.shape[0])
    if at >= entries:
        return entries
    cdef const uint64_t *words = <const uint64_t *>&table[0]
    cdef uint8_t *counts = &seen[0] if seen.shape[0] else NULL
    cdef const uint8_t *before = &stored[0] if stored.shape[0] else NULL
    cdef uint64_t mask = (1ULL << bits) - 1
    cdef uint64_t bad = ~(COPIED | OFFSET | ZERO_FLAG) | (OFFSET & mask)
    following = tally[3]
    with nogil:
        while at < entries:
            word = words[at]
            if not word:
                at += 1
                continue
            word = be64toh(word)
            if word & COMPRESSED:
                if word & COPIED:
                    break
                size_shift = 62 - (bits - 8)
                offset = word & ((1ULL << size_shift) - 1)
                end = ((word & ~COMPRESSED) >> size_shift) + 1
                end = (offset & ~511ULL) + end * 512
                if end <= offset or (end - 1) >> bits >= <uint64_t>limit:
                    break
                cluster = <Py_ssize_t>(offset >> bits)
                last = <Py_ssize_t>((end - 1) >> bits)
                for each in range(cluster, last + 1):
                    if counts[each] + weight >= 255:
                        break
                else:
                    for each in range(cluster, last + 1):
                        counts[each] += <uint8_t>weight
                    if active:
                        allocated += 1
                        compressed += 1
                        fragmented += 1
                    at += 1
                    continue
                break
            if word & bad:
                break
            if not word & OFFSET:
                if word & COPIED:
                    break
                at += 1
                continue
            cluster = <Py_ssize_t>((word & OFFSET) >> bits)
            if cluster >= limit or counts[cluster] + weight >= 255:
                break
            if active:
                if (before[cluster] == 1) != (word >= COPIED):
                    break
                allocated += 1
                if following and following != <uint64_t>cluster:
                    fragmented += 1
                following = <uint64_t>cluster + 1
            counts[cluster] += <uint8_t>weight
            at += 1
    tally[0] += allocated
    tally[1] += fragmented
    tally[2] += compressed
    tally[3] = following
    return at


cdef inline Py_ssize_t add_run(
    uint64_t *runs, Py_ssize_t count, uint64_t start, uint64_t size, uint64_t kind, uint64_t place
) noexcept nogil:
    """Append a run, or make the last one longer; the new number of runs."""
    cdef uint64_t *last
    if count:
        last = runs + 4 * (count - 1)
        if last[2] == kind and (
            (last[3] == NOWHERE and place == NOWHERE) or (last[3] != NOWHERE and last[3] + last[1] == place)
        ):
            last[1] += size
            return count
    last = runs + 4 * count
    last[0] = start
    last[1] = size
    last[2] = kind
    last[3] = place
    return count + 1


def pack_table(
    const uint8_t[::1] table, uint64_t start, Py_ssize_t entries, int bits, bint zeroes, uint64_t[::1] runs,
    Py_ssize_t count,
):
    """See ``packed.pure_pack_table``; -1 where an entry cannot be."""
    if entries < 0 or entries * 8 > table.shape[0] or not 9 <= bits <= 21 or count < 0:
        raise ValueError("arguments are out of range")
    if (count + entries) * 4 > runs.shape[0]:
        raise ValueError("there is no room for so many runs")
    if not entries:
        return count
    cdef const uint64_t *words = <const uint64_t *>&table[0]
    cdef uint64_t *into = &runs[0]
    cdef uint64_t size = 1ULL << bits, word, host, stretch
    cdef Py_ssize_t at = 0, begin
    with nogil:
        while at < entries:
            word = words[at]
            begin = at
            at += 1
            if not word:
                while at < entries and not words[at]:
                    at += 1
                stretch = <uint64_t>(at - begin) << bits
                count = add_run(into, count, start, stretch, ABSENT, NOWHERE)
                start += stretch
                continue
            word = be64toh(word)
            host = word & OFFSET
            if word & COMPRESSED:
                count = add_run(into, count, start, size, COMPUTED, NOWHERE)
            elif host & (size - 1):
                count = -1
                break
            elif word & ZERO_FLAG:
                if not zeroes:
                    count = -1
                    break
                count = add_run(into, count, start, size, ZERO, host if host else NOWHERE)
            elif host:
                count = add_run(into, count, start, size, DATA, host)
            else:
                count = add_run(into, count, start, size, ABSENT, NOWHERE)
            start += size
    return count


def split_holes(
    const uint64_t[::1] runs, Py_ssize_t first, Py_ssize_t count, int fd, uint64_t[::1] known, uint64_t[::1] into,
    Py_ssize_t made,
):
    """See ``packed.pure_split_holes``."""
    if first < 0 or count * 4 > runs.shape[0] or known.shape[0] < 4 or made < 0:
        raise ValueError("arguments are out of range")
    cdef Py_ssize_t at = first, room = into.shape[0] // 4
    cdef uint64_t start, size, kind, place, piece
    cdef uint64_t low = known[0], high = known[1], hole = known[2], done = known[3]
    cdef int64_t found
    if at >= count or made >= room:
        return at, made
    cdef const uint64_t *run = &runs[0]
    cdef uint64_t *out = &into[0]
    with nogil:
        while at < count and made < room:
            start, size, kind, place = run[4 * at], run[4 * at + 1], run[4 * at + 2], run[4 * at + 3]
            if kind != DATA:
                made = add_run(out, made, start, size, kind, place)
                at += 1
                continue
            start += done
            size -= done
            place += done
            if not (low <= place < high):
                low = place
                found = lseek(fd, <int64_t>place, SEEK_DATA)
                if found < 0:
                    hole = errno == ENXIO
                    high = NOWHERE
                elif <uint64_t>found > place:
                    hole = 1
                    high = <uint64_t>found
                else:
                    hole = 0
                    found = lseek(fd, <int64_t>place, SEEK_HOLE)
                    high = <uint64_t>found if found > <int64_t>place else NOWHERE
            piece = min(size, high - place)
            made = add_run(out, made, start, piece, HOLE if hole else DATA, place)
            if piece < size:
                done += piece
            else:
                done = 0
                at += 1
    known[0], known[1], known[2], known[3] = low, high, hole, done
    return at, made


cdef inline char *put(char *to, const char *text) noexcept nogil:
    cdef size_t size = strlen(text)
    memcpy(to, text, size)
    return to + size


cdef inline char *put_number(char *to, uint64_t value) noexcept nogil:
    cdef char digits[20]
    cdef int count = 0
    while True:
        digits[count] = <char>(48 + value % 10)
        count += 1
        value //= 10
        if not value:
            break
    while count:
        count -= 1
        to[0] = digits[count]
        to += 1
    return to


# Longer than any line: the texts below and three numbers of up to 20 digits.
cdef Py_ssize_t LINE = 192


def json_lines(const uint64_t[::1] runs, Py_ssize_t count):
    """The entries of ``qemu-img map --output=json`` for ``count`` packed runs, with ",\n" between them."""
    if count < 0 or count * 4 > runs.shape[0]:
        raise ValueError("there are not so many runs")
    if not count:
        return ""
    cdef const uint64_t *run = &runs[0]
    cdef char *text = <char *>malloc(count * LINE)
    if text == NULL:
        raise MemoryError
    cdef char *to = text
    cdef Py_ssize_t at
    cdef uint64_t kind
    try:
        with nogil:
            for at in range(count):
                if at:
                    to = put(to, b",\n")
                to = put(to, b'{ "start": ')
                to = put_number(to, run[0])
                to = put(to, b', "length": ')
                to = put_number(to, run[1])
                kind = run[2]
                to = put(to, b', "depth": 0, "present": ')
                to = put(to, b"false" if kind == ABSENT else b"true")
                to = put(to, b', "zero": ')
                to = put(to, b"false" if kind == DATA or kind == COMPUTED else b"true")
                to = put(to, b', "data": ')
                to = put(to, b"false" if kind == ABSENT or kind == ZERO else b"true")
                if run[3] != NOWHERE:
                    to = put(to, b', "offset": ')
                    to = put_number(to, run[3])
                to = put(to, b"}")
                run += 4
        return text[: to - text].decode("ascii")
    finally:
        free(text)


def empty_entries(const uint64_t[::1] words, Py_ssize_t first, Py_ssize_t limit, Py_ssize_t width):
    """See ``preallocation.pure_empty_entries``."""
    if not 0 <= first <= limit <= words.shape[0] or width < 1:
        raise ValueError("arguments are out of range")
    cdef Py_ssize_t at = first
    while at < limit and not words[at]:
        at += width
    return (at - first) // width


def fill_entries(uint64_t[::1] words, Py_ssize_t first, Py_ssize_t count, Py_ssize_t width, uint64_t word, uint64_t step):
    """See ``preallocation.pure_fill_entries``."""
    if first < 0 or count < 0 or width < 1 or count and first + (count - 1) * width >= words.shape[0]:
        raise ValueError("arguments are out of range")
    cdef Py_ssize_t at
    for at in range(count):
        words[first + at * width] = word
        word += step
