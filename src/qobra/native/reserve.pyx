"""New clusters of a qcow2 image for loops without the GIL: the compiled part of ``qobra.block.format.qcow2.reserve``.

The driver hands out host clusters ahead, which it has counted, and the words of the L2 slices that may refer to them. A write
to a place that has nothing yet takes clusters from the reserve, puts its data there, and then links them: under the image's
lock, and only if there still is nothing. What could not be linked goes back to the driver, and the write with it.

Between the two steps nobody refers to the clusters, so no other write has to wait. That the counts reach the disk before
the words do is the driver's business as ever: it changes nothing for a commit whether these words were set here.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pythread cimport WAIT_LOCK, PyThread_acquire_lock, PyThread_release_lock, PyThread_type_lock
from libc.errno cimport EINTR, errno
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t

from qobra.native.build cimport join_build
from qobra.native.places cimport DONE, FAILED, LINEAR, UNKNOWN, Lock, Outcome, Places, link_entries

join_build(__name__)

cdef extern from "<unistd.h>" nogil:
    ssize_t pwrite(int, const void *, size_t, int64_t)

cdef enum:
    SLICES = 32     # by the rest of their keys
    MAX_LOST = 64

cdef uint64_t COPIED = <uint64_t>1 << 63


cdef struct Part:
    int64_t key         # of the slice; -1 for none
    uint64_t *words
    int64_t first, last    # what was changed of it; none if last < first


cdef struct Table:
    PyThread_type_lock lock
    int fd, cluster_bits, slice_bits
    bint open           # clusters may be taken
    void *user          # the places whose loops may do so
    uint64_t next, end  # host clusters
    int writing         # writes that have taken clusters and not linked them yet
    int64_t busy_first, busy_last    # guest clusters among which the driver allocates; none if last < first
    Part parts[SLICES]
    int lost_count
    uint64_t lost[MAX_LOST]     # clusters that were taken and not linked
    uint64_t lost_length[MAX_LOST]


cdef class Reserve:
    """The reserve of an image whose data are in the file ``fd``. All methods are to be called under ``lock``, the image's."""

    cdef Table table
    cdef Lock _lock
    cdef object _user
    cdef Py_buffer _buffers[SLICES]

    def __init__(self, Lock lock not None, int fd, int cluster_bits, int slice_bits):
        cdef int index
        if self._lock is not None:
            raise ValueError("made already")
        if not 9 <= cluster_bits <= 21 or not 0 <= slice_bits <= 18:
            raise ValueError("a size that cannot be")
        self._lock = lock
        self.table.lock, self.table.fd = lock.lock, fd
        self.table.cluster_bits, self.table.slice_bits = cluster_bits, slice_bits
        self.table.busy_last = -1
        for index in range(SLICES):
            self.table.parts[index].key = -1

    def __dealloc__(self):
        cdef int index
        for index in range(SLICES):
            PyBuffer_Release(&self._buffers[index])

    @property
    def is_used(self):
        """Whether there are loops that may take clusters."""
        return self._user is not None

    @property
    def left(self):
        """How many clusters may still be taken."""
        return self.table.end - self.table.next if self.table.open else 0

    @property
    def writing(self):
        """How many writes have taken clusters that they did not link yet."""
        return self.table.writing

    def serve(self, Places places, int leaf):
        """Let the loops of ``places`` take clusters, and nobody else; they lie in its file number ``leaf``. None: nobody."""
        if places is not None and (places.unit_bits != self.table.cluster_bits or not 0 < leaf < LINEAR):
            raise ValueError("places that cannot be written to like this")
        self.table.user = <void *>places if places is not None else NULL
        self._user = places
        if places is not None:
            places.set_reserve(self, &self.table, allocate, leaf)

    def supply(self, uint64_t first, uint64_t count):
        """Let ``count`` host clusters from ``first`` be taken, which read as zeroes, where there are none left."""
        if self.table.next != self.table.end:
            raise ValueError("there are clusters left")
        self.table.next, self.table.end = first, first + count
        self.table.open = True

    def knows(self, int64_t key):
        """Whether clusters may be linked in the slice ``key``."""
        return self.table.parts[key % SLICES].key == key

    def add_slice(self, int64_t key, words):
        """Let clusters be linked in ``words``, an ``array('Q')``; what was changed of one that this one takes the place of, as
        (key, first word, last word), or None."""
        cdef int index = key % SLICES
        cdef Part *part = &self.table.parts[index]
        cdef Py_buffer buffer
        before = self._take_slice(index)
        PyObject_GetBuffer(words, &buffer, PyBUF_WRITABLE)
        if key < 0 or buffer.len != <Py_ssize_t>8 << self.table.slice_bits:
            PyBuffer_Release(&buffer)
            raise ValueError("not a slice")
        self._buffers[index] = buffer
        part.words, part.key = <uint64_t *>buffer.buf, key
        part.first, part.last = 0, -1
        return before

    cdef _take_slice(self, int index):
        cdef Part *part = &self.table.parts[index]
        before = None
        if part.key >= 0:
            if part.last >= part.first:
                before = part.key, part.first, part.last
            part.key = -1
            PyBuffer_Release(&self._buffers[index])
        return before

    def take_rest(self):
        """Let no more clusters be taken; those that were not, as (first, how many)."""
        self.table.open = False
        first, count = self.table.next, self.table.end - self.table.next
        self.table.next = self.table.end
        return first, count

    def take_lost(self):
        """Clusters that were taken in vain, as a list of (first, how many). They may hold data by now."""
        cdef int index
        lost = [(self.table.lost[index], self.table.lost_length[index]) for index in range(self.table.lost_count)]
        self.table.lost_count = 0
        return lost

    def take_slices(self):
        """Forget all slices; what was changed of them, as a list of (key, first word, last word). Nobody may be writing."""
        cdef int index
        if self.table.writing:
            raise ValueError("somebody is writing")
        return [found for index in range(SLICES) if (found := self._take_slice(index)) is not None]

    def set_busy(self, int64_t first, int64_t last):
        """The driver allocates among the guest clusters from ``first`` to ``last``; nowhere if that is less."""
        self.table.busy_first, self.table.busy_last = first, last


cdef inline uint64_t *find_words(Table *table, void *user, int64_t cluster, int64_t count) noexcept nogil:
    """The words of guest clusters, which are in one slice; NULL where the driver has to look."""
    cdef int64_t key = cluster >> table.slice_bits
    cdef Part *part = &table.parts[key % SLICES]
    if table.user != user or part.key != key:
        return NULL
    if cluster <= table.busy_last and cluster + count > table.busy_first:
        return NULL
    return part.words + (cluster & ((<int64_t>1 << table.slice_bits) - 1))


cdef inline int64_t count_empty(const uint64_t *words, int64_t count) noexcept nogil:
    """How many of ``count`` words at the beginning say that there is nothing."""
    cdef int64_t index = 0
    while index < count and words[index] == 0:
        index += 1
    return index


cdef Outcome allocate(
    void *reserve, Places places, uint64_t offset, size_t length, const uint8_t *data
) noexcept nogil:
    """Write data where nothing but zeroes is so far, each slice's clusters by themselves."""
    cdef Table *table = <Table *>reserve
    cdef int bits = table.cluster_bits
    cdef int64_t cluster, in_slice, count
    cdef uint64_t *words
    cdef uint64_t host
    cdef size_t inside, size
    cdef ssize_t done
    cdef bint linked
    while length:
        cluster = <int64_t>(offset >> bits)
        inside = offset & ((<uint64_t>1 << bits) - 1)
        in_slice = (<int64_t>1 << table.slice_bits) - (cluster & ((<int64_t>1 << table.slice_bits) - 1))
        count = min(<int64_t>((inside + length - 1) >> bits) + 1, in_slice)
        PyThread_acquire_lock(table.lock, WAIT_LOCK)
        words = find_words(table, <void *>places, cluster, count)
        if words == NULL or not table.open or table.lost_count + table.writing >= MAX_LOST:
            count = 0
        else:
            count = min(count_empty(words, count), <int64_t>(table.end - table.next))
        if count:
            host = table.next
            table.next += count
            table.writing += 1
        PyThread_release_lock(table.lock)
        if not count:
            return UNKNOWN
        size = min((<size_t>count << bits) - inside, length)
        while True:
            done = pwrite(table.fd, data, size, <int64_t>((host << bits) + inside))
            if done >= 0 or errno != EINTR:
                break
        PyThread_acquire_lock(table.lock, WAIT_LOCK)
        words = find_words(table, <void *>places, cluster, count)
        linked = done == <ssize_t>size and words != NULL and count_empty(words, count) == count
        if linked:
            link(table, places, cluster, count, host, words)
        else:
            table.lost[table.lost_count], table.lost_length[table.lost_count] = host, count
            table.lost_count += 1
            table.open = table.open and done == <ssize_t>size
        table.writing -= 1
        PyThread_release_lock(table.lock)
        if not linked:
            return UNKNOWN if done == <ssize_t>size else FAILED
        data += size
        offset += size
        length -= size
    return DONE


cdef void link(
    Table *table, Places places, int64_t cluster, int64_t count, uint64_t host, uint64_t *words
) noexcept nogil:
    """Let guest clusters, which have nothing yet, lie from the host cluster ``host`` on."""
    cdef Part *part = &table.parts[(cluster >> table.slice_bits) % SLICES]
    cdef int64_t first = words - part.words
    cdef int64_t index
    for index in range(count):
        words[index] = (host + index) << table.cluster_bits | COPIED
    if part.last < part.first:
        part.first, part.last = first, first + count - 1
    else:
        part.first = min(part.first, first)
        part.last = max(part.last, first + count - 1)
    link_entries(places, <uint64_t>cluster << table.cluster_bits, <int64_t>(host << table.cluster_bits), count)
