"""The batch loop of ``qobra.block.export.nbd.loop`` without the GIL: plain hits of one connection.

:meth:`Batches.run` receives, serves and sends for as long as all that comes are plain hits, and returns to Python with
what is none. Each batch is inside the connection's slot, and ends before a reply is sent; only requests in flight to files
that bypass the page cache keep it inside for longer, until somebody waits for it.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from qobra.native.build cimport join_build
from qobra.native.direct cimport MAX_IN_FLIGHT, Direct
from qobra.native.placement cimport Placement
from qobra.native.places cimport (
    COLD, DIRECT, DONE, FAILED, HOLE, UNKNOWN, Outcome, Piece, Places, Slot, inside, mark_write, may_change, next_piece,
    note_write, read_ahead, read_range, write_range,
)
from qobra.native.stream cimport END, NOTHING, SOME, Received, Stream, iovec
from qobra.native.wire cimport (
    CHUNK_HEADER, DISCONNECT, FLAG_DF, HOLE_CHUNK, READ, REQUEST, SIMPLE_REPLY, WRITE, Request, parse,
    put_header, put_hole,
)
from qobra.native.places import Lock

join_build(__name__)

cdef extern from * nogil:
    """
    #include <pthread.h>
    #define QOBRA_FEW 8
    static pthread_mutex_t qobra_door = PTHREAD_MUTEX_INITIALIZER;
    static int qobra_waiting;
    static inline int qobra_queue_up(void) {
        if (__atomic_add_fetch(&qobra_waiting, 1, __ATOMIC_RELAXED) <= QOBRA_FEW)
            return 0;
        pthread_mutex_lock(&qobra_door);
        return 1;
    }
    static inline void qobra_go_in(int queued) {
        if (queued)
            pthread_mutex_unlock(&qobra_door);
        __atomic_sub_fetch(&qobra_waiting, 1, __ATOMIC_RELAXED);
    }
    """
    # Whoever waits for the GIL wakes up time and again. Where thousands of clients go on or leave at once, they stand in
    # line for that, but for a few.
    bint queue_up "qobra_queue_up"()
    void go_in "qobra_go_in"(bint)

cdef enum:
    MAX_ASIDE = 1024
    MAX_COLD = 1024
    LONGEST_HIT = 2 << 20
    LONGEST_INLINE = 64 << 10
    # After so many bytes have been moved, replies are sent, so that the client and the server work at the same time.
    PROMPT = 32 << 10

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


cdef class Batches(Stream):
    """One connection: see :class:`Stream`. ``writable``: writes may go past the nodes' methods."""

    cdef Slot _slot
    cdef bint _structured, _writable
    cdef readonly bint again    # there are requests in the inbox that have not been looked at
    cdef int64_t _served, _replied    # requests that were looked at, and bytes of their replies, since the last receive
    cdef Request _long          # the write whose payload has been received apart
    cdef bint _long_received
    cdef Direct _direct
    cdef Placement _placement
    cdef Places _places         # what is in flight belongs to
    cdef Request _in_flight[MAX_IN_FLIGHT]    # by their numbers in _direct
    cdef uint8_t _headers[MAX_IN_FLIGHT][CHUNK_HEADER]
    cdef int _done[MAX_IN_FLIGHT]    # the numbers of those whose replies are to be sent
    cdef int _done_count
    cdef int _failed[MAX_IN_FLIGHT]
    cdef int _failed_count
    cdef Request _aside[MAX_ASIDE]
    cdef int _aside_count
    cdef Request _cold[MAX_COLD]    # a ring
    cdef int _cold_first
    cdef readonly int cold          # how many are in it

    def __init__(self, _lock, _sock, _inbox, _arena, Slot slot not None, *, structured, writable):
        if self._inbox_size < 2 * (REQUEST + LONGEST_INLINE) or self._arena_size < LONGEST_HIT + 2 * HOLE_CHUNK:
            raise ValueError("the buffers are too small")
        self._slot, self._structured, self._writable = slot, structured, writable
        self._direct = Direct()
        self._placement = Placement()

    # What Python asks -------------------------------------------------------------------------------------------------

    def run(self, Places places not None):
        """Serve until there is something to do for Python; the reason. Not inside the slot."""
        cdef Reason reason
        cdef bint queued
        self._aside_count = 0
        self._places = places
        self._check()
        with nogil:
            reason = self._run(places)
            if not self._finish_direct():
                reason = BROKEN
            queued = queue_up()
        go_in(queued)
        return <int>reason

    def serve(self, Places places not None):
        """Serve what is in the inbox into the arena, up to ``position``; the reason as with :meth:`run`, 0 if the caller
        may receive more. Not inside the slot."""
        cdef Reason reason = STALE
        self._aside_count = 0
        self.position = 0
        self._check()
        self.again = True
        with nogil:
            if self._enter(places):
                self.again = False
                reason = self._serve_hits(places)
                self._leave()
        return <int>reason

    def serve_cold(self, Places places not None):
        """Serve cold reads into the arena, up to ``position``; the reason. Not inside the slot."""
        cdef Reason reason = STALE
        self._aside_count = 0
        self.position = 0
        self._check()
        with nogil:
            if self._enter(places):
                self._read_cold(places)
                self._leave()
                reason = GOING_ON
        return <int>reason

    def take_long(self):
        """(flags, cookie, offset, length) of the long write whose payload has been received, or None."""
        if not self._long_received:
            return None
        self._long_received = False
        return self._long.flags, self._long.cookie, self._long.offset, self._long.length

    def take_aside(self):
        """The requests that are no plain hits, as (command, flags, cookie, offset, length, payload). The payload is its
        place in the inbox, or bytes, its own or none, where only the nodes' methods can find out what is wrong."""
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
            where = b"" if one.failed else one.payload
            found.append((one.command, one.flags, one.cookie, one.offset, one.length, where))
        self._aside_count = 0
        return found

    def put_cold(self, int flags, uint64_t cookie, uint64_t offset, uint32_t length):
        """Read this later, in order, once nothing else is there to do; whether there is room for it."""
        cdef Request request
        if not 0 < length <= LONGEST_HIT:
            return False
        request.flags, request.command, request.cookie, request.offset, request.length = flags, READ, cookie, offset, length
        request.payload, request.failed = 0, False
        return self._add_cold(&request)

    # The loop ---------------------------------------------------------------------------------------------------------

    cdef Reason _run(self, Places places) noexcept nogil:
        cdef Reason reason
        cdef Received received
        while True:
            self._placement.look_now()
            if self._direct.in_flight and not self._pause_direct(places):
                return BROKEN
            if not self.again:
                if not self.cold and not self._direct.in_flight:
                    self._gather(self._served, self._replied)
                self._served = self._replied = 0
                received = self._receive(not (self.cold or self._direct.in_flight), LONGEST_INLINE + REQUEST)
                if received == NOTHING:
                    reason = self._go_on_direct(True) if self._direct.in_flight else self._serve_cold(places)
                    if reason != GOING_ON:
                        return reason
                    continue
                if received != SOME:
                    return LEFT if received == END else BROKEN
            self.again = True
            if not self._enter(places):
                return STALE
            self.again = False
            self.position = 0
            reason = self._serve_hits(places)
            self._leave()
            self._replied += self.position
            # While the first were sent, others may have been done.
            if (self.position and not self._send()) or not self._send_done():
                return BROKEN
            if reason == GOING_ON and self._direct.in_flight:
                reason = self._go_on_direct(self._direct.is_full())
            if reason == LONG_WRITE and not self._aside_count:
                if not self._finish_direct():
                    return BROKEN
                reason = self._write_long(places)
            if reason != GOING_ON:
                return reason
            if self._aside_count or self._failed_count:
                return ASIDE

    cdef Reason _write_long(self, Places places) noexcept nogil:
        """Receive the payload of the write that the inbox begins with, and write it. LONG_WRITE if that is Python's."""
        cdef const uint8_t *payload = <const uint8_t *>self._payload_buffer.buf
        cdef size_t have, length
        cdef Received received
        cdef Outcome outcome
        parse(self._inbox + self.start, &self._long)
        length = self._long.length
        if payload == NULL or length > <size_t>self._payload_buffer.len:
            return LONG_WRITE
        have = self.end - self.start - REQUEST  # less than length, or it would not be a long write
        memcpy(self._payload_buffer.buf, self._inbox + self.start + REQUEST, have)
        self.start = self.end = 0
        received = self._receive_payload(have, length)
        if received != SOME:
            return LEFT if received == END else BROKEN
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
        self.position = put_header(self._arena, &self._long, self._structured)
        return GOING_ON if self._send() else BROKEN

    cdef bint _enter(self, Places places) noexcept nogil:
        """Enter the slot, unless the gate is closed or ``places`` are of another generation."""
        if self._is_inside:
            self._slot.entries += 1
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
            self._slot.go()

    cdef Reason _serve_hits(self, Places places) noexcept nogil:
        """Serve what is in the inbox, into the arena from ``position`` on; what is no plain hit goes aside."""
        cdef Request request
        cdef size_t need
        cdef Outcome outcome
        cdef size_t moved = 0
        cdef uint16_t unknown_flags = <uint16_t>~FLAG_DF if self._structured else 0xFFFF
        while self.end - self.start >= REQUEST:
            if self._aside_count == MAX_ASIDE or moved >= PROMPT:
                self.again = True
                break
            if not parse(self._inbox + self.start, &request):
                return NONSENSE
            if request.command == READ:
                if (
                    not 0 < request.length <= LONGEST_HIT
                    or request.flags & unknown_flags
                    or not inside(places, request.offset, request.length)
                ):
                    self.start += REQUEST
                    self._put_aside(&request)
                    continue
                if not self._has_room(request.length):
                    self.again = True
                    break
                self.start += REQUEST
                self._served += 1
                outcome = self._read(places, &request, False)
                moved += request.length
                if outcome == DIRECT:
                    outcome = self._begin_direct(places, &request)
                    if outcome == COLD:
                        self.start -= REQUEST
                        self.again = True
                        break
                    if outcome == DONE:
                        continue
                if outcome == COLD and self._add_cold(&request):
                    read_ahead(places, request.offset, request.length)
                elif outcome != DONE:
                    request.failed = outcome == FAILED
                    self._put_aside(&request)
            elif request.command == WRITE:
                need = REQUEST + <size_t>request.length
                if self.end - self.start < need:
                    if need > LONGEST_INLINE:
                        return LONG_WRITE
                    break
                request.payload = self.start + REQUEST
                self.start += need
                self._served += 1
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
                    self.position += put_header(self._arena + self.position, &request, self._structured)
                    continue
                if outcome == DIRECT:
                    outcome = self._begin_direct(places, &request)
                    if outcome == COLD:
                        self.start -= need
                        self.again = True
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
        return self._arena_size - self.position >= length + HOLE_CHUNK

    cdef Outcome _read(self, Places places, Request *request, bint may_wait) noexcept nogil:
        """Read into the arena, for which there is room."""
        cdef uint8_t *at = self._arena + self.position
        cdef size_t header = CHUNK_HEADER if self._structured else SIMPLE_REPLY
        cdef bint tell_holes = self._structured and not request.flags
        cdef Outcome outcome = read_range(places, request.offset, request.length, at + header, may_wait, tell_holes)
        if outcome == HOLE:
            self.position += put_hole(at, request)
            return DONE
        if outcome != DONE:
            return outcome
        self.position += put_header(at, request, self._structured) + request.length
        return DONE

    cdef void _put_aside(self, Request *request) noexcept nogil:
        # There is room: the loop stops when there is none.
        self._aside[self._aside_count] = request[0]
        self._aside_count += 1

    cdef bint _add_cold(self, Request *request) noexcept nogil:
        if self.cold == MAX_COLD:
            return False
        self._cold[(self._cold_first + self.cold) % MAX_COLD] = request[0]
        self.cold += 1
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
        return ASIDE if self._aside_count else GOING_ON

    cdef void _read_cold(self, Places places) noexcept nogil:
        """Read the oldest cold request, waiting for the disk, and those behind it that are in memory by then."""
        cdef Request *request
        cdef Outcome outcome
        while self.cold and self._aside_count < MAX_ASIDE:
            request = &self._cold[self._cold_first]
            if not self._has_room(request.length):
                break
            outcome = UNKNOWN
            if inside(places, request.offset, request.length):
                outcome = self._read(places, request, self.position == 0)
            if outcome == COLD:
                break
            if outcome != DONE:
                request.failed = outcome == FAILED
                self._put_aside(request)
            self._cold_first = (self._cold_first + 1) % MAX_COLD
            self.cold -= 1

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
            if not piece.writable or not may_change(places, request.offset, request.length):
                return UNKNOWN
            number = self._direct.write(&piece, self._inbox + request.payload, piece.alignment)
        if number < 0:
            return UNKNOWN
        if request.command == WRITE:
            note_write(places, request.offset + request.length)
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

    cdef bint _get_outside(self) noexcept nogil:
        return self._settle_direct()

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
            if self._in_flight[number].command == WRITE:
                mark_write(self._places, self._in_flight[number].offset, self._in_flight[number].length)
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
                parts[used].iov_len = put_header(&self._headers[number][0], request, self._structured)
                used += 1
                if request.command == READ:
                    parts[used].iov_base, parts[used].iov_len = self._direct.data(number), request.length
                    used += 1
            if not self._send_parts(parts, used):
                return False
            for index in range(count):
                self._direct.release(numbers[index])
        return True
