"""On which NUMA nodes of the host memory is to lie (mbind(2))."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from qobra.errors import QobraError

_CALL_NUMBERS = {"x86_64": 237, "aarch64": 235, "riscv64": 235}
_MODES = {"preferred": 1, "bind": 2, "interleave": 3}
_STRICT, _MOVE = 1, 2
_MAX_NODES = 128
_BITS = 8 * ctypes.sizeof(ctypes.c_ulong)


def bind(memory: memoryview, policy: str, nodes: Iterable[int]) -> None:
    """Place the pages of ``memory``, those not yet touched too, by HostMemPolicy. Raises QobraError."""
    mask = sum(1 << node for node in set(nodes))
    words = (ctypes.c_ulong * (_MAX_NODES // _BITS + 1))()
    for index in range(len(words)):
        words[index] = mask >> index * _BITS & ((1 << _BITS) - 1)
    libc = ctypes.CDLL(None, use_errno=True)
    number = _CALL_NUMBERS.get(os.uname().machine)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    arguments = (start, len(memory), _MODES[policy], ctypes.addressof(words), _MAX_NODES + 1, _STRICT | _MOVE)
    if number is None or libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(each) for each in arguments)):
        error = OSError(ctypes.get_errno(), "") if number is not None else OSError(38, "")
        raise QobraError.from_os("cannot bind memory to host NUMA nodes", error)
