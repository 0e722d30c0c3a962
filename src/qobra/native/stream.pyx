"""A socket with a buffer for each direction, used without the GIL."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pythread cimport WAIT_LOCK, PyThread_acquire_lock, PyThread_release_lock
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t
from libc.string cimport memmove, memset

from qobra.native.build cimport join_build

join_build(__name__)

cdef extern from * nogil:
    """
    #include <linux/sockios.h>
    #include <poll.h>
    #include <sched.h>
    #include <sys/socket.h>
    #include <stdint.h>
    #include <sys/ioctl.h>
    #include <time.h>
    static inline int64_t qobra_now(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
    }
    /* A unix socket counts its packets' memory until the peer has read all of them; TCP what was not acknowledged. */
    static inline int64_t qobra_unread(int fd) {
        int bytes;
        return ioctl(fd, SIOCOUTQ, &bytes) ? 0 : bytes;
    }
    static inline void qobra_wait_for(int fd, int events) {
        struct pollfd one = {.fd = fd, .events = events};
        poll(&one, 1, -1);
    }
    """
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    int64_t now_ns "qobra_now"()
    int64_t unread "qobra_unread"(int)
    void sched_yield()
    void wait_for "qobra_wait_for"(int, int)
    ssize_t recv(int, void *, size_t, int)
    ssize_t sendmsg(int, const msghdr *, int)
    int MSG_DONTWAIT, MSG_NOSIGNAL, MSG_WAITALL, POLLIN, POLLOUT

cdef enum:
    MAX_POLL_NS = 32000
    LONG_NS = 500000
    MAX_REST = 1 << 14
    # Requests gather for as long as this, while so many replies have not been read.
    MAX_GATHER_NS = 25000
    MANY_UNREAD = 3
    MAX_PACE_NS = 20000
    PACKET = 768    # memory of an empty packet


cdef class Stream:
    """One connection. Bytes from ``start`` to ``end`` of the inbox have come and were not taken; bytes up to ``position`` of
    the arena are to be sent. ``sock`` is a blocking socket, or -1 where the caller receives and sends. ``lock`` is taken
    by whoever sends.
    """

    def __cinit__(self, Lock lock not None, int sock, inbox, arena, *_args, **_kwargs):
        PyObject_GetBuffer(inbox, &self._inbox_buffer, PyBUF_WRITABLE)
        PyObject_GetBuffer(arena, &self._arena_buffer, PyBUF_WRITABLE)
        self._inbox, self._inbox_size = <uint8_t *>self._inbox_buffer.buf, self._inbox_buffer.len
        self._arena, self._arena_size = <uint8_t *>self._arena_buffer.buf, self._arena_buffer.len
        self._lock, self._sock = lock, sock

    def __dealloc__(self):
        self._release()

    def close(self):
        """Let go of the buffers; nothing else may be called then. Python's collector cannot clear a memoryview before."""
        self._release()

    cdef void _release(self):
        self._inbox = self._arena = NULL
        self._inbox_size = self._arena_size = 0
        self._payload_owner = None
        PyBuffer_Release(&self._inbox_buffer)
        PyBuffer_Release(&self._arena_buffer)
        PyBuffer_Release(&self._payload_buffer)

    @property
    def error(self):
        """The errno with which the connection broke."""
        return self._errno

    def set_payload(self, buffer):
        """Where payloads that are too long for the inbox may go."""
        if buffer is not self._payload_owner:
            PyBuffer_Release(&self._payload_buffer)
            self._payload_owner = None
            PyObject_GetBuffer(buffer, &self._payload_buffer, PyBUF_WRITABLE)
            self._payload_owner = buffer

    cdef int _check(self) except -1:
        """Raise unless ``start`` and ``end``, which Python may set, are inside the inbox, which must still be there."""
        if self._inbox == NULL or self.start > self.end or self.end > self._inbox_size:
            raise ValueError("not inside the inbox")
        return 0

    cdef Received _receive(self, bint may_wait, size_t room) noexcept nogil:
        """Get more bytes, with room for ``room`` of them."""
        cdef ssize_t count
        cdef int64_t began = 0, blocked = 0
        cdef bint polls = may_wait and self._rest == 0
        if self._rest:
            self._rest -= 1
        if self.start == self.end:
            self.start = self.end = 0
        elif self._inbox_size - self.end < room:
            memmove(self._inbox, self._inbox + self.start, self.end - self.start)
            self.end -= self.start
            self.start = 0
        while True:
            count = recv(
                self._sock,
                self._inbox + self.end,
                self._inbox_size - self.end,
                MSG_DONTWAIT if polls or not may_wait else 0,
            )
            if count > 0:
                self.end += count
                if blocked:
                    self._note_wait(now_ns() - blocked)
                return SOME
            if count == 0:
                return END
            if errno == EAGAIN:
                if polls:
                    if not began:
                        began = now_ns()
                    blocked = self._let_others_run()
                    polls = self._rest == 0 and blocked - began < self._poll_ns
                elif may_wait:
                    wait_for(self._sock, POLLIN)
                else:
                    return NOTHING
            elif errno != EINTR:
                self._errno = errno
                return ERROR

    cdef void _gather(self, int64_t requests, int64_t replied) noexcept nogil:
        """Let requests gather while a client with several replies to read reads half of them. ``requests`` were answered
        since the last time, with ``replied`` bytes.

        Such a client is what there is to wait for: one that sends a request for each reply gets its replies one by one from
        a server that is quicker, and pays for each packet and for the server looking at the socket meanwhile. A client
        that has read its replies, or most of them, is not kept waiting.
        """
        cdef int64_t now, replies, until
        if self._longest_rest or requests <= 0 or replied <= 0:
            return  # others want the processor, or there is nothing to go by
        now = now_ns()
        self._pace_ns += (min((now - self._gathered) // requests, <int64_t>MAX_PACE_NS) - self._pace_ns) >> 3
        self._gathered = now
        replies = unread(self._sock) // (replied // requests + PACKET)
        if replies < MANY_UNREAD:
            return
        until = now + min(replies * self._pace_ns // 2, <int64_t>MAX_GATHER_NS)
        now = self._let_others_run()  # once: each time is one more for neighbours that compute
        while now < until:
            now = now_ns()

    cdef int64_t _let_others_run(self) noexcept nogil:
        """Let others run while there is nothing to do yet; the time then. A client that shares the processor sends
        all it has meanwhile, where waiting would wake the two up in turn for each request. Where others than the client
        want the processor this takes long, and is left out for ever longer."""
        cdef int64_t before = now_ns(), after
        sched_yield()
        after = now_ns()
        if after - before > LONG_NS:
            self._longest_rest = min(max(2 * self._longest_rest, 64), MAX_REST)
            self._rest = self._longest_rest
        else:
            self._longest_rest >>= 1
        return after

    cdef void _note_wait(self, int64_t took) noexcept nogil:
        """A receive took so long after looking again and again was over: look for longer if that would have been enough."""
        if took < MAX_POLL_NS:
            self._poll_ns = min(2 * self._poll_ns + 1000, MAX_POLL_NS)
        else:
            self._poll_ns >>= 1

    cdef Received _receive_payload(self, size_t have, size_t length) noexcept nogil:
        """Fill the payload's memory from ``have`` up to ``length``."""
        cdef ssize_t count
        if length > <size_t>self._payload_buffer.len:
            self._errno = EAGAIN
            return ERROR
        while have < length:
            count = recv(self._sock, <uint8_t *>self._payload_buffer.buf + have, length - have, MSG_WAITALL)
            if count > 0:
                have += count
            elif count == 0:
                return END
            elif errno == EAGAIN:
                wait_for(self._sock, POLLIN)
            elif errno != EINTR:
                self._errno = errno
                return ERROR
        return SOME

    cdef bint _send(self) noexcept nogil:
        """Send what is in the arena; False when the client is gone."""
        cdef iovec part
        part.iov_base, part.iov_len = self._arena, self.position
        return self._send_parts(&part, 1)

    cdef bint _send_parts(self, iovec *parts, size_t count) noexcept nogil:
        """Send whole replies. A client that does not read them is waited for outside of the slot."""
        cdef msghdr message
        cdef ssize_t sent
        memset(&message, 0, sizeof(message))
        PyThread_acquire_lock(self._lock.lock, WAIT_LOCK)
        while count:
            message.msg_iov, message.msg_iovlen = parts, count
            sent = sendmsg(self._sock, &message, MSG_NOSIGNAL | (MSG_DONTWAIT if self._is_inside else 0))
            if sent < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN:
                    if not self._is_inside:
                        wait_for(self._sock, POLLOUT)
                        continue
                    if self._get_outside():
                        continue
                else:
                    self._errno = errno
                break
            while count and <size_t>sent >= parts.iov_len:
                sent -= parts.iov_len
                parts += 1
                count -= 1
            if count:
                parts.iov_base = <uint8_t *>parts.iov_base + sent
                parts.iov_len -= sent
        PyThread_release_lock(self._lock.lock)
        return count == 0

    cdef bint _get_outside(self) noexcept nogil:
        """Leave the slot, once that is possible; False, with ``_errno``, if it never will be."""
        return False
