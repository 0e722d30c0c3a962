"""The notes of a core file: each CPU's registers (NT_PRSTATUS), and QEMU's own note with the rest of its state."""

from __future__ import annotations

from struct import Struct
from typing import Any

from qobra.machine import registers

_NOTE = Struct("<III")
_NT_PRSTATUS = 1
_SEGMENT = Struct("<IIIIQ")


def note(name: bytes, kind: int, body: bytes) -> bytes:
    """One ELF note."""
    padded = name + b"\0"
    head = _NOTE.pack(len(padded), len(body), kind)
    return head + padded.ljust((len(padded) + 3) & ~3, b"\0") + body.ljust((len(body) + 3) & ~3, b"\0")


def body_of(note: bytes) -> tuple[int, int]:
    """Where in a note its body lies, and how long it is."""
    name_length, body_length, _kind = _NOTE.unpack_from(note)
    return _NOTE.size + ((name_length + 3) & ~3), body_length


def cpu_notes(cpus: list[Any], architecture: str) -> bytes:
    """The notes of all CPUs: first the registers of each, then the states."""
    if architecture == "x86_64":
        status = b"".join(note(b"CORE", _NT_PRSTATUS, _x86_prstatus(cpu)) for cpu in cpus)
        return status + b"".join(note(b"QEMU", 0, _x86_state(cpu)) for cpu in cpus)
    return b"".join(note(b"CORE", _NT_PRSTATUS, _riscv_prstatus(cpu.index)) for cpu in cpus)


_X86_ORDER = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
_X86_GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rip", "rflags"),
)


def _x86_prstatus(cpu: Any) -> bytes:
    index: int = cpu.index
    values = registers.x86(cpu)
    status = b"".join(values.get(name, 0).to_bytes(8, "little") for name in _X86_ORDER)
    return bytes(32) + (index + 1).to_bytes(4, "little") + bytes(76) + status + bytes(8)


def _x86_state(cpu: Any) -> bytes:
    values = registers.x86(cpu)
    general = b"".join(values.get(name, 0).to_bytes(8, "little") for name in _X86_GENERAL)
    selector, base, flags = registers.X86_CODE
    code = _SEGMENT.pack(selector, registers.X86_LIMIT, flags, 0, base)
    data, table, task = (
        _SEGMENT.pack(0, registers.X86_LIMIT, flags, 0, 0)
        for flags in (registers.X86_DATA_FLAGS, registers.X86_TABLE_FLAGS, registers.X86_TASK_FLAGS)
    )
    descriptors = 2 * _SEGMENT.pack(0, registers.X86_LIMIT, 0, 0, 0)
    control = registers.X86_CR0.to_bytes(8, "little") + bytes(32)
    body = general + code + 5 * data + table + task + descriptors + control + bytes(8)
    return (1).to_bytes(4, "little") + (len(body) + 8).to_bytes(4, "little") + body


def _riscv_prstatus(index: int) -> bytes:
    # The program counter, then x1 to x31.
    status = registers.RISCV_START.to_bytes(8, "little") + bytes(31 * 8)
    return bytes(32) + (index + 1).to_bytes(4, "little") + bytes(76) + status + bytes(8)
