"""Where a thread that serves a guest runs: the compiled form of ``qobra.block.export.placement``, which says why."""

from libc.stdint cimport int64_t

from qobra.native.build cimport join_build

join_build(__name__)

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <sched.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <time.h>
    #include <unistd.h>
    static inline int64_t qobra_clock(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
    }
    static inline int qobra_open_times(void) {
        return open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    }
    /* Nanoseconds that the thread waited for a processor; -1 where that is not known. */
    static inline int64_t qobra_waited(int fd) {
        char text[96], *end;
        ssize_t count = pread(fd, text, sizeof text - 1, 0);
        if (count <= 0)
            return -1;
        text[count] = 0;
        strtoll(text, &end, 10);
        return *end == ' ' ? strtoll(end, NULL, 10) : -1;
    }
    /* Go on on another processor; 0 where the thread may use no other. */
    static inline int qobra_leave_processor(void) {
        cpu_set_t allowed, others;
        int here = sched_getcpu();
        if (here < 0 || here >= CPU_SETSIZE || sched_getaffinity(0, sizeof allowed, &allowed))
            return 0;
        others = allowed;
        CPU_CLR(here, &others);
        if (!CPU_COUNT(&others) || sched_setaffinity(0, sizeof others, &others))
            return 0;
        return !sched_setaffinity(0, sizeof allowed, &allowed);
    }
    """
    int64_t clock_ns "qobra_clock"()
    int open_times "qobra_open_times"()
    int64_t waited_ns "qobra_waited"(int)
    bint leave_processor "qobra_leave_processor"()
    int close(int)

cdef enum:
    NOT_OPEN = -1
    OF_NO_USE = -2
    LOOK_NS = 1_000_000
    LONGEST_NS = 64_000_000
    CROWDED = 4


cdef class Placement:
    """See ``qobra.block.export.placement``."""

    def __cinit__(self):
        self._fd = NOT_OPEN

    def __dealloc__(self):
        if self._fd >= 0:
            close(self._fd)

    def judge(self, int64_t now_ns, int64_t waited_ns):
        return bool(self._judge(now_ns, waited_ns))

    def look(self):
        with nogil:
            self.look_now()

    def leave(self):
        return bool(leave_processor())

    cdef bint _judge(self, int64_t now, int64_t waited) noexcept nogil:
        cdef bint crowded = self._looked_ns != 0 and (waited - self._waited_ns) * CROWDED > now - self._looked_ns
        if not crowded:
            self._rest_ns = 0
        elif self._rest_ns:
            self._rest_ns = min(2 * self._rest_ns, <int64_t>LONGEST_NS)
        else:
            self._rest_ns = LOOK_NS
        self._looked_ns, self._waited_ns = now, waited
        self._next_ns = now + max(self._rest_ns, <int64_t>LOOK_NS)
        return crowded

    cdef void look_now(self) noexcept nogil:
        cdef int64_t now, waited
        if self._fd == OF_NO_USE:
            return
        now = clock_ns()
        if now < self._next_ns:
            return
        if self._fd == NOT_OPEN:
            self._fd = open_times()
        waited = waited_ns(self._fd) if self._fd >= 0 else -1
        if waited < 0 or (self._judge(now, waited) and not leave_processor()):
            if self._fd >= 0:
                close(self._fd)
            self._fd = OF_NO_USE
