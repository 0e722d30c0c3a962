"""Buffers to read files into lie where the kernel copies to quickly."""

from __future__ import annotations

import ctypes
import mmap

import pytest

from qobra.block.buffers import new_buffer


@pytest.mark.parametrize("size", [0, 1, 4096, 512 << 10, 8 << 20])
def test_a_new_buffer_is_empty_and_writable(size: int) -> None:
    buffer = new_buffer(size)
    assert buffer == bytes(size)
    memoryview(buffer)[:] = b"x" * size
    assert buffer.count(b"x") == size


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="where large sizes begin depends on the C library")
def test_a_large_buffer_does_not_begin_right_after_a_boundary() -> None:
    # Larger than what malloc() takes from its heap, however much of that size was given back to it before.
    buffer = new_buffer(48 << 20)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    assert not 0 < address % mmap.PAGESIZE < 32
