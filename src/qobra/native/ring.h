/* The few calls of io_uring that qobra.native.direct makes, without a library: one ring, one thread. See io_uring(7). */
#ifndef QOBRA_RING_H
#define QOBRA_RING_H

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__has_include)
#if __has_include(<linux/io_uring.h>) && defined(__NR_io_uring_setup)
#include <linux/io_uring.h>
#define QOBRA_HAS_RING 1
#endif
#endif

struct qobra_ring {
    int fd;
    unsigned waiting; /* entries that have been put but not submitted */
    void *sq, *cq, *entries;
    size_t sq_size, cq_size, entries_size;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    void *completions;
};

static inline void qobra_ring_close(struct qobra_ring *ring) {
    if (ring->sq) munmap(ring->sq, ring->sq_size);
    if (ring->cq) munmap(ring->cq, ring->cq_size);
    if (ring->entries) munmap(ring->entries, ring->entries_size);
    if (ring->fd >= 0) close(ring->fd);
    memset(ring, 0, sizeof *ring);
    ring->fd = -1;
}

#ifdef QOBRA_HAS_RING

static inline void *qobra_ring_map(int fd, size_t size, uint64_t what) {
    void *found = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)what);
    return found == MAP_FAILED ? NULL : found;
}

/* Make a ring for so many requests at a time; 0, or -1 where the kernel has none or does not allow it. */
static inline int qobra_ring_open(struct qobra_ring *ring, unsigned entries) {
    struct io_uring_params params;
    memset(ring, 0, sizeof *ring);
    memset(&params, 0, sizeof params);
#if defined(IORING_SETUP_DEFER_TASKRUN) && defined(IORING_SETUP_SINGLE_ISSUER)
    params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    ring->fd = (int)syscall(__NR_io_uring_setup, entries, &params);
    if (ring->fd < 0 && errno == EINVAL) /* an older kernel */
#endif
    {
        memset(&params, 0, sizeof params);
        ring->fd = (int)syscall(__NR_io_uring_setup, entries, &params);
    }
    if (ring->fd < 0) return -1;
    ring->sq_size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    ring->cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    ring->entries_size = params.sq_entries * sizeof(struct io_uring_sqe);
    ring->sq = qobra_ring_map(ring->fd, ring->sq_size, IORING_OFF_SQ_RING);
    ring->cq = qobra_ring_map(ring->fd, ring->cq_size, IORING_OFF_CQ_RING);
    ring->entries = qobra_ring_map(ring->fd, ring->entries_size, IORING_OFF_SQES);
    if (!ring->sq || !ring->cq || !ring->entries) {
        qobra_ring_close(ring);
        return -1;
    }
    ring->sq_tail = (unsigned *)((char *)ring->sq + params.sq_off.tail);
    ring->sq_mask = (unsigned *)((char *)ring->sq + params.sq_off.ring_mask);
    ring->sq_array = (unsigned *)((char *)ring->sq + params.sq_off.array);
    ring->cq_head = (unsigned *)((char *)ring->cq + params.cq_off.head);
    ring->cq_tail = (unsigned *)((char *)ring->cq + params.cq_off.tail);
    ring->cq_mask = (unsigned *)((char *)ring->cq + params.cq_off.ring_mask);
    ring->completions = (char *)ring->cq + params.cq_off.cqes;
    return 0;
}

/* Put one entry; the caller never has more in flight than the ring was made for. */
static inline void qobra_ring_put(
    struct qobra_ring *ring, int opcode, int fd, void *buffer, unsigned length, int64_t offset, uint64_t tag
) {
    unsigned tail = *ring->sq_tail, index = tail & *ring->sq_mask;
    struct io_uring_sqe *entry = (struct io_uring_sqe *)ring->entries + index;
    memset(entry, 0, sizeof *entry);
    entry->opcode = (uint8_t)opcode;
    entry->fd = fd;
    entry->user_data = tag;
    if (opcode == IORING_OP_POLL_ADD) {
        entry->poll_events = POLLIN;
    } else {
        entry->addr = (uint64_t)(uintptr_t)buffer;
        entry->len = length;
        entry->off = (uint64_t)offset;
    }
    ring->sq_array[index] = index;
    __atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
    ring->waiting++;
}

/* Submit what was put, and wait for so many completions; 0, or -1 with errno. */
static inline int qobra_ring_enter(struct qobra_ring *ring, unsigned wait) {
    for (;;) {
        int done = (int)syscall(
            __NR_io_uring_enter, ring->fd, ring->waiting, wait, IORING_ENTER_GETEVENTS, NULL, 0
        );
        if (done >= 0) {
            ring->waiting -= (unsigned)done < ring->waiting ? (unsigned)done : ring->waiting;
            if (!ring->waiting) return 0;
        } else if (errno == EAGAIN || errno == EBUSY) {
            poll(NULL, 0, 1); /* short of memory */
        } else if (errno != EINTR) {
            return -1;
        }
    }
}

/* Take one completion; 0 if there is none. */
static inline int qobra_ring_take(struct qobra_ring *ring, uint64_t *tag, int *result) {
    unsigned head = *ring->cq_head;
    struct io_uring_cqe *found;
    if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE)) return 0;
    found = (struct io_uring_cqe *)ring->completions + (head & *ring->cq_mask);
    *tag = found->user_data;
    *result = found->res;
    __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
    return 1;
}

#define QOBRA_RING_READ IORING_OP_READ
#define QOBRA_RING_WRITE IORING_OP_WRITE
#define QOBRA_RING_POLL IORING_OP_POLL_ADD

#else /* no io_uring at build time */

static inline int qobra_ring_open(struct qobra_ring *ring, unsigned entries) {
    (void)entries;
    memset(ring, 0, sizeof *ring);
    ring->fd = -1;
    return -1;
}
static inline void qobra_ring_put(
    struct qobra_ring *ring, int opcode, int fd, void *buffer, unsigned length, int64_t offset, uint64_t tag
) {
    (void)ring, (void)opcode, (void)fd, (void)buffer, (void)length, (void)offset, (void)tag;
}
static inline int qobra_ring_enter(struct qobra_ring *ring, unsigned wait) {
    (void)ring, (void)wait;
    errno = ENOSYS;
    return -1;
}
static inline int qobra_ring_take(struct qobra_ring *ring, uint64_t *tag, int *result) {
    (void)ring, (void)tag, (void)result;
    return 0;
}
#define QOBRA_RING_READ 0
#define QOBRA_RING_WRITE 0
#define QOBRA_RING_POLL 0

#endif
#endif
