"""The notes of a core file: each CPU's registers (NT_PRSTATUS), and QEMU's own note with the rest of its state."""

from __future__ import annotations

from struct import Struct
from typing import Any

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
        status = b"".join(note(b"CORE", _NT_PRSTATUS, _x86_prstatus(cpu.index)) for cpu in cpus)
        return status + b"".join(note(b"QEMU", 0, _x86_state()) for _cpu in cpus)
    return b"".join(note(b"CORE", _NT_PRSTATUS, _riscv_prstatus(cpu.index)) for cpu in cpus)


# No CPU has run an instruction: the registers are those of a reset.
_X86_RESET = {"rdx": 0x663, "rip": 0xFFF0, "rflags": 2, "cs": 0xF000}
_X86_ORDER = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
_X86_GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rip", "rflags"),
)


def _x86_prstatus(index: int) -> bytes:
    registers = b"".join(_X86_RESET.get(name, 0).to_bytes(8, "little") for name in _X86_ORDER)
    return bytes(32) + (index + 1).to_bytes(4, "little") + bytes(76) + registers + bytes(8)


def _x86_state() -> bytes:
    general = b"".join(_X86_RESET.get(name, 0).to_bytes(8, "little") for name in _X86_GENERAL)
    code = _SEGMENT.pack(0xF000, 0xFFFF, 0x9B00, 0, 0xFFFF0000)
    data = _SEGMENT.pack(0, 0xFFFF, 0x9300, 0, 0)
    tables = _SEGMENT.pack(0, 0xFFFF, 0x8200, 0, 0) + _SEGMENT.pack(0, 0xFFFF, 0x8B00, 0, 0)
    descriptors = 2 * _SEGMENT.pack(0, 0xFFFF, 0, 0, 0)
    control = (0x60000010).to_bytes(8, "little") + bytes(32)
    body = general + code + 5 * data + tables + descriptors + control + bytes(8)
    return (1).to_bytes(4, "little") + (len(body) + 8).to_bytes(4, "little") + body


def _riscv_prstatus(index: int) -> bytes:
    # The program counter, then x1 to x31.
    registers = (0x1000).to_bytes(8, "little") + bytes(31 * 8)
    return bytes(32) + (index + 1).to_bytes(4, "little") + bytes(76) + registers + bytes(8)
