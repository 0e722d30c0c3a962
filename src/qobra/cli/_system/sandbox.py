"""``-sandbox``: system calls that the program gives up, by a seccomp filter that refuses them with EPERM.

What is given up follows QEMU's option: calls that no emulator makes at all, and at the user's word those that raise
privileges, start programs or change how much of the host is used. The filter is classic BPF (seccomp(2)); the numbers
are those of x86-64.
"""

from __future__ import annotations

import os
import struct

from qobra.chardev.options import split
from qobra.errors import QobraError
from qobra.machine.option_groups import boolean

_ALWAYS = (169, 167, 168, 103, 165, 166, 246, 320, 155, 161, 163, 170, 171, 172, 173, 174, 175, 176)
"""reboot, swapon, swapoff, syslog, mount, umount2, kexec_load, kexec_file_load, pivot_root, chroot, acct,
sethostname, setdomainname, iopl, ioperm, create_module, init_module, delete_module."""
_OBSOLETE = (134, 136, 139, 156, 177, 178)
"""uselib, ustat, sysfs, _sysctl, get_kernel_syms, query_module."""
_ELEVATE = (105, 106, 113, 114, 117, 119, 116, 122, 123)
"""setuid, setgid, setreuid, setregid, setresuid, setresgid, setgroups, setfsuid, setfsgid."""
_SPAWN = (57, 58, 59, 322)
"""fork, vfork, execve, execveat."""
_RESOURCES = (141, 142, 144, 203, 238, 251, 256, 279, 314)
"""setpriority, sched_setparam, sched_setscheduler, sched_setaffinity, set_mempolicy, ioprio_set, migrate_pages,
move_pages, sched_setattr."""

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EPERM = 1
_AUDIT_ARCH_X86_64 = 0xC000003E
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_PR_SET_NO_NEW_PRIVS = 38
_SYS_SECCOMP, _SET_MODE_FILTER, _FLAG_ALL_THREADS = 317, 1, 1


def parse(text: str) -> list[int] | None:
    """The numbers of the calls that ``-sandbox TEXT`` refuses, or None for ``off``. Raises QobraError."""
    options = split(text, "enable")
    if not boolean("enable", options.pop("enable", "off")):
        return None
    refused = list(_ALWAYS)
    choices = {
        "obsolete": (_OBSOLETE, ("allow", "deny"), "deny"),
        "elevateprivileges": (_ELEVATE, ("allow", "deny", "children"), "allow"),
        "spawn": (_SPAWN, ("allow", "deny"), "allow"),
        "resourcecontrol": (_RESOURCES, ("allow", "deny"), "allow"),
    }
    for name, (calls, words, default) in choices.items():
        value = options.pop(name, default)
        if value not in words:
            raise QobraError(f"invalid argument for {name}")
        if value == "deny":
            refused += calls
    for name in options:
        raise QobraError(f"Invalid parameter '{name}'")
    return refused


def enter(refused: list[int]) -> None:
    """Give the calls up, for all threads and children to come. Raises QobraError where the host cannot."""
    import ctypes

    if os.uname().machine != "x86_64":
        raise QobraError("seccomp support is disabled")
    rules = [(_LOAD, 0, 0, 4), (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH_X86_64), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, 0)]
    for number in refused:
        rules += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    rules.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero):
        raise QobraError.from_os("failed to set no_new_privs", OSError(ctypes.get_errno(), ""))
    if libc.syscall(ctypes.c_long(_SYS_SECCOMP), _SET_MODE_FILTER, _FLAG_ALL_THREADS, program):
        raise QobraError.from_os("failed to install seccomp syscall filter", OSError(ctypes.get_errno(), ""))
