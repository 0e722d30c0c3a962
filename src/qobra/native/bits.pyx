"""The union of two pages of bits: the compiled form of ``qobra.block.bits.pure_union``."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t


def union(mine, theirs):
    """See ``qobra.block.bits.pure_union``."""
    cdef const uint8_t[::1] left = mine, right = theirs
    cdef Py_ssize_t size = left.shape[0], at
    if right.shape[0] != size:
        raise ValueError("pages are of different sizes")
    if not size:
        return mine
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(result)
    cdef const uint8_t *a = &left[0]
    cdef const uint8_t *b = &right[0]
    cdef uint8_t changed = 0
    with nogil:
        for at in range(size):
            out[at] = a[at] | b[at]
            changed |= out[at] ^ a[at]
    return result if changed else mine
