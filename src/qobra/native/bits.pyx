"""The union of two pages of bits: the compiled form of ``qobra.block.bits.pure_union``."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t

from qobra.native.buffers cimport items
from qobra.native.build cimport join_build

join_build(__name__)


def union(mine, theirs):
    """See ``qobra.block.bits.pure_union``."""
    cdef Py_ssize_t size, other, at
    left, right = memoryview(mine), memoryview(theirs)
    cdef const uint8_t *a = <const uint8_t *>items(left, 1, False, &size)
    cdef const uint8_t *b = <const uint8_t *>items(right, 1, False, &other)
    if other != size:
        raise ValueError("pages are of different sizes")
    if not size:
        return mine
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(result)
    cdef uint8_t changed = 0
    with nogil:
        for at in range(size):
            out[at] = a[at] | b[at]
            changed |= out[at] ^ a[at]
    return result if changed else mine
