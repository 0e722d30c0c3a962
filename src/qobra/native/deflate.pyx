"""Raw deflate with a window of 4 KiB, without the GIL: see ``deflate.h``."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc

from qobra.native.buffers cimport items
from qobra.native.build cimport join_build
from qobra.native.files cimport new_room

join_build(__name__)

cdef extern from "deflate_common.h":
    pass
cdef extern from "deflate_blocks.h":
    pass
cdef extern from "deflate_quick.h":
    pass
cdef extern from "deflate.h" nogil:
    struct deflater:
        pass
    deflater *deflater_new()
    size_t deflate_raw(
        deflater *, const uint8_t *, size_t, uint8_t *, size_t, unsigned, unsigned, unsigned
    )

cdef enum:
    LARGEST = 1 << 28


cdef class Deflater:
    """See ``deflate.pyi``."""

    cdef deflater *_deflater
    cdef bint _busy

    def __cinit__(self):
        self._deflater = deflater_new()
        if self._deflater == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._deflater)

    def compress(self, data, Py_ssize_t cluster, unsigned depth, unsigned nice, unsigned lazy):
        cdef Py_ssize_t size, at, count, number, made = 0
        data = memoryview(data)
        cdef const uint8_t *plain = <const uint8_t *>items(data, 1, False, &size)
        cdef uint8_t *out
        cdef size_t *ends
        if not 0 < cluster <= LARGEST or not 0 < size <= LARGEST or size % cluster:
            raise ValueError("a size that cannot be")
        if self._busy:
            raise RuntimeError("used by two threads at once")
        count = size // cluster
        out = new_room(size)
        ends = <size_t *>malloc(count * sizeof(size_t))
        self._busy = True
        try:
            if out == NULL or ends == NULL:
                raise MemoryError
            with nogil:
                for number in range(count):
                    at = number * cluster
                    made += deflate_raw(self._deflater, plain + at, cluster, out + made, cluster, depth, nice, lazy)
                    ends[number] = made
            packed = []
            made = 0
            for number in range(count):
                packed.append(PyBytes_FromStringAndSize(<char *>out + made, ends[number] - made) or None)
                made = ends[number]
            return packed
        finally:
            self._busy = False
            free(out)
            free(ends)
