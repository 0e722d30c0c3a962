"""The buffers of arguments, for functions without the GIL.

A module that uses Cython's typed memoryviews imports ``collections`` when it is loaded, a twentieth of the time that a
short run of an image tool takes. Python's own hold a buffer just as well: until the last reference to them is gone.
"""

from cpython.buffer cimport PyBuffer_IsContiguous

cdef extern from "Python.h":
    Py_buffer *PyMemoryView_GET_BUFFER(object view)


cdef inline void *items(object view, Py_ssize_t size, bint writable, Py_ssize_t *count) except? NULL:
    """Where the items of a ``memoryview``, of ``size`` bytes each, lie in a row, and how many they are.

    The caller holds the view for as long as it uses them. May be NULL where there are none.
    """
    cdef Py_buffer *buffer = PyMemoryView_GET_BUFFER(view)
    if buffer.itemsize != size or buffer.ndim != 1 or not PyBuffer_IsContiguous(buffer, b"C"):
        raise ValueError("items of another kind")
    if writable and buffer.readonly:
        raise ValueError("a buffer that is read-only")
    count[0] = buffer.len // size
    return buffer.buf
