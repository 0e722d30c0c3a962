"""Zero detection without the GIL: the compiled form of ``qobra.block.copy.zeroes``.

Buffers are taken as C does it: typed memoryviews import ``collections`` when the module is loaded, which takes 2 ms.
"""

import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memcmp
from posix.types cimport off_t

from qobra.native.build cimport join_build
from qobra.native.files cimport read_all

join_build(__name__)


cdef Py_ssize_t MOST = 1 << 40   # sums of such stay far below what a word holds


cdef bint all_zero(const unsigned char *data, size_t size) noexcept nogil:
    # Comparing a range with itself moved by one byte lets memcmp do the work at its full width.
    return size == 0 or (data[0] == 0 and memcmp(data, data + 1, size - 1) == 0)


def zero_pieces(buffer, Py_ssize_t size, Py_ssize_t unit, Py_ssize_t phase=0):
    """See ``qobra.block.copy.zeroes.zero_pieces``."""
    cdef Py_buffer view
    if not 0 < unit <= MOST or not 0 <= phase <= MOST:
        raise ValueError("a unit or phase that cannot be")
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        if size > view.len:
            raise ValueError("size is beyond the buffer")
        return pieces_of(<const unsigned char *>view.buf, size, unit, phase)
    finally:
        PyBuffer_Release(&view)


cdef list pieces_of(const unsigned char *data, Py_ssize_t size, Py_ssize_t unit, Py_ssize_t phase):
    """The pieces of ``size`` bytes of ``data``, which is as long as that."""
    cdef Py_ssize_t start = 0, run = 0, stop
    cdef bint zero, run_zero = False
    pieces = []
    while start < size:
        with nogil:
            # Extend the run for as long as the units are of one kind.
            while start < size:
                stop = min(size, start + unit - (start + phase) % unit)
                zero = all_zero(data + start, stop - start)
                if start == run:
                    run_zero = zero
                elif zero != run_zero:
                    break
                start = stop
        pieces.append((run, start - run, bool(run_zero)))
        run = start
    return pieces


def read_pieces(int fd, buffer, Py_ssize_t size, off_t offset, Py_ssize_t unit, Py_ssize_t phase=0):
    """See ``qobra.block.copy.zeroes.read_pieces``."""
    cdef Py_buffer view
    cdef unsigned char *data
    cdef int failure
    if not 0 <= unit <= MOST or not 0 <= phase <= MOST or offset < 0:
        raise ValueError("an offset, unit or phase that cannot be")
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    try:
        if not 0 < size <= view.len:
            raise ValueError("size is beyond the buffer")
        data = <unsigned char *>view.buf
        with nogil:
            failure = read_all(fd, data, size, offset)
        if failure:
            raise OSError(failure, os.strerror(failure))
        return pieces_of(data, size, unit, phase) if unit else [(0, size, False)]
    finally:
        PyBuffer_Release(&view)
