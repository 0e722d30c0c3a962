"""Where the guest's memory lies in this process, and in the host."""

from __future__ import annotations

import ctypes
import os

from qobra.errors import QobraError

_BUFFER_SIZE = 128  # of a Py_buffer, whose first member is the address
_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1


def address_of(view: memoryview) -> int:
    """The address of the first byte in this process."""
    buffer = ctypes.create_string_buffer(_BUFFER_SIZE)
    api = ctypes.pythonapi
    if api.PyObject_GetBuffer(ctypes.py_object(view), buffer, 0):
        raise QobraError("the memory has no address")
    try:
        return ctypes.c_void_p.from_buffer(buffer).value or 0
    finally:
        api.PyBuffer_Release(buffer)


def physical_address(address: int) -> int:
    """Where the host has what is at ``address`` of this process (proc(5), ``/proc/PID/pagemap``). Raises QobraError."""
    size = os.sysconf("SC_PAGESIZE")
    try:
        with open("/proc/self/pagemap", "rb") as pages:
            pages.seek(address // size * 8)
            entry = int.from_bytes(pages.read(8), "little")
    except OSError as error:
        raise QobraError.from_os("Cannot open /proc/self/pagemap", error)
    if not entry & _PRESENT:
        raise QobraError("Page not present")
    return (entry & _FRAME) * size + address % size
