"""The batch loop of ``qobra.block.export.nbd.loop`` without the GIL: plain hits of one connection.

:meth:`Batches.run` receives, serves and sends for as long as all that comes are plain hits, and returns to Python with
what is none. Each batch is inside the connection's slot, and ends before a reply is sent.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pythread cimport (
    PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock, PyThread_type_lock,
    WAIT_LOCK, NOWAIT_LOCK,
)
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from qobra.native.direct cimport MAX_IN_FLIGHT, Direct
from qobra.native.places cimport (
    COLD, DIRECT, DONE, UNKNOWN, Outcome, Piece, Places, Slot, inside, next_piece, note_write, read_ahead, read_range,
    write_range,
)

cdef extern from * nogil:
    """
    #include <endian.h>
    #include <poll.h>
    #include <sched.h>
    #include <string.h>
    #include <stdint.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    static inline uint16_t qobra_get16(const void *p) { uint16_t v; memcpy(&v, p, 2); return be16toh(v); }
    static inline uint32_t qobra_get32(const void *p) { uint32_t v; memcpy(&v, p, 4); return be32toh(v); }
    static inline uint64_t qobra_get64(const void *p) { uint64_t v; memcpy(&v, p, 8); return be64toh(v); }
    static inline void qobra_put16(void *p, uint16_t v) { v = htobe16(v); memcpy(p, &v, 2); }
    static inline void qobra_put32(void *p, uint32_t v) { v = htobe32(v); memcpy(p, &v, 4); }
    static inline void qobra_put64(void *p, uint64_t v) { v = htobe64(v); memcpy(p, &v, 8); }
    static inline void qobra_wait_for(int fd, int events) {
        struct pollfd one = {.fd = fd, .events = events};
        poll(&one, 1, -1);
    }
    """
    uint16_t get16 "qobra_get16"(const void *)
    uint32_t get32 "qobra_get32"(const void *)
    uint64_t get64 "qobra_get64"(const void *)
    void put16 "qobra_put16"(void *, uint16_t)
    void put32 "qobra_put32"(void *, uint32_t)
    void put64 "qobra_put64"(void *, uint64_t)
    void sched_yield()
    void wait_for "qobra_wait_for"(int, int)
    ssize_t recv(int, void *, size_t, int)
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int, const msghdr *, int)
    int MSG_DONTWAIT, MSG_NOSIGNAL, MSG_WAITALL, POLLIN, POLLOUT

cdef enum:
    REQUEST = 28
    REQUEST_MAGIC = 0x25609513
    SIMPLE_MAGIC = 0x67446698
    CHUNK_MAGIC = 0x668E33EF
    SIMPLE_REPLY = 16
    CHUNK_HEADER = 28
    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLAG_DF = 4
    MAX_ASIDE = 1024
    MAX_COLD = 1024
    # How often to let others run before a receive waits. A client that shares the processor then sends all it has, where
    # waiting would wake the two up in turn for each request; with a processor for each, it returns at once.
    YIELDS = 2

LONGEST_HIT = 2 << 20
LONGEST_INLINE = 64 << 10
cdef size_t longest_hit = LONGEST_HIT
cdef size_t longest_inline = LONGEST_INLINE
cdef size_t longest_zeroes = 64 << 10
# After so many bytes have been moved, replies are sent, so that the client and the server work at the same time.
cdef size_t prompt = 32 << 10

# Why ``run`` came back.
cdef enum Reason:
    GOING_ON
    LEFT
    BROKEN
    NONSENSE
    STALE
    ASIDE
    LONG_WRITE

IS_LEFT, IS_BROKEN, IS_NONSENSE, IS_STALE, IS_ASIDE, IS_LONG_WRITE = LEFT, BROKEN, NONSENSE, STALE, ASIDE, LONG_WRITE


cdef struct Request:
    uint16_t flags
    uint16_t command
    uint64_t cookie
    uint64_t offset
    uint32_t length
    size_t payload    # where in the inbox, for a write


cdef class Lock:
    """A lock that loops without the GIL take, too; a context manager."""

    cdef PyThread_type_lock _lock

    def __cinit__(self):
        self._lock = PyThread_allocate_lock()
        if self._lock == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._lock != NULL:
            PyThread_free_lock(self._lock)

    def __enter__(self):
        if not PyThread_acquire_lock(self._lock, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(self._lock, WAIT_LOCK)
        return self

    def __exit__(self, *_exc):
        PyThread_release_lock(self._lock)


cdef class Batches:
    """One connection. ``inbox`` and ``arena`` are its buffers: bytes from ``start`` to ``end`` of the inbox have come and
    were not taken. ``sock`` is a blocking socket, or -1 where the caller receives and sends (:meth:`serve`).
    """

    cdef Slot _slot
    cdef Lock _lock
    cdef Py_buffer _inbox_buffer, _arena_buffer
    cdef uint8_t *_inbox
    cdef uint8_t *_arena
    cdef size_t _inbox_size, _arena_size
    cdef int _sock, _errno
    cdef bint _structured, _writable, _again, _drained
    cdef Py_buffer _payload_buffer
    cdef object _payload_owner
    cdef Request _long    # the write whose payload is in that buffer
    cdef bint _long_received
    cdef Direct _direct
    cdef bint _is_inside
    cdef Request _in_flight[MAX_IN_FLIGHT]    # by their numbers in _direct
    cdef uint8_t _headers[MAX_IN_FLIGHT][CHUNK_HEADER]
    cdef int _done[MAX_IN_FLIGHT]    # the numbers of those whose replies are to be sent
    cdef int _done_count
    cdef int _failed[MAX_IN_FLIGHT]
    cdef int _failed_count
    cdef Request _aside[MAX_ASIDE]
    cdef int _aside_count
    cdef Request _cold[MAX_COLD]    # a ring
    cdef int _cold_first, _cold_count
    cdef readonly size_t position
    cdef public size_t start, end

    def __cinit__(self, Slot slot not None, Lock lock not None, int sock, inbox, arena, *, structured, writable):
        PyObject_GetBuffer(inbox, &self._inbox_buffer, PyBUF_WRITABLE)
        PyObject_GetBuffer(arena, &self._arena_buffer, PyBUF_WRITABLE)
        self._inbox, self._inbox_size = <uint8_t *>self._inbox_buffer.buf, self._inbox_buffer.len
        self._arena, self._arena_size = <uint8_t *>self._arena_buffer.buf, self._arena_buffer.len
        if self._inbox_size < 2 * (REQUEST + longest_inline) or self._arena_size < longest_hit + 2 * CHUNK_HEADER:
            raise ValueError("the buffers are too small")
        self._slot, self._lock, self._sock = slot, lock, sock
        self._structured, self._writable = structured, writable
        self._direct = Direct()

    def __dealloc__(self):
        PyBuffer_Release(&self._inbox_buffer)
        PyBuffer_Release(&self._arena_buffer)
        PyBuffer_Release(&self._payload_buffer)

    # What Python asks -------------------------------------------------------------------------------------------------

    def run(self, Places places not None):
        """Serve until there is something to do for Python; the reason. Not inside the slot."""
        cdef Reason reason
        self._aside_count = 0
        self._check()
        with nogil:
            reason = self._run(places)
            if not self._finish_direct():
                reason = BROKEN
        return <int>reason

    def serve(self, Places places not None):
        """Serve what is in the inbox into the arena, up to ``position``; the reason as with :meth:`run`, 0 if the caller
        may receive more. Not inside the slot."""
        cdef Reason reason = STALE
        self._aside_count = 0
        self.position = 0
        self._drained = False
        self._check()
        with nogil:
            if self._enter(places):
                self._again = False
                reason = self._serve_hits(places)
                self._leave()
        return <int>reason

    def serve_cold(self, Places places not None):
        """Serve cold reads into the arena, up to ``position``; the reason. Not inside the slot."""
        cdef Reason reason = STALE
        self._aside_count = 0
        self.position = 0
        self._drained = False
        with nogil:
            if self._enter(places):
                self._read_cold(places)
                self._leave()
                reason = GOING_ON
        return <int>reason

    def set_payload(self, buffer):
        """Where the payloads of writes that are too long for the inbox may go."""
        if buffer is not self._payload_owner:
            PyBuffer_Release(&self._payload_buffer)
            self._payload_owner = None
            PyObject_GetBuffer(buffer, &self._payload_buffer, PyBUF_WRITABLE)
            self._payload_owner = buffer

    def take_long(self):
        """(flags, cookie, offset, length) of the long write whose payload has been received, or None."""
        if not self._long_received:
            return None
        self._long_received = False
        return self._long.flags, self._long.cookie, self._long.offset, self._long.length

    def take_aside(self):
        """The requests that are no plain hits, as (command, flags, cookie, offset, length, payload): its place in the
        inbox, or the bytes themselves."""
        cdef int index, number
        found = []
        for index in range(self._failed_count):
            number = self._failed[index]
            one = self._in_flight[number]
            payload = PyBytes_FromStringAndSize(<char *>self._direct.data(number), one.length)
            found.append((one.command, one.flags, one.cookie, one.offset, one.length, payload))
            self._direct.release(number)
        self._failed_count = 0
        for index in range(self._aside_count):
            one = self._aside[index]
            found.append((one.command, one.flags, one.cookie, one.offset, one.length, one.payload))
        self._aside_count = 0
        return found

    @property
    def error(self):
        """The errno with which the socket broke."""
        return self._errno

    @property
    def cold(self):
        """How many cold reads wait."""
        return self._cold_count

    @property
    def again(self):
        """Whether there are requests in the inbox that have not been looked at."""
        return self._again

    @property
    def drained(self):
        """Whether somebody waits for slots to be left, and must be told."""
        return self._drained

    def put_cold(self, int flags, uint64_t cookie, uint64_t offset, uint32_t length):
        """Read this later, in order, once nothing else is there to do; whether there is room for it."""
        cdef Request request
        if not 0 < length <= longest_hit:
            return False
        request.flags, request.command, request.cookie, request.offset, request.length = flags, READ, cookie, offset, length
        request.payload = 0
        return self._add_cold(&request)

    cdef int _check(self) except -1:
        if self.start > self.end or self.end > self._inbox_size:
            raise ValueError("not inside the inbox")
        return 0

    # The loop ---------------------------------------------------------------------------------------------------------

    cdef Reason _run(self, Places places) noexcept nogil:
        cdef Reason reason
        self._drained = False
        while True:
            if self._direct.in_flight and not self._pause_direct(places):
                return BROKEN
            if not self._again:
                if self._cold_count or self._direct.in_flight:
                    reason = self._receive(MSG_DONTWAIT)
                    if reason == GOING_ON and self._errno == EAGAIN:
                        if self._direct.in_flight:
                            reason = self._go_on_direct(True)
                        else:
                            reason = self._serve_cold(places)
                        if reason != GOING_ON:
                            return reason
                        continue
                else:
                    reason = self._receive(0)
                if reason != GOING_ON:
                    return reason
            self._again = True
            if not self._enter(places):
                return STALE
            self._again = False
            self.position = 0
            reason = self._serve_hits(places)
            self._leave()
            if self.position and not self._send():
                return BROKEN
            if reason == GOING_ON and self._direct.in_flight:
                reason = self._go_on_direct(self._direct.is_full())
            if reason == LONG_WRITE and not self._aside_count:
                if not self._finish_direct():
                    return BROKEN
                reason = self._write_long(places)
            if reason != GOING_ON:
                return reason
            if self._aside_count or self._failed_count or self._drained:
                return ASIDE

    cdef Reason _write_long(self, Places places) noexcept nogil:
        """Receive the payload of the write that the inbox begins with, and write it. LONG_WRITE if that is Python's."""
        cdef uint8_t *payload = <uint8_t *>self._payload_buffer.buf
        cdef size_t have, length
        cdef ssize_t count
        cdef Outcome outcome
        self._parse(&self._long)
        length = self._long.length
        if payload == NULL or length > <size_t>self._payload_buffer.len:
            return LONG_WRITE
        have = self.end - self.start - REQUEST  # less than length, or it would not be a long write
        memcpy(payload, self._inbox + self.start + REQUEST, have)
        self.start = self.end = 0
        while have < length:
            count = recv(self._sock, payload + have, length - have, MSG_WAITALL)
            if count > 0:
                have += count
            elif count == 0:
                return LEFT
            elif errno == EAGAIN:
                wait_for(self._sock, POLLIN)
            elif errno != EINTR:
                self._errno = errno
                return BROKEN
        self._long_received = True
        if self._long.flags or not self._writable or not inside(places, self._long.offset, length):
            return LONG_WRITE
        if not self._enter(places):
            return LONG_WRITE
        outcome = write_range(places, self._long.offset, length, payload)
        self._leave()
        if outcome != DONE:
            return LONG_WRITE
        self._long_received = False
        self.position = self._put_header(self._arena, &self._long)
        return GOING_ON if self._send() else BROKEN

    cdef void _parse(self, Request *request) noexcept nogil:
        """The request that the inbox begins with."""
        cdef const uint8_t *at = self._inbox + self.start
        request.flags = get16(at + 4)
        request.command = get16(at + 6)
        request.cookie = get64(at + 8)
        request.offset = get64(at + 16)
        request.length = get32(at + 24)
        request.payload = 0

    cdef bint _enter(self, Places places) noexcept nogil:
        """Enter the slot, unless the gate is closed or ``places`` are of another generation."""
        if self._is_inside:
            return True  # on account of what is in flight
        if not self._slot.try_enter():
            return False  # Python enters in our stead, and waits
        self._is_inside = True
        if places.generation != self._slot.generation():
            self._leave()
            return False
        return True

    cdef void _leave(self) noexcept nogil:
        """Leave the slot, once nothing is in flight."""
        if self._is_inside and not self._direct.in_flight:
            self._is_inside = False
            if not self._slot.try_leave():
                self._drained = True

    cdef Reason _receive(self, int flags) noexcept nogil:
        """Get more bytes; with MSG_DONTWAIT, ``_errno`` is EAGAIN if there are none."""
        cdef ssize_t count
        cdef int yields = YIELDS
        self._errno = 0
        if self.start == self.end:
            self.start = self.end = 0
        elif self._inbox_size - self.end < longest_inline + REQUEST:
            memmove(self._inbox, self._inbox + self.start, self.end - self.start)
            self.end -= self.start
            self.start = 0
        while True:
            count = recv(
                self._sock, self._inbox + self.end, self._inbox_size - self.end, MSG_DONTWAIT if yields else flags
            )
            if count > 0:
                self.end += count
                return GOING_ON
            if count == 0:
                return LEFT
            if errno == EAGAIN:
                if yields:
                    yields -= 1
                    sched_yield()
                    continue
                if flags:
                    self._errno = EAGAIN
                    return GOING_ON
                wait_for(self._sock, POLLIN)
            elif errno != EINTR:
                self._errno = errno
                return BROKEN

    cdef bint _send(self) noexcept nogil:
        """Send what is in the arena."""
        cdef iovec part
        part.iov_base, part.iov_len = self._arena, self.position
        return self._send_parts(&part, 1)

    cdef bint _send_parts(self, iovec *parts, int count) noexcept nogil:
        """Send whole replies. A client that does not read them is waited for outside of the slot."""
        cdef msghdr message
        cdef ssize_t sent
        memset(&message, 0, sizeof(message))
        PyThread_acquire_lock(self._lock._lock, WAIT_LOCK)
        while count:
            message.msg_iov, message.msg_iovlen = parts, count
            sent = sendmsg(self._sock, &message, MSG_NOSIGNAL | (MSG_DONTWAIT if self._is_inside else 0))
            if sent < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN:
                    if not self._is_inside or self._settle_direct():
                        wait_for(self._sock, POLLOUT)
                        continue
                self._errno = errno
                break
            while count and <size_t>sent >= parts.iov_len:
                sent -= parts.iov_len
                parts += 1
                count -= 1
            if count:
                parts.iov_base = <uint8_t *>parts.iov_base + sent
                parts.iov_len -= sent
        PyThread_release_lock(self._lock._lock)
        return count == 0

    cdef Reason _serve_hits(self, Places places) noexcept nogil:
        """Serve what is in the inbox, into the arena from ``position`` on; what is no plain hit goes aside."""
        cdef Request request
        cdef size_t need
        cdef Outcome outcome
        cdef size_t moved = 0
        cdef uint16_t unknown_flags = <uint16_t>~FLAG_DF if self._structured else 0xFFFF
        while self.end - self.start >= REQUEST:
            if self._aside_count == MAX_ASIDE or moved >= prompt:
                self._again = True
                break
            if get32(self._inbox + self.start) != REQUEST_MAGIC:
                return NONSENSE
            self._parse(&request)
            if request.command == READ:
                if (
                    not 0 < request.length <= longest_hit
                    or request.flags & unknown_flags
                    or not inside(places, request.offset, request.length)
                ):
                    self.start += REQUEST
                    self._put_aside(&request)
                    continue
                if not self._has_room(request.length):
                    self._again = True
                    break
                self.start += REQUEST
                outcome = self._read(places, &request, False)
                moved += request.length
                if outcome == DIRECT:
                    outcome = self._begin_direct(places, &request)
                    if outcome == COLD:
                        self.start -= REQUEST
                        self._again = True
                        break
                    if outcome == DONE:
                        continue
                if outcome == COLD and self._add_cold(&request):
                    read_ahead(places, request.offset, request.length)
                elif outcome != DONE:
                    self._put_aside(&request)
            elif request.command == WRITE:
                need = REQUEST + <size_t>request.length
                if self.end - self.start < need:
                    if need > longest_inline:
                        return LONG_WRITE
                    break
                request.payload = self.start + REQUEST
                self.start += need
                moved += request.length
                outcome = UNKNOWN
                if (
                    self._writable
                    and not request.flags
                    and request.length
                    and inside(places, request.offset, request.length)
                    and self._has_room(0)
                ):
                    outcome = write_range(places, request.offset, request.length, self._inbox + request.payload)
                if outcome == DONE:
                    self.position += self._put_header(self._arena + self.position, &request)
                    continue
                if outcome == DIRECT:
                    outcome = self._begin_direct(places, &request)
                    if outcome == COLD:
                        self.start -= need
                        self._again = True
                        break
                    if outcome == DONE:
                        continue
                self._put_aside(&request)
            elif request.command == DISCONNECT:
                return LEFT
            else:
                self.start += REQUEST
                self._put_aside(&request)
        return GOING_ON

    cdef bint _has_room(self, size_t length) noexcept nogil:
        return self._arena_size - self.position >= length + CHUNK_HEADER

    cdef Outcome _read(self, Places places, Request *request, bint may_wait) noexcept nogil:
        """Read into the arena, for which there is room."""
        cdef uint8_t *at = self._arena + self.position
        cdef size_t header = CHUNK_HEADER if self._structured else SIMPLE_REPLY
        cdef size_t longest_hole = longest_zeroes if self._structured and not request.flags else 0
        cdef Outcome outcome = read_range(
            places, request.offset, request.length, at + header, may_wait, longest_hole
        )
        if outcome != DONE:
            return outcome
        self.position += self._put_header(at, request) + request.length
        return DONE

    cdef size_t _put_header(self, uint8_t *at, const Request *request) noexcept nogil:
        """Write what comes before the data of a reply; its length."""
        if request.command == READ and self._structured:
            put32(at, CHUNK_MAGIC)
            put16(at + 4, 1)  # the last chunk
            put16(at + 6, 1)  # data at an offset
            put64(at + 8, request.cookie)
            put32(at + 16, request.length + 8)
            put64(at + 20, request.offset)
            return CHUNK_HEADER
        put32(at, SIMPLE_MAGIC)
        put32(at + 4, 0)
        put64(at + 8, request.cookie)
        return SIMPLE_REPLY

    cdef void _put_aside(self, Request *request) noexcept nogil:
        # There is room: the loop stops when there is none.
        self._aside[self._aside_count] = request[0]
        self._aside_count += 1

    cdef bint _add_cold(self, Request *request) noexcept nogil:
        if self._cold_count == MAX_COLD:
            return False
        self._cold[(self._cold_first + self._cold_count) % MAX_COLD] = request[0]
        self._cold_count += 1
        return True

    cdef Reason _serve_cold(self, Places places) noexcept nogil:
        """Serve cold reads, and send them."""
        if not self._enter(places):
            return STALE
        self.position = 0
        self._read_cold(places)
        self._leave()
        if self.position and not self._send():
            return BROKEN
        return ASIDE if self._aside_count or self._drained else GOING_ON

    cdef void _read_cold(self, Places places) noexcept nogil:
        """Read the oldest cold request, waiting for the disk, and those behind it that are in memory by then."""
        cdef Request *request
        cdef Outcome outcome
        while self._cold_count and self._aside_count < MAX_ASIDE:
            request = &self._cold[self._cold_first]
            if not self._has_room(request.length):
                break
            outcome = UNKNOWN
            if inside(places, request.offset, request.length):
                outcome = self._read(places, request, self.position == 0)
            if outcome == COLD:
                break
            if outcome != DONE:
                self._put_aside(request)
            self._cold_first = (self._cold_first + 1) % MAX_COLD
            self._cold_count -= 1

    # Files that bypass the page cache ---------------------------------------------------------------------------------

    cdef Outcome _begin_direct(self, Places places, Request *request) noexcept nogil:
        """Begin a request; COLD if too many are in flight, UNKNOWN if it cannot be done like this."""
        cdef Piece piece
        cdef int number
        if self._sock < 0 or not self._direct.opens():
            return UNKNOWN
        if not next_piece(places, request.offset, request.length, &piece) or piece.length != request.length:
            return UNKNOWN
        if piece.alignment <= 1:
            return UNKNOWN
        if self._direct.is_full():
            return COLD
        if request.command == READ:
            number = self._direct.read(&piece, piece.alignment)
        else:
            number = self._direct.write(&piece, self._inbox + request.payload, piece.alignment)
            note_write(places, request.offset + request.length)
        if number < 0:
            return UNKNOWN
        self._in_flight[number] = request[0]
        return DONE

    cdef Reason _go_on_direct(self, bint wait) noexcept nogil:
        """Submit what was begun, and send the replies to what is done; ``wait`` for some of it or for the client."""
        # If nothing can be begun, what the client sends has to wait.
        if not self._direct.wait(wait, -1 if self._direct.is_full() else self._sock):
            self._errno = errno
            return BROKEN
        self._take_direct()
        if not self._send_done():
            return BROKEN
        self._leave()
        return ASIDE if self._failed_count else GOING_ON

    cdef bint _pause_direct(self, Places places) noexcept nogil:
        """Leave the slot where somebody waits for that."""
        if places.generation == self._slot.generation() and not self._slot.is_wanted():
            return True
        return self._finish_direct()

    cdef bint _finish_direct(self) noexcept nogil:
        """Wait until nothing is in flight, leave the slot, and send the replies."""
        return self._settle_direct() and self._send_done()

    cdef bint _settle_direct(self) noexcept nogil:
        """Wait until nothing is in flight, and leave the slot."""
        while self._direct.in_flight:
            if not self._direct.wait(True, -1):
                self._errno = errno
                return False
            self._take_direct()
        self._leave()
        return True

    cdef void _take_direct(self) noexcept nogil:
        """Sort what is done."""
        cdef bint worked = False
        cdef int number
        while True:
            number = self._direct.take(&worked)
            if number < 0:
                break
            if worked:
                self._done[self._done_count] = number
                self._done_count += 1
            else:
                self._failed[self._failed_count] = number
                self._failed_count += 1

    cdef bint _send_done(self) noexcept nogil:
        """Send the replies to what is done, and release it."""
        cdef int[MAX_IN_FLIGHT] numbers
        cdef iovec[2 * MAX_IN_FLIGHT] parts
        cdef int index, number, count, used
        cdef Request *request
        while self._done_count:
            count, self._done_count = self._done_count, 0  # more may be done while these are sent
            used = 0
            for index in range(count):
                number = numbers[index] = self._done[index]
                request = &self._in_flight[number]
                parts[used].iov_base = &self._headers[number][0]
                parts[used].iov_len = self._put_header(&self._headers[number][0], request)
                used += 1
                if request.command == READ:
                    parts[used].iov_base, parts[used].iov_len = self._direct.data(number), request.length
                    used += 1
            if not self._send_parts(parts, used):
                return False
            for index in range(count):
                self._direct.release(numbers[index])
        return True
