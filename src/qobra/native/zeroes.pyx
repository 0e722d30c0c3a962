"""Zero detection without the GIL: the compiled form of ``qobra.block.copy.zeroes``."""

from libc.string cimport memcmp


cdef bint all_zero(const unsigned char *data, size_t size) noexcept nogil:
    # Comparing a range with itself moved by one byte lets memcmp do the work at its full width.
    return size == 0 or (data[0] == 0 and memcmp(data, data + 1, size - 1) == 0)


def zero_pieces(buffer, Py_ssize_t size, Py_ssize_t unit, Py_ssize_t phase=0):
    """See ``qobra.block.copy.zeroes.zero_pieces``."""
    cdef const unsigned char[::1] view = buffer
    if size > view.shape[0] or unit <= 0:
        raise ValueError("size is beyond the buffer, or unit is not positive")
    if size <= 0:
        return []
    cdef const unsigned char *data = &view[0]
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
