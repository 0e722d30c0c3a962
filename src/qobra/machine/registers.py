"""The registers of CPUs that have not run: as a reset leaves them (Intel SDM volume 3, 9.1; RISC-V privileged, 3.4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qobra.machine.cpu import Cpu

X86_LIMIT = 0xFFFF
X86_CODE = (0xF000, 0xFFFF0000, 0x9B00)
"""Selector, base and flags of the code segment."""
X86_DATA_FLAGS, X86_TABLE_FLAGS, X86_TASK_FLAGS = 0x9300, 0x8200, 0x8B00
X86_CR0 = 0x60000010
RISCV_START = 0x1000
_GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")
_UXL_SXL = 0xA00000000  # mstatus: registers of 64 bits in all modes
_RISCV_NAMES = (
    *("zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", *(f"a{i}" for i in range(8))),
    *(*(f"s{i}" for i in range(2, 12)), *(f"t{i}" for i in range(3, 7))),
)
_RISCV_FLOATS = (
    *(*(f"ft{i}" for i in range(8)), "fs0", "fs1", *(f"fa{i}" for i in range(8))),
    *(*(f"fs{i}" for i in range(2, 12)), *(f"ft{i}" for i in range(8, 12))),
)
_RISCV_ZERO = (
    *("mie", "mideleg", "hideleg", "medeleg", "hedeleg", "mtvec", "stvec", "vstvec", "mepc", "sepc", "vsepc"),
    *("mcause", "scause", "vscause", "mtval", "stval", "htval", "mtval2", "mscratch", "sscratch", "satp"),
)


def x86(cpu: Any) -> dict[str, int]:
    """General registers of a CPU of a PC; the others are 0."""
    return {"rdx": cpu.processor_id() & 0xFFFFFFFF, "rip": 0xFFF0, "rflags": 2, "cs": X86_CODE[0]}


def program_counter(cpu: Cpu) -> int:
    """The address of the next instruction, linear on a PC."""
    return X86_CODE[1] + x86(cpu)["rip"] if cpu.architecture == "x86_64" else RISCV_START


def is_halted(cpu: Cpu) -> bool:
    """Whether it waits for an interrupt, or, on a PC, for the first CPU to start it."""
    return cpu.halted or (cpu.architecture == "x86_64" and cpu.index > 0)


def named(cpu: Cpu) -> dict[str, int]:
    """The registers of ``cpu`` that the monitor knows by name."""
    if cpu.architecture != "x86_64":
        return {}
    values = x86(cpu)
    found = {f"e{name[1:]}": values.get(name, 0) for name in _GENERAL}
    found |= {"sp": found["esp"], "fp": found["ebp"], "eflags": values["rflags"], "eip": values["rip"]}
    found |= {f"r{i}": 0 for i in range(8, 16)}
    for segment in ("cs", "ds", "es", "fs", "gs", "ss"):
        selector, base, _flags = X86_CODE if segment == "cs" else (0, 0, 0)
        found |= {segment: selector, f"{segment}.base": base}
    return found | {"ds.limit": X86_LIMIT, "pc": program_counter(cpu)}


def text(cpu: Cpu) -> str:
    """All registers, for people."""
    lines = _x86_lines(cpu) if cpu.architecture == "x86_64" else _riscv_lines(cpu)
    return "".join(f"{line}\n" for line in lines)


def _x86_lines(cpu: Any) -> Iterator[str]:
    registers = named(cpu)
    for names in (("eax", "ebx", "ecx", "edx"), ("esi", "edi", "ebp", "esp")):
        yield " ".join(f"{name.upper()}={registers[name]:08x}" for name in names)
    halted = int(is_halted(cpu))
    yield f"EIP={registers['eip']:08x} EFL={registers['eflags']:08x} [-------] CPL=0 II=0 A20=1 SMM=0 HLT={halted}"
    for segment in ("ES", "CS", "SS", "DS", "FS", "GS"):
        yield _x86_segment(segment, *(X86_CODE if segment == "CS" else (0, 0, X86_DATA_FLAGS)))
    yield _x86_segment("LDT", 0, 0, X86_TABLE_FLAGS)
    yield _x86_segment("TR", 0, 0, X86_TASK_FLAGS)
    for table in ("GDT", "IDT"):
        yield f"{table}=     {0:08x} {X86_LIMIT:08x}"
    yield f"CR0={X86_CR0:08x} CR2={0:08x} CR3={0:08x} CR4={0:08x}"
    yield "".join(f"DR{i}={0:016x} " for i in range(4))
    yield f"DR6={0xFFFF0FF0:016x} DR7={0x400:016x}"
    yield f"EFER={0:016x}"
    yield f"FCW={0x37F:04x} FSW={0:04x} [ST=0] FTW=00 MXCSR={0x1F80:08x}"
    for first in range(0, 8, 2):
        yield " ".join(f"FPR{i}={0:016x} {0:04x}" for i in (first, first + 1))
    for first in range(0, 8, 2):
        yield " ".join(f"XMM{i:02d}={0:016x} {0:016x}" for i in (first, first + 1))


def _x86_segment(name: str, selector: int, base: int, flags: int) -> str:
    return f"{name:<3}={selector:04x} {base:08x} {X86_LIMIT:08x} {flags:08x}"


def _riscv_lines(cpu: Any) -> Iterator[str]:
    yield " V      =   0"
    values = {"pc": RISCV_START, "mhartid": cpu.index, "mstatus": _UXL_SXL, "hstatus": 0x200000000}
    values |= {"vsstatus": _UXL_SXL, "mip": cpu.pending} | dict.fromkeys(_RISCV_ZERO, 0)
    for name, value in values.items():
        yield f" {name:<8} {value:016x}"
    yield from _riscv_rows("x", _RISCV_NAMES)
    yield from _riscv_rows("f", _RISCV_FLOATS)


def _riscv_rows(letter: str, names: tuple[str, ...]) -> Iterator[str]:
    for first in range(0, len(names), 4):
        yield "".join(f" {f'{letter}{i}/{names[i]}':<8} {0:016x}" for i in range(first, first + 4))
