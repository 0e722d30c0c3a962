"""What a program logs of its doings: items, of which trace events tell something, and the file that they go to."""

from __future__ import annotations

import os

from qobra import trace
from qobra.errors import QobraError, strerror

_ITEMS = {
    "out_asm": "the host's code of each translated block",
    "in_asm": "the guest's code of each translated block",
    "op": "intermediate code",
    "op_opt": "intermediate code when it was optimized",
    "op_ind": "intermediate code before indirect accesses are lowered",
    "int": "interrupts and exceptions",
    "exec": "each block that is executed",
    "cpu": "registers before each block",
    "fpu": "registers of the floating-point unit with them",
    "mmu": "what the memory management unit does",
    "pcall": "far calls in protected mode (x86)",
    "cpu_reset": "registers before a CPU is reset",
    "unimp": "what is not there",
    "guest_errors": "what guests do wrong",
    "page": "the pages of a process (user mode)",
    "nochain": "each block by itself",
    "plugin": "what plugins say",
    "strace": "system calls (user mode)",
    "tid": "a file for each thread",
}
"""What is known. All of it is about CPUs that run code, which tells nothing while none does."""

_TRACE = "trace:"


def help_text() -> str:
    """The items, one a line."""
    lines = [f"{name:<15} {text}" for name, text in _ITEMS.items()]
    return "\n".join(["Log items (comma separated):", *lines, "trace:PATTERN   enable trace events", ""])


def patterns(items: str) -> list[str] | None:
    """The trace events that ``items``, joined with commas, mean; None where there is an item that is not known."""
    found = []
    for item in items.split(","):
        if item.startswith(_TRACE) and item != _TRACE:
            found.append(item.removeprefix(_TRACE))
        elif item != "all" and item not in _ITEMS:
            return None
    return found


def set_file(path: str) -> None:
    """Log to a new file from now on; ``%d`` stands for the process's number. Raises QobraError."""
    before, percent, after = path.partition("%")
    if percent:
        if not after.startswith("d") or "%" in after:
            raise QobraError(f"Bad logfile template: {path}")
        path = f"{before}{os.getpid()}{after[1:]}"
    try:
        trace.write_to(path)
    except OSError as error:
        raise QobraError(f"Error opening logfile {path}: {strerror(error)}")
