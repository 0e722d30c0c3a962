"""Slots and flat tables as loops without the GIL see them: the compiled form of ``qobra.block.slots`` and the part of
``qobra.block.table`` that such loops read.

All shared words are read and written atomically and in one order for all threads. The memory that a loop reads from
(a page of the table) stays until nobody who may have found it is inside a slot; see ``qobra.block.slots``.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pythread cimport (
    NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock,
)
from libc.errno cimport EAGAIN, EINTR, ENXIO, EOPNOTSUPP, errno
from libc.string cimport memset

from qobra.native.build cimport join_build
from qobra.native.folios cimport Folios, write_at
from qobra.native.in_step cimport InStep, Lane, begin_write, end_write, get_target, set_apart, step_in, step_out
from qobra.native.marks cimport Marks, add_marks
from qobra.native.old_blocks cimport BLOCK, LONGEST_RUN, OldBlocks, keep_blocks, next_missing

join_build(__name__)

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <sys/uio.h>
    #include <sys/vfs.h>
    #include <unistd.h>
    #ifndef RWF_NOWAIT
    #define RWF_NOWAIT 8
    #endif
    #define qobra_load(pointer) __atomic_load_n((pointer), __ATOMIC_SEQ_CST)
    #define qobra_store(pointer, value) __atomic_store_n((pointer), (value), __ATOMIC_SEQ_CST)
    #define qobra_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    static inline void qobra_raise(int64_t *word, int64_t value) {
        int64_t seen = __atomic_load_n(word, __ATOMIC_RELAXED);
        while (seen < value &&
               !__atomic_compare_exchange_n(word, &seen, value, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    }
    /* Files in memory never wait for a disk, and do not know RWF_NOWAIT. */
    static inline int qobra_in_memory(int fd) {
        struct statfs fs;
        if (fstatfs(fd, &fs)) return 0;
        return fs.f_type == 0x01021994 || fs.f_type == (long)0x858458f6 || fs.f_type == (long)0x958458f6;
    }
    """
    int64_t load "qobra_load"(const int64_t *)
    void store "qobra_store"(int64_t *, int64_t)
    int64_t *load_page "qobra_load"(int64_t **)
    void store_page "qobra_store"(int64_t **, int64_t *)
    void fence "qobra_fence"()
    void raise_to "qobra_raise"(int64_t *, int64_t)
    bint in_memory "qobra_in_memory"(int)
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t pread(int, void *, size_t, int64_t)
    ssize_t preadv2(int, const iovec *, int, int64_t, int)
    int posix_fadvise(int, int64_t, int64_t, int)
    int64_t lseek(int, int64_t, int)
    int RWF_NOWAIT, POSIX_FADV_WILLNEED, SEEK_DATA


cdef class Lock:
    """A lock that loops without the GIL take, too; a context manager."""

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    def acquire(self):
        """Wait for the lock, and take it."""
        if not PyThread_acquire_lock(self.lock, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(self.lock, WAIT_LOCK)
        return True

    def release(self):
        """Let go of the lock, which has been taken."""
        PyThread_release_lock(self.lock)

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *_exc):
        PyThread_release_lock(self.lock)


cdef class Gate:
    """See ``qobra.block.slots.Gate``."""

    @property
    def closed(self):
        return load(&self._closed)

    @closed.setter
    def closed(self, int64_t value):
        store(&self._closed, value)


cdef class Words:
    """See ``qobra.block.slots.Words``."""

    def __init__(self):
        self._epoch = 1

    @property
    def epoch(self):
        return load(&self._epoch)

    @epoch.setter
    def epoch(self, int64_t value):
        store(&self._epoch, value)

    @property
    def draining(self):
        return load(&self._draining)

    @draining.setter
    def draining(self, int64_t value):
        store(&self._draining, value)

    @property
    def generation(self):
        return load(&self._generation)

    @generation.setter
    def generation(self, int64_t value):
        store(&self._generation, value)


cdef class Slot:
    """See ``qobra.block.slots.Slot``."""

    def __init__(self, flight, Gate gate not None):
        self._flight = flight
        self.words = flight.words
        self.gate = gate

    @property
    def busy(self):
        return load(&self._busy)

    @busy.setter
    def busy(self, int64_t value):
        store(&self._busy, value)

    cdef bint try_enter(self) noexcept nogil:
        """Enter; False if the gate is closed, and then :meth:`enter` has to be called."""
        store(&self._busy, load(&self.words._epoch))
        self.entries += 1  # by its one worker; who reads it gets by with an old count
        return load(&self.gate._closed) == 0

    cdef void go(self) noexcept nogil:
        """Leave, and tell whoever drains; takes the GIL only for that."""
        store(&self._busy, 0)
        if load(&self.words._draining):
            with gil:
                self._flight.notify()

    cdef int64_t generation(self) noexcept nogil:
        """What the flat tables have to be of."""
        return load(&self.words._generation)

    cdef bint is_wanted(self) noexcept nogil:
        """Whether somebody waits for the slot to be left, or could go on if it were."""
        return (
            load(&self.gate._closed) != 0
            or load(&self.words._draining) != 0
            or load(&self.words._epoch) != load(&self._busy)
        )

    def enter(self):
        """See ``qobra.block.slots.Slot.enter``."""
        if not self.try_enter():
            self._flight.wait_open(self)

    def leave(self):
        """See ``qobra.block.slots.Slot.leave``."""
        store(&self._busy, 0)
        if load(&self.words._draining):
            self._flight.notify()

    def __enter__(self):
        self.enter()
        return self

    def __exit__(self, *_exc):
        self.leave()

    def close(self):
        """See ``qobra.block.slots.Slot.close``."""
        store(&self._busy, 0)
        self._flight.forget(self)


cdef class Places:
    """What one generation of a root's flat table holds, for loops without the GIL.

    Each page is an ``array('q')`` of the table's, with the page's number behind its last entry. ``linear`` is the
    (file descriptor, offset to add, folios or None) where the root lies in one piece. ``marks`` are the (:class:`Marks`, offset to add)
    that a write is marked in, once it was made and before its slot is left; ``keepers`` the :class:`OldBlocks` that
    have to keep what it is about to change; ``in_step`` the :class:`InStep` by which it goes to another disk, too, in
    place of a mark in its ``marks``.
    """

    def __init__(self, int64_t generation, int64_t length, int unit_bits, bint writable, linear, marks=(), keepers=(),
                 InStep in_step=None):
        cdef Marks one
        cdef OldBlocks keeper
        if self.leaves:
            raise ValueError("made already")
        if not 9 <= unit_bits <= 40 or length < 0:
            raise ValueError("a unit or a length that cannot be")
        self.generation = generation
        self.length = length
        self.unit_bits = unit_bits
        self.writable = writable
        self._owners = [None] * MAX_PAGES
        self._folios = []
        self._linking = Lock()
        self.leaves = 1
        self.fds[0] = -1
        if linear is not None:
            fd, self.linear_base, folios = linear
            self.linear = LINEAR
            self._set_leaf(LINEAR, fd, 1, folios)
        self._marked = tuple(marks), tuple(keepers)
        if len(self._marked[0]) > MAX_MARKS or len(self._marked[1]) > MAX_KEEPERS:
            raise ValueError("too many bitmaps, or copies")
        for keeper in self._marked[1]:
            self.keepers[self.keeper_count] = &keeper.table
            self.keeper_count += 1
        for one, shift in self._marked[0]:
            self.marks[self.mark_count] = &one.table
            self.mark_shifts[self.mark_count] = shift
            self.mark_count += 1
        self._in_step = in_step
        if in_step is not None:
            found = [index for index, (one, _shift) in enumerate(self._marked[0]) if one is in_step.marks]
            if not found:
                raise ValueError("nothing is marked that is not in step")
            self.step_mark = found[0]
            self.step = &in_step.table

    def add_leaf(self, int fd, size_t alignment=1, Folios folios=None):
        """Give a file the next number; returns that. ``alignment``, a power of two, is more than 1 where it bypasses the
        page cache; ``folios`` makes small writes."""
        if self.leaves >= LINEAR:
            raise ValueError("too many leaves")
        if alignment == 0 or alignment & (alignment - 1) or alignment > 4096:
            raise ValueError("an alignment that cannot be")
        self._set_leaf(self.leaves, fd, alignment, folios)
        self.leaves += 1
        return self.leaves - 1

    cdef void _set_leaf(self, int number, int fd, size_t alignment, Folios folios):
        self.fds[number] = fd
        self.alignments[number] = alignment
        self.nowait[number] = 0 if in_memory(fd) else RWF_NOWAIT
        if folios is not None:
            self._folios.append(folios)
            self.folios[number] = &folios.table
        fence()  # entries that name it come later

    def put_page(self, int64_t number, page):
        """Let loops find ``page``; returns the one that was in its place, which has to be kept for as long as loops may
        have found it, or None."""
        cdef Py_buffer buffer
        cdef int index = number % MAX_PAGES
        if number < 0:
            raise ValueError("negative page number")
        PyObject_GetBuffer(page, &buffer, PyBUF_SIMPLE)
        try:
            if buffer.len != 8 * (PAGE_ENTRIES + 1) or (<int64_t *>buffer.buf)[PAGE_ENTRIES] != number:
                raise ValueError("not a page")
            before, self._owners[index] = self._owners[index], page
            store_page(&self.pages[index], <int64_t *>buffer.buf)
        finally:
            PyBuffer_Release(&buffer)  # the owner is kept, and never resized
        return before

    def drop_pages(self):
        """Forget all; returns what has to be kept, as with :meth:`put_page`."""
        cdef int index
        for index in range(MAX_PAGES):
            store_page(&self.pages[index], NULL)
        before, self._owners = self._owners, [None] * MAX_PAGES
        return before

    def clear(self, int64_t number, int low, int high):
        """Forget the entries from ``low`` up to ``high`` of a page."""
        self.put(number, low, high, 0, 0)

    def put(self, int64_t number, int low, int high, int64_t entry, int64_t step, int64_t linked=-1):
        """Let the entries from ``low`` up to ``high`` of a page be ``entry``, ``entry + step`` and so on; unless
        :attr:`linked` is another than it was when that was found."""
        cdef int64_t *page = load_page(&self.pages[number % MAX_PAGES]) if number >= 0 else NULL
        cdef int index
        if page != NULL and page[PAGE_ENTRIES] == number and 0 <= low and high <= PAGE_ENTRIES:
            with self._linking:
                if linked < 0 or linked == self.linked:
                    for index in range(low, high):
                        store(page + index, entry + (index - low) * step)

    cdef void set_reserve(self, object owner, void *reserve, Allocate allocate, int leaf):
        """Have writes where nothing but zeroes is so far go to new space in the file ``leaf``."""
        self._reserve, self.allocate, self.reserve_leaf = owner, allocate, leaf
        fence()
        self.reserve = reserve

    @property
    def highest(self):
        """The end of the highest write that loops have made, 0 if there is none."""
        return load(&self._highest)

    # Not typed memoryviews: for those Cython imports `collections` when the module is loaded.

    def read(self, uint64_t offset, into, *, bint may_wait=True):
        """Fill ``into``; whether that was possible with what the table knows. To be called inside a slot."""
        cdef Outcome outcome = DONE
        cdef Py_buffer buffer
        PyObject_GetBuffer(into, &buffer, PyBUF_WRITABLE)
        try:
            if not inside(self, offset, buffer.len):
                return False
            if buffer.len:
                with nogil:
                    outcome = read_range(self, offset, buffer.len, <unsigned char *>buffer.buf, may_wait, 0)
        finally:
            PyBuffer_Release(&buffer)
        return outcome == DONE

    def write(self, uint64_t offset, data):
        """Write ``data``; whether that was possible with what the table knows. To be called inside a slot."""
        cdef Outcome outcome = DONE
        cdef Py_buffer buffer
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            if not inside(self, offset, buffer.len):
                return False
            if buffer.len:
                with nogil:
                    outcome = write_range(self, offset, buffer.len, <const unsigned char *>buffer.buf)
        finally:
            PyBuffer_Release(&buffer)
        return outcome == DONE


cdef bint inside(Places places, uint64_t offset, uint64_t length) noexcept nogil:
    """Whether the range lies inside the root."""
    return length <= places.length and offset <= places.length - length


cdef inline int64_t entry_at(Places places, uint64_t number) noexcept nogil:
    cdef int64_t *page = load_page(&places.pages[(number >> PAGE_BITS) % MAX_PAGES])
    if page == NULL or page[PAGE_ENTRIES] != <int64_t>(number >> PAGE_BITS):
        return 0
    return load(page + (number & (PAGE_ENTRIES - 1)))


cdef bint next_piece(Places places, uint64_t offset, size_t length, Piece *piece) noexcept nogil:
    """The longest piece at ``offset`` that lies in one place; False if the table does not know its first unit."""
    cdef uint64_t unit, number
    cdef int64_t entry, wanted
    cdef size_t size
    if places.linear:
        piece.leaf, piece.fd, piece.alignment = places.linear, places.fds[places.linear], 1
        piece.writable = places.writable
        piece.folios = places.folios[places.linear]
        piece.host = <int64_t>offset + places.linear_base
        piece.length = length
        return True
    unit = <uint64_t>1 << places.unit_bits
    number = offset >> places.unit_bits
    entry = entry_at(places, number)
    if entry == 0:
        return False
    size = unit - (offset & (unit - 1))
    piece.leaf = 0 if entry == 1 else <int>(entry >> 1 & 255)
    piece.fd, piece.alignment = places.fds[piece.leaf], places.alignments[piece.leaf]
    piece.folios = places.folios[piece.leaf]
    piece.writable = places.writable and piece.leaf != 0 and (entry & 1) != 0
    # The sign only tells loops that cannot read such files.
    piece.host = (entry & <int64_t>0x7FFFFFFFFFFFFE00) + <int64_t>(offset & (unit - 1)) if piece.leaf else 0
    wanted = entry
    while size < length:
        number += 1
        if piece.leaf:
            wanted += <int64_t>unit
        if entry_at(places, number) != wanted:
            break
        size += unit
    piece.length = min(size, length)
    return True


cdef Outcome read_range(
    Places places, uint64_t offset, size_t length, uint8_t *into, bint may_wait, bint tell_holes
) noexcept nogil:
    """Read a range that lies inside the root. What is in memory is read at once; for the rest, ``may_wait`` says whether to
    wait. With ``tell_holes``, zeroes are not filled in: HOLE if there is nothing else, UNKNOWN if there are both."""
    cdef Piece piece
    cdef iovec vector
    cdef ssize_t count
    cdef bint has_holes = False, has_data = False
    while length:
        if not next_piece(places, offset, length, &piece):
            return UNKNOWN
        if tell_holes:
            has_holes = has_holes or not piece.leaf
            has_data = has_data or piece.leaf
            if has_holes and has_data:
                return UNKNOWN
        if not piece.leaf:
            if not tell_holes:
                memset(into, 0, piece.length)
        elif piece.alignment > 1:
            return DIRECT
        else:
            vector.iov_base = into
            vector.iov_len = piece.length
            while True:
                if may_wait:
                    count = pread(piece.fd, into, piece.length, piece.host)
                else:
                    count = preadv2(piece.fd, &vector, 1, piece.host, places.nowait[piece.leaf])
                if count >= 0 or errno != EINTR:
                    break
            if count != <ssize_t>piece.length:
                if not may_wait and (count > 0 or (count < 0 and errno == EAGAIN)):
                    return COLD
                return FAILED
        into += piece.length
        offset += piece.length
        length -= piece.length
    return HOLE if has_holes else DONE


cdef Outcome write_range(Places places, uint64_t offset, size_t length, const uint8_t *data) noexcept nogil:
    """Write a range that lies inside the root, all of it to space that is there already, and mark it in the dirty bitmaps.

    It is marked after it was written, also where some of it could not be: whoever clears a mark and then reads sees what was
    written before, or finds the mark again.
    """
    cdef Piece piece
    cdef uint64_t at = offset
    cdef size_t left = length
    cdef Outcome outcome = DONE
    cdef const uint8_t *rest = data
    cdef Lane *lane = NULL
    if not places.writable:
        return UNKNOWN
    while left:
        if not next_piece(places, at, left, &piece) or not may_write(places, &piece):
            return UNKNOWN
        if piece.alignment > 1:
            return DIRECT
        at += piece.length
        left -= piece.length
    if places.keeper_count and not keep_old(places, offset, length):
        return UNKNOWN
    if places.step != NULL:
        lane = step_in(places.step, offset + places.mark_shifts[places.step_mark], length)
    at = offset
    left = length
    while left:
        if not next_piece(places, at, left, &piece) or not may_write(places, &piece) or piece.alignment > 1:
            outcome = UNKNOWN  # it has just moved: the nodes' methods write all of it again
            break
        if not piece.leaf:
            outcome = places.allocate(places.reserve, places, at, piece.length, rest)
            if outcome != DONE:
                break
        elif write_at(piece.folios, piece.fd, rest, piece.length, piece.host) != <ssize_t>piece.length:
            outcome = FAILED
            break
        rest += piece.length
        at += piece.length
        left -= piece.length
    if lane != NULL:
        write_in_step(places, offset, length, data, outcome == DONE)
        step_out(lane)
    else:
        if places.step != NULL:
            set_apart(places.step, offset + places.mark_shifts[places.step_mark], length)
        mark_write(places, offset, length)
    if outcome == DONE:
        note_write(places, at)
    return outcome


cdef void write_in_step(Places places, uint64_t offset, size_t length, const uint8_t *data, bint was_written) noexcept nogil:
    """What was written goes to the disk that is kept in step, too, or is marked as what has to be copied."""
    cdef StepTable *step = places.step
    cdef uint64_t at = offset + places.mark_shifts[places.step_mark]
    cdef void *target = get_target(step)  # none any more if the job has just stopped this; it waits for the lane
    cdef bint is_in_step = False
    cdef int64_t begun
    cdef int index
    if was_written and target != NULL and was_found(places, target, at, length):
        begun = begin_write()
        is_in_step = write_to(target, at, length, data) == DONE
        end_write(step, begun)
    if not is_in_step:
        set_apart(step, at, length)
        mark_write(places, offset, length)
        return
    for index in range(places.mark_count):
        if index != places.step_mark:
            add_marks(places.marks[index], offset + places.mark_shifts[index], length)


cdef bint was_found(Places places, void *target, uint64_t offset, uint64_t length) noexcept nogil:
    """Whether what is known of the target is as new as what is known of the source, and has the range."""
    return (<Places>target).generation == places.generation and inside(<Places>target, offset, length)


cdef Outcome write_to(void *target, uint64_t offset, size_t length, const uint8_t *data) noexcept nogil:
    return write_range(<Places>target, offset, length, data)


cdef inline bint may_write(Places places, Piece *piece) noexcept nogil:
    """Whether a piece has space to write to, or can get it."""
    return piece.writable or (piece.leaf == 0 and places.reserve != NULL)


cdef void link_entries(Places places, uint64_t offset, int64_t host, int64_t count) noexcept nogil:
    """The ``count`` units from ``offset``, which read as zeroes so far, lie at ``host`` of the reserve's file from now on."""
    cdef uint64_t number = offset >> places.unit_bits
    cdef int64_t entry = host | places.reserve_leaf << 1 | 1
    cdef int64_t *page
    PyThread_acquire_lock(places._linking.lock, WAIT_LOCK)
    places.linked += 1
    while count:
        page = load_page(&places.pages[(number >> PAGE_BITS) % MAX_PAGES])
        # Else it has been forgotten meanwhile.
        if page != NULL and page[PAGE_ENTRIES] == <int64_t>(number >> PAGE_BITS):
            if load(page + (number & (PAGE_ENTRIES - 1))) == 1:
                store(page + (number & (PAGE_ENTRIES - 1)), entry)
        entry += <int64_t>1 << places.unit_bits
        number += 1
        count -= 1
    PyThread_release_lock(places._linking.lock)


cdef bint keep_old(Places places, uint64_t offset, size_t length) noexcept nogil:
    """See that the old data of a range is kept where a copy of it is still to be made; False where the nodes have to."""
    cdef uint8_t room[LONGEST_RUN + BLOCK]
    # Reading to where a page begins: see new_buffer in qobra.block.buffers.
    cdef uint8_t *old = room + (BLOCK - <size_t>room % BLOCK) % BLOCK
    cdef uint64_t at, start
    cdef size_t size
    cdef int index
    cdef Outcome outcome
    for index in range(places.keeper_count):
        at = offset
        while next_missing(places.keepers[index], &at, offset + length, &start, &size):
            if not inside(places, start, size):
                return False
            outcome = read_range(places, start, size, old, False, False)
            if outcome == COLD and lies_in_holes(places, start, size):
                # As most of a cluster does of which little was written: no disk is to be waited for.
                memset(old, 0, size)
            elif outcome != DONE:
                return False
            if not keep_blocks(places.keepers[index], start, old, size):
                return False
    return True


cdef bint lies_in_holes(Places places, uint64_t offset, size_t length) noexcept nogil:
    """Whether files hold nothing where the range lies."""
    cdef Piece piece
    cdef int64_t data
    while length:
        if not next_piece(places, offset, length, &piece):
            return False
        if piece.leaf:
            data = lseek(piece.fd, piece.host, SEEK_DATA)
            if data < piece.host + <int64_t>piece.length and not (data < 0 and errno == ENXIO):
                return False
        offset += piece.length
        length -= piece.length
    return True


cdef bint may_change(Places places, uint64_t offset, size_t length) noexcept nogil:
    """Whether nobody has to keep the old data of a range."""
    cdef uint64_t at, start
    cdef size_t size
    cdef int index
    for index in range(places.keeper_count):
        at = offset
        if next_missing(places.keepers[index], &at, offset + length, &start, &size):
            return False
    return True


cdef void mark_write(Places places, uint64_t offset, uint64_t length) noexcept nogil:
    """A write has been made, or some of it may have been. To be called before its slot is left."""
    cdef int index
    for index in range(places.mark_count):
        add_marks(places.marks[index], offset + places.mark_shifts[index], length)


cdef void note_write(Places places, uint64_t end) noexcept nogil:
    """A write has been made that ended there."""
    raise_to(&places._highest, <int64_t>end)


cdef void read_ahead(Places places, uint64_t offset, size_t length) noexcept nogil:
    """Begin to read a range from the disk into memory."""
    cdef Piece piece
    while length and next_piece(places, offset, length, &piece):
        if piece.leaf:
            posix_fadvise(piece.fd, piece.host, piece.length, POSIX_FADV_WILLNEED)
        offset += piece.length
        length -= piece.length
