"""The requests and replies of NBD's transmission phase as bytes; ``qobra.nbd.protocol`` has the same for Python.

Source: NBD protocol, "Transmission phase".
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #include <endian.h>
    #include <stdint.h>
    #include <string.h>
    static inline uint16_t qobra_get16(const void *p) { uint16_t v; memcpy(&v, p, 2); return be16toh(v); }
    static inline uint32_t qobra_get32(const void *p) { uint32_t v; memcpy(&v, p, 4); return be32toh(v); }
    static inline uint64_t qobra_get64(const void *p) { uint64_t v; memcpy(&v, p, 8); return be64toh(v); }
    static inline void qobra_put16(void *p, uint16_t v) { v = htobe16(v); memcpy(p, &v, 2); }
    static inline void qobra_put32(void *p, uint32_t v) { v = htobe32(v); memcpy(p, &v, 4); }
    static inline void qobra_put64(void *p, uint64_t v) { v = htobe64(v); memcpy(p, &v, 8); }
    """
    uint16_t get16 "qobra_get16"(const void *)
    uint32_t get32 "qobra_get32"(const void *)
    uint64_t get64 "qobra_get64"(const void *)
    void put16 "qobra_put16"(void *, uint16_t)
    void put32 "qobra_put32"(void *, uint32_t)
    void put64 "qobra_put64"(void *, uint64_t)

cdef enum:
    REQUEST = 28
    REQUEST_MAGIC = 0x25609513
    SIMPLE_MAGIC = 0x67446698
    CHUNK_MAGIC = 0x668E33EF
    SIMPLE_REPLY = 16
    CHUNK_HEADER = 28
    HOLE_CHUNK = 32
    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLAG_DF = 4


cdef struct Request:
    uint16_t flags
    uint16_t command
    uint64_t cookie
    uint64_t offset
    uint32_t length
    size_t payload    # where in the inbox, for a write
    bint failed       # only the nodes' methods can find out why


cdef inline bint parse(const uint8_t *at, Request *request) noexcept nogil:
    """Read the header of a request; False if it is none."""
    if get32(at) != <uint32_t>REQUEST_MAGIC:
        return False
    request.flags = get16(at + 4)
    request.command = get16(at + 6)
    request.cookie = get64(at + 8)
    request.offset = get64(at + 16)
    request.length = get32(at + 24)
    request.payload = 0
    request.failed = False
    return True


cdef inline size_t put_header(uint8_t *at, const Request *request, bint structured) noexcept nogil:
    """Write what comes before the data of the reply that a request was done; its length, at most CHUNK_HEADER."""
    if request.command == READ and structured:
        put32(at, <uint32_t>CHUNK_MAGIC)
        put16(at + 4, 1)  # the last chunk
        put16(at + 6, 1)  # data at an offset
        put64(at + 8, request.cookie)
        put32(at + 16, request.length + 8)
        put64(at + 20, request.offset)
        return CHUNK_HEADER
    put32(at, <uint32_t>SIMPLE_MAGIC)
    put32(at + 4, 0)
    put64(at + 8, request.cookie)
    return SIMPLE_REPLY


cdef inline size_t put_hole(uint8_t *at, const Request *request) noexcept nogil:
    """Write the structured reply of a read that there are only zeroes; its length, HOLE_CHUNK."""
    put32(at, <uint32_t>CHUNK_MAGIC)
    put16(at + 4, 1)  # the last chunk
    put16(at + 6, 2)  # a hole
    put64(at + 8, request.cookie)
    put32(at + 16, 12)
    put64(at + 20, request.offset)
    put32(at + 28, request.length)
    return HOLE_CHUNK
