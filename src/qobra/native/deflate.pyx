"""Raw deflate with a window of 4 KiB, without the GIL: see ``deflate.h``."""

from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc

from qobra.native.buffers cimport items
from qobra.native.build cimport join_build

join_build(__name__)

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

    def compress(self, data, unsigned depth, unsigned nice, unsigned lazy):
        cdef Py_ssize_t length
        data = memoryview(data)
        cdef const uint8_t *plain = <const uint8_t *>items(data, 1, False, &length)
        cdef size_t size = length, made
        cdef uint8_t *out
        if not size or size > LARGEST or not depth:
            raise ValueError("a size or depth that cannot be")
        if self._busy:
            raise RuntimeError("used by two threads at once")
        out = <uint8_t *>malloc(size)
        if out == NULL:
            raise MemoryError
        self._busy = True
        try:
            with nogil:
                made = deflate_raw(self._deflater, plain, size, out, size, depth, nice, lazy)
            return out[:made] if made else None
        finally:
            self._busy = False
            free(out)
