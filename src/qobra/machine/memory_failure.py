"""Memory of the host that broke: the kernel tells with SIGBUS, and MEMORY_FAILURE tells the user.

What was found broken before anybody used it comes as an ordinary signal (``BUS_MCEERR_AO``, sigaction(2)) to a
process that asked to be told early (``PR_MCE_KILL``, prctl(2)). What is used before that kills the process, as no
guest could go on.
The signal has to be blocked in every thread, so :func:`block` comes before the first is started.
"""

from __future__ import annotations

import _signal as signal  # the signal module is slow to import
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

_PR_MCE_KILL, _PR_MCE_KILL_SET, _PR_MCE_KILL_EARLY = 33, 1, 1
_ACTION_OPTIONAL = 5
_SIGNALFD_CLOEXEC = 0x80000
_RECORD_SIZE, _CODE_AT, _ADDRESS_AT = 128, 8, 72


def block() -> None:
    """Keep the signal back in this thread and those that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGBUS})


def watch(machine: Machine) -> None:
    """Report failures of ``machine``'s memory from now on, in a thread of its own."""
    threading.Thread(target=_watch, args=(machine,), name="memory failures", daemon=True).start()


def _watch(machine: Machine) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_MCE_KILL, _PR_MCE_KILL_SET, _PR_MCE_KILL_EARLY, 0, 0)
    mask = (1 << signal.SIGBUS - 1).to_bytes(128, "little")  # a sigset_t
    fd = libc.signalfd(-1, mask, _SIGNALFD_CLOEXEC)
    if fd < 0:
        return  # a kernel without them: failures end the program then
    while len(record := os.read(fd, _RECORD_SIZE)) == _RECORD_SIZE:
        code = int.from_bytes(record[_CODE_AT : _CODE_AT + 4], "little", signed=True)
        address = int.from_bytes(record[_ADDRESS_AT : _ADDRESS_AT + 8], "little")
        if code == _ACTION_OPTIONAL:
            machine.control.post(_report, machine, address)


def _report(machine: Machine, address: int) -> None:
    """Nobody has used the memory yet, and no CPU runs that could be told: the failure is only reported."""
    machine.events.emit(
        "MEMORY_FAILURE",
        {
            "recipient": "guest" if _is_guests(machine, address) else "hypervisor",
            "action": "ignore",
            "flags": {"action-required": False, "recursive": False},
        },
    )


def _is_guests(machine: Machine, address: int) -> bool:
    import ctypes

    from qobra.machine.memory import Ram

    if machine.board is None:
        return False
    for _start, _end, region, _offset in machine.board.memory.flat():
        if isinstance(region, Ram) and not region.view.readonly:
            start = ctypes.addressof(ctypes.c_char.from_buffer(region.view))
            if start <= address < start + region.size:
                return True
    return False
