"""``-d`` and ``-D``: what the program tells of its doings, and where."""

from __future__ import annotations

from qobra.cli._system.process import set_trace

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


def set_items(text: str) -> None:
    """``-d``: begin to log. For an item that there is not, the list is shown, and that is all."""
    for item in text.split(","):
        if item.startswith(_TRACE):
            set_trace(item.removeprefix(_TRACE))
        elif item != "all" and item not in _ITEMS:
            print(help_text(), end="")
            raise SystemExit(1)


def set_file(path: str) -> None:
    """``-D``: log to a file instead of standard error. Raises QobraError where it cannot be written."""
    set_trace("file=" + path.replace(",", ",,"))
