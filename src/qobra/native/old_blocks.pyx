"""Old data of blocks that were overwritten, for whoever copies a point in time: the compiled form of
``qobra.block.copy.old_blocks``, which says what the methods do.

A byte for each cluster says what there is to do for it, and is looked at without the lock: a cluster that was let go
never comes back. Blocks that are kept are in a hash table of fixed size under the lock, which is held for no longer than
the copy of a block takes.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from qobra.native.build cimport join_build

join_build(__name__)

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef extern from * nogil:
    """
    #define qobra_touch(pointer) __atomic_fetch_or((pointer), 0, __ATOMIC_RELAXED)
    #define qobra_see(pointer) __atomic_load_n((pointer), __ATOMIC_SEQ_CST)
    #define qobra_set(pointer, value) __atomic_store_n((pointer), (value), __ATOMIC_SEQ_CST)
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sched.h>
    #include <stdlib.h>
    #include <sys/mman.h>
    #include <unistd.h>
    static inline void qobra_idle_priority(void) {
        struct sched_param none = {0};
        if (sched_setscheduler(0, SCHED_IDLE, &none))
            return; /* it is a courtesy */
    }
    /* Pages are of the size that the system chooses. Huge ones, if asked for, come from memory that the host of a virtual
       machine may have taken back: getting ready took four times as long with them. */
    static inline uint8_t *qobra_pages(size_t size) {
        void *memory = NULL;
        return posix_memalign(&memory, 4096, size) ? NULL : memory;
    }
    """
    int usleep(unsigned)
    void idle_priority "qobra_idle_priority"()
    uint8_t *pages "qobra_pages"(size_t)
    uint8_t see "qobra_see"(const uint8_t *)
    void touch "qobra_touch"(uint8_t *)
    void put "qobra_set"(uint8_t *, uint8_t)

cdef enum:
    WANTED = 1                  # the old data is still to be copied
    ZERO = 2                    # and reads as zeroes, but for blocks that are kept
    GIVEN = 4                   # and that was told
    MOST_CLUSTERS = 1 << 26     # 4 TiB of 64 KiB
    MOST_BLOCKS = 1 << 20       # 4 GiB of old data
    STEP = 2 << 20              # bytes that are made ready at a time
    AHEAD = 16 << 20            # bytes that are made ready before they are wanted
    PAUSE = 10_000              # microseconds until it is seen again whether there are


cdef class OldBlocks:
    """See ``qobra.block.copy.old_blocks``. Raises ValueError for more clusters or blocks than it is made for."""

    def __cinit__(self, uint64_t length, int shift, int64_t capacity, ranges):
        cdef OldTable *table = &self.table
        cdef uint64_t start, size, first, end
        pthread_mutex_init(&table.mutex, NULL)
        if not BLOCK_BITS <= shift < 40 or length >> shift >= MOST_CLUSTERS or not 0 <= capacity >> BLOCK_BITS <= MOST_BLOCKS:
            raise ValueError("more than old blocks are kept of")
        table.length, table.shift, table.limit = length, shift, capacity
        table.capacity, table.free = <int32_t>(capacity >> BLOCK_BITS), -1
        table.cluster_count = <size_t>((length >> shift) + 1)
        table.clusters = <uint8_t *>calloc(table.cluster_count, 1)
        if table.clusters == NULL:
            raise MemoryError
        for start, size in ranges:
            if size and size <= length and start <= length - size:
                first, end = start >> shift, ((start + size - 1) >> shift) + 1
                memset(table.clusters + first, WANTED, end - first)

    def __dealloc__(self):
        free(self.table.clusters)
        free(self.table.heads)
        free(self.table.entries)
        free(self.table.data)
        pthread_mutex_destroy(&self.table.mutex)

    @property
    def used(self):
        return <int64_t>self.table.count << BLOCK_BITS

    @property
    def limit(self):
        return self.table.limit

    @limit.setter
    def limit(self, int64_t value):
        self.table.limit = value

    @property
    def off(self):
        return self.table.off

    @off.setter
    def off(self, bint value):
        self.table.off = value

    def get_ready(self):
        with nogil:
            idle_priority()
            while self.table.limit > 0:
                while make_ready(&self.table):
                    pass
                usleep(PAUSE)

    def missing(self, uint64_t offset, uint64_t length):
        cdef uint64_t at = offset, end = clip(&self.table, offset, length), start
        cdef size_t size
        cdef bint found
        runs = []
        while True:
            with nogil:
                found = next_missing(&self.table, &at, end, &start, &size)
            if not found:
                return runs
            runs.append((start, size))

    def keep(self, uint64_t start, data):
        cdef Py_buffer view
        cdef bint kept
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            with nogil:
                kept = keep_blocks(&self.table, start, <const uint8_t *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        return kept

    def keep_zeroes(self, uint64_t offset, uint64_t length):
        cdef OldTable *table = &self.table
        cdef uint64_t end = clip(table, offset, length), number
        cdef bint kept = True
        with nogil:
            pthread_mutex_lock(&table.mutex)
            for number in range(offset >> table.shift, clusters_end(table, end)):
                if table.clusters[number] & (WANTED | ZERO) == WANTED:
                    if table.limit <= 0:
                        kept = False
                        break
                    put(&table.clusters[number], WANTED | ZERO)
                    table.zero_count += 1
            pthread_mutex_unlock(&table.mutex)
        return kept

    def holds(self, uint64_t offset, uint64_t length):
        cdef OldTable *table = &self.table
        cdef uint64_t end = clip(table, offset, length), number, block
        cdef bint found = False
        with nogil:
            pthread_mutex_lock(&table.mutex)
            if table.zero_count:
                for number in range(offset >> table.shift, clusters_end(table, end)):
                    found = found or table.clusters[number] & ZERO
            if table.count and not found:
                for block in range(offset >> BLOCK_BITS, blocks_end(end)):
                    if find(table, block) >= 0:
                        found = True
                        break
            pthread_mutex_unlock(&table.mutex)
        return found

    def runs(self, uint64_t offset, uint64_t length):
        cdef OldTable *table = &self.table
        cdef uint64_t end = clip(table, offset, length), at = offset, stop
        cdef bint zero
        runs = []
        while at < end:
            stop = min(end, ((at >> table.shift) + 1) << table.shift)
            with nogil:
                pthread_mutex_lock(&table.mutex)
                zero = (table.clusters[at >> table.shift] & ZERO) != 0 and not any_kept(table, at, stop)
                if zero:
                    table.clusters[at >> table.shift] |= GIVEN
                pthread_mutex_unlock(&table.mutex)
            if runs and runs[len(runs) - 1][2] == zero:
                runs[len(runs) - 1] = (runs[len(runs) - 1][0], stop - runs[len(runs) - 1][0], zero)
            else:
                runs.append((at, stop - at, zero))
            at = stop
        return runs

    def mend(self, uint64_t start, into, bint given):
        cdef Py_buffer view
        PyObject_GetBuffer(into, &view, PyBUF_WRITABLE)
        try:
            with nogil:
                mend_range(&self.table, start, <uint8_t *>view.buf, clip(&self.table, start, view.len), given)
        finally:
            PyBuffer_Release(&view)

    def late(self, uint64_t offset, uint64_t length):
        cdef OldTable *table = &self.table
        cdef uint64_t end = clip(table, offset, length), at = offset - offset % BLOCK
        cdef uint8_t block[BLOCK]
        cdef size_t size
        found = []
        while True:
            with nogil:
                size = take_late(table, &at, end, block)
            if not size:
                return found
            found.append((at - BLOCK, PyBytes_FromStringAndSize(<char *>block, size)))

    def again(self, uint64_t offset, uint64_t length):
        cdef OldTable *table = &self.table
        cdef uint64_t end = clip(table, offset, length), number, block
        cdef int32_t index
        with nogil:
            pthread_mutex_lock(&table.mutex)
            for number in range(offset >> table.shift, clusters_end(table, end)):
                table.clusters[number] &= <uint8_t>~GIVEN
            for block in range(offset >> BLOCK_BITS, blocks_end(end)):
                index = find(table, block)
                if index >= 0:
                    table.entries[index].given = False
            pthread_mutex_unlock(&table.mutex)

    def settle(self, uint64_t offset, uint64_t length):
        cdef OldTable *table = &self.table
        cdef uint64_t end = clip(table, offset, length), number, block
        cdef int32_t index
        cdef bint settled = True
        with nogil:
            pthread_mutex_lock(&table.mutex)
            for number in range(offset >> table.shift, clusters_end(table, end)):
                if table.clusters[number] & (ZERO | GIVEN) == ZERO:
                    settled = False
            if table.count:
                for block in range(offset >> BLOCK_BITS, blocks_end(end)):
                    index = find(table, block)
                    if index >= 0 and not table.entries[index].given:
                        settled = False
            if settled:
                let_go(table, offset, end)
            pthread_mutex_unlock(&table.mutex)
        return settled

    def release(self, uint64_t offset, uint64_t length):
        cdef OldTable *table = &self.table
        cdef uint64_t end = clip(table, offset, length)
        with nogil:
            pthread_mutex_lock(&table.mutex)
            let_go(table, offset, end)
            pthread_mutex_unlock(&table.mutex)

    def clusters(self):
        cdef OldTable *table = &self.table
        cdef int32_t index
        cdef size_t number
        found = set()
        pthread_mutex_lock(&table.mutex)
        try:
            for index in range(table.fresh):
                if table.entries[index].block >= 0:
                    found.add(table.entries[index].block << BLOCK_BITS >> table.shift << table.shift)
            if table.zero_count:
                for number in range(table.cluster_count):
                    if table.clusters[number] & ZERO:
                        found.add(<uint64_t>number << table.shift)
        finally:
            pthread_mutex_unlock(&table.mutex)
        return sorted(found)


cdef uint64_t clip(OldTable *table, uint64_t offset, uint64_t length) noexcept nogil:
    """The end of the range, no further than the table's."""
    if offset >= table.length:
        return offset
    return offset + min(length, table.length - offset)


cdef inline uint64_t clusters_end(OldTable *table, uint64_t end) noexcept nogil:
    return min(<uint64_t>table.cluster_count, (end + (<uint64_t>1 << table.shift) - 1) >> table.shift)


cdef inline uint64_t blocks_end(uint64_t end) noexcept nogil:
    return (end + BLOCK - 1) >> BLOCK_BITS


cdef inline size_t bucket(OldTable *table, int64_t block) noexcept nogil:
    # Neighbours are likely to be kept together, and need not be apart.
    return <size_t>(<uint64_t>block % <uint64_t>table.capacity)


cdef int32_t find(OldTable *table, int64_t block) noexcept nogil:
    """The number of the entry of ``block``, -1 if there is none; with the lock held."""
    cdef int32_t index
    if not table.count:
        return -1
    index = table.heads[bucket(table, block)]
    while index >= 0 and table.entries[index].block != block:
        index = table.entries[index].next
    return index


cdef bint any_kept(OldTable *table, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t block
    for block in range(start >> BLOCK_BITS, blocks_end(end)):
        if find(table, block) >= 0:
            return True
    return False


cdef bint next_missing(OldTable *table, uint64_t *at, uint64_t end, uint64_t *start, size_t *size) noexcept nogil:
    """The next blocks from ``at``, which goes on, up to ``end`` that somebody has to keep; False if there are none.

    They lie in one cluster and are no more than LONGEST_RUN bytes; the last one ends where the table does.
    """
    cdef uint64_t block, last, number
    cdef uint64_t count = 0
    end = min(end, table.length)
    if table.off:
        return False
    while at[0] < end:
        number = at[0] >> table.shift
        if see(&table.clusters[number]) & (WANTED | ZERO) != WANTED:
            at[0] = (number + 1) << table.shift
            continue
        block = at[0] >> BLOCK_BITS
        last = blocks_end(min(end, (number + 1) << table.shift))
        pthread_mutex_lock(&table.mutex)
        while block < last and find(table, block) >= 0:
            block += 1
        start[0] = block << BLOCK_BITS
        while block < last and count < LONGEST_RUN >> BLOCK_BITS and find(table, block) < 0:
            block += 1
            count += 1
        pthread_mutex_unlock(&table.mutex)
        at[0] = block << BLOCK_BITS
        if count:
            size[0] = <size_t>min(count << BLOCK_BITS, table.length - start[0])
            return True
    return False


cdef bint keep_blocks(OldTable *table, uint64_t start, const uint8_t *data, size_t size) noexcept nogil:
    """Keep the blocks from ``start`` on, which is the beginning of one, unless they are or need not be; False if there is no room."""
    cdef size_t done = 0, part
    cdef uint64_t at
    cdef bint kept = True
    if start & (BLOCK - 1) or size > table.length or start > table.length - size:
        return False
    pthread_mutex_lock(&table.mutex)
    while done < size and kept:
        at = start + done
        part = min(size - done, <size_t>BLOCK)
        if part < BLOCK and at + part != table.length:
            kept = False  # not a whole block
        elif table.clusters[at >> table.shift] & (WANTED | ZERO) == WANTED and find(table, at >> BLOCK_BITS) < 0:
            kept = add(table, at >> BLOCK_BITS, data + done, part)
        done += part
    pthread_mutex_unlock(&table.mutex)
    return kept


cdef bint add(OldTable *table, int64_t block, const uint8_t *data, size_t size) noexcept nogil:
    cdef int32_t index
    cdef size_t place
    if (<int64_t>table.count + 1) << BLOCK_BITS > table.limit or (table.entries == NULL and not begin(table)):
        return False
    if table.free >= 0:
        index = table.free
        table.free = table.entries[index].next
    elif table.fresh < table.capacity:
        index = table.fresh
        table.fresh += 1
    else:
        return False
    place = bucket(table, block)
    table.entries[index].block = block
    table.entries[index].given = False
    table.entries[index].next = table.heads[place]
    table.heads[place] = index
    memcpy(table.data + (<size_t>index << BLOCK_BITS), data, size)
    table.count += 1
    return True


cdef bint begin(OldTable *table) noexcept nogil:
    """Get the memory. It takes up room only where it has been used."""
    if not table.capacity:
        return False
    table.heads = <int32_t *>malloc(table.capacity * sizeof(int32_t))
    table.data = pages(<size_t>table.capacity << BLOCK_BITS)
    table.entries = <Entry *>malloc(table.capacity * sizeof(Entry))
    if table.heads == NULL or table.data == NULL or table.entries == NULL:
        free(table.heads)
        free(table.data)
        free(table.entries)
        table.heads, table.data, table.entries = NULL, NULL, NULL
        return False
    memset(table.heads, 0xFF, table.capacity * sizeof(int32_t))
    return True


cdef bint make_ready(OldTable *table) noexcept nogil:
    """Get the memory for blocks that will be kept soon, a step; False if there is enough.

    The kernel clears a page when it is first written, which takes as long as reading a block for it does: a guest beside
    a backup lost a quarter of its time to that.
    """
    cdef size_t size = <size_t>table.capacity << BLOCK_BITS, used, at = 0, end
    cdef uint8_t *data = NULL
    pthread_mutex_lock(&table.mutex)
    if table.limit > 0 and (table.entries != NULL or begin(table)):
        used = <size_t>table.fresh << BLOCK_BITS
        at = max(table.ready, (used + STEP - 1) // STEP * STEP)
        if at < min(size, used + AHEAD):
            data = table.data
            table.ready = at + STEP
    pthread_mutex_unlock(&table.mutex)
    if data == NULL:
        return False
    # Somebody may have got there meanwhile: nothing is changed. (MADV_POPULATE_WRITE would hold a lock of the process.)
    end = min(at + STEP, size)
    while at < end:
        touch(data + at)
        at += BLOCK
    return True


cdef void remove(OldTable *table, int64_t block) noexcept nogil:
    cdef int32_t index, before = -1
    cdef size_t place
    if not table.count:
        return
    place = bucket(table, block)
    index = table.heads[place]
    while index >= 0 and table.entries[index].block != block:
        before, index = index, table.entries[index].next
    if index < 0:
        return
    if before < 0:
        table.heads[place] = table.entries[index].next
    else:
        table.entries[before].next = table.entries[index].next
    table.entries[index].block = -1
    table.entries[index].next = table.free
    table.free = index
    table.count -= 1


cdef void let_go(OldTable *table, uint64_t offset, uint64_t end) noexcept nogil:
    """Nothing is wanted of these clusters any more; with the lock held."""
    cdef uint64_t number, block
    for number in range(offset >> table.shift, clusters_end(table, end)):
        if table.clusters[number] & ZERO:
            table.zero_count -= 1
        put(&table.clusters[number], 0)
    if table.count:
        for block in range(offset >> BLOCK_BITS, blocks_end(end)):
            remove(table, block)


cdef void mend_range(OldTable *table, uint64_t start, uint8_t *into, uint64_t end, bint given) noexcept nogil:
    cdef uint64_t at = start, block, low, high, number
    cdef int32_t index
    cdef uint8_t flags
    while at < end:
        number = at >> table.shift
        pthread_mutex_lock(&table.mutex)
        flags = table.clusters[number]
        for block in range(at >> BLOCK_BITS, blocks_end(min(end, (number + 1) << table.shift))):
            low, high = max(start, block << BLOCK_BITS), min(end, (block + 1) << BLOCK_BITS)
            index = find(table, block)
            if index >= 0:
                memcpy(into + (low - start), table.data + (<size_t>index << BLOCK_BITS) + (low & (BLOCK - 1)), high - low)
                if given and low == block << BLOCK_BITS and high == min((block + 1) << BLOCK_BITS, table.length):
                    table.entries[index].given = True
            elif flags & ZERO:
                memset(into + (low - start), 0, high - low)
        pthread_mutex_unlock(&table.mutex)
        at = (number + 1) << table.shift


cdef size_t take_late(OldTable *table, uint64_t *at, uint64_t end, uint8_t *into) noexcept nogil:
    """The next block from ``at``, which goes on behind it, that was not given yet; its size, 0 if there is none."""
    cdef uint64_t start
    cdef int32_t index
    cdef uint8_t *cluster
    cdef bint is_zero
    cdef size_t size = 0
    pthread_mutex_lock(&table.mutex)
    while at[0] < end and not size:
        start = at[0]
        at[0] += BLOCK
        cluster = &table.clusters[start >> table.shift]
        index = find(table, start >> BLOCK_BITS)
        is_zero = index < 0 and cluster[0] & (ZERO | GIVEN) == ZERO
        if is_zero or (index >= 0 and not table.entries[index].given):
            size = <size_t>min(<uint64_t>BLOCK, table.length - start)
            if is_zero:
                memset(into, 0, size)
            else:
                memcpy(into, table.data + (<size_t>index << BLOCK_BITS), size)
                table.entries[index].given = True
        if cluster[0] & ZERO and (at[0] >= end or at[0] >> table.shift != start >> table.shift):
            cluster[0] |= GIVEN
    pthread_mutex_unlock(&table.mutex)
    return size
