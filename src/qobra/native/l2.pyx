"""Scanning qcow2 L2 tables as they are on disk, without the GIL.

The compiled form of ``qobra.block.format.qcow2.check`` (counting references) and of ``...qcow2.packed`` (runs).
"""

from libc.errno cimport ENXIO, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strlen

from qobra.native.buffers cimport items
from qobra.native.build cimport join_build

join_build(__name__)

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
    table, Py_ssize_t first, seen, stored, int bits, Py_ssize_t limit, int weight, bint active, tally,
):
    """See ``check.Checker._count_tables``: count from entry ``first`` on, and return the first that needs a closer look.

    ``tally`` is allocated, fragmented and compressed clusters, and the offset of the next cluster if it goes on in a row.
    """
    cdef Py_ssize_t at = first, size, seen_size, stored_size, tallies, cluster, last, each
    cdef uint64_t word, size_shift, offset, end
    cdef uint64_t allocated = 0, fragmented = 0, compressed = 0, following
    table, seen, stored, tally = memoryview(table), memoryview(seen), memoryview(stored), memoryview(tally)
    cdef const uint64_t *words = <const uint64_t *>items(table, 1, False, &size)
    cdef uint8_t *counts = <uint8_t *>items(seen, 1, True, &seen_size)
    cdef const uint8_t *before = <const uint8_t *>items(stored, 1, False, &stored_size)
    cdef uint64_t *sums = <uint64_t *>items(tally, 8, True, &tallies)
    cdef Py_ssize_t entries = size // 8
    if tallies < 4 or first < 0 or not 9 <= bits <= 21 or not 0 < weight < 255:
        raise ValueError("arguments are out of range")
    limit = min(limit, seen_size, stored_size)
    if at >= entries:
        return entries
    cdef uint64_t mask = (1ULL << bits) - 1
    cdef uint64_t bad = ~(COPIED | OFFSET | ZERO_FLAG) | (OFFSET & mask)
    following = sums[3]
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
                if following and following != word & OFFSET:
                    fragmented += 1
                following = (word & OFFSET) + (1ULL << bits)
            counts[cluster] += <uint8_t>weight
            at += 1
    sums[0] += allocated
    sums[1] += fragmented
    sums[2] += compressed
    sums[3] = following
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


def pack_table(table, uint64_t start, Py_ssize_t entries, int bits, bint zeroes, runs, Py_ssize_t count):
    """See ``packed.pure_pack_table``; -1 where an entry cannot be."""
    cdef Py_ssize_t table_size, room
    table, runs = memoryview(table), memoryview(runs)
    cdef const uint64_t *words = <const uint64_t *>items(table, 1, False, &table_size)
    cdef uint64_t *into = <uint64_t *>items(runs, 8, True, &room)
    if not 0 <= entries <= table_size // 8 or not 9 <= bits <= 21 or count < 0:
        raise ValueError("arguments are out of range")
    if count > room // 4 - entries:
        raise ValueError("there is no room for so many runs")
    if not entries:
        return count
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


def split_holes(runs, Py_ssize_t first, Py_ssize_t count, int fd, known, into, Py_ssize_t made):
    """See ``packed.pure_split_holes``."""
    cdef Py_ssize_t at = first, given, states, room
    runs, known, into = memoryview(runs), memoryview(known), memoryview(into)
    cdef const uint64_t *run = <const uint64_t *>items(runs, 8, False, &given)
    cdef uint64_t *state = <uint64_t *>items(known, 8, True, &states)
    cdef uint64_t *out = <uint64_t *>items(into, 8, True, &room)
    if first < 0 or count > given // 4 or states < 4 or made < 0:
        raise ValueError("arguments are out of range")
    room //= 4
    cdef uint64_t start, size, kind, place, piece
    cdef uint64_t low = state[0], high = state[1], hole = state[2], done = state[3]
    cdef int64_t found
    if at >= count or made >= room:
        return at, made
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
    state[0], state[1], state[2], state[3] = low, high, hole, done
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


def json_lines(runs, Py_ssize_t count):
    """The entries of ``qemu-img map --output=json`` for ``count`` packed runs, with ",\n" between them."""
    cdef Py_ssize_t given
    runs = memoryview(runs)
    cdef const uint64_t *run = <const uint64_t *>items(runs, 8, False, &given)
    if not 0 <= count <= given // 4:
        raise ValueError("there are not so many runs")
    if not count:
        return ""
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


def empty_entries(words, Py_ssize_t first, Py_ssize_t limit, Py_ssize_t width):
    """See ``preallocation.pure_empty_entries``."""
    cdef Py_ssize_t at = first, size
    words = memoryview(words)
    cdef const uint64_t *word = <const uint64_t *>items(words, 8, False, &size)
    if not 0 <= first <= limit <= size or width < 1:
        raise ValueError("arguments are out of range")
    while at < limit and not word[at]:
        at += width
    return (at - first) // width


def fill_entries(words, Py_ssize_t first, Py_ssize_t count, Py_ssize_t width, uint64_t word, uint64_t step):
    """See ``preallocation.pure_fill_entries``."""
    cdef Py_ssize_t at, size
    words = memoryview(words)
    cdef uint64_t *into = <uint64_t *>items(words, 8, True, &size)
    if first < 0 or count < 0 or width < 1 or count and (first >= size or count - 1 > (size - 1 - first) // width):
        raise ValueError("arguments are out of range")
    for at in range(count):
        into[first + at * width] = word
        word += step
