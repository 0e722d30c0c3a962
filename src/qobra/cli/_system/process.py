"""What the options say of the process itself: its name, its messages, what it traces, memory that stays in RAM."""

from __future__ import annotations

import sys
import threading
from typing import Any

from qobra import log, report
from qobra.errors import QobraError

_PR_SET_NAME = 15
_CURRENT_AND_FUTURE = 1 | 2


def set_up(names: dict[str, Any], *, lock_memory: bool) -> None:
    """Carry ``-name`` and ``-overcommit mem-lock`` out. Raises QobraError."""
    if "process" in names:
        set_name(names["process"])
    if names.get("debug-threads"):
        name_threads()
    if lock_memory:
        lock_all_memory()


def set_messages(options: dict[str, Any], guest: str | None) -> None:
    """What precedes messages (``-msg``)."""
    report.show_time = options.get("timestamp", report.show_time)
    if options.get("guest-name") and guest:
        report.guest_name = f"{guest} "


def set_trace(text: str) -> None:
    """``-trace``. Raises QobraError, or SystemExit where it only asks for names."""
    from qobra.cli._tool import trace
    from qobra.cli._tool.report import Program, ToolError

    try:
        if not trace.take(Program(report.program()), text):
            raise SystemExit(0)
    except ToolError as error:
        raise QobraError(error.text)


def set_log_items(text: str) -> None:
    """``-d``: begin to log. For an item that there is not, the list is shown, and that is all."""
    patterns = log.patterns(text)
    if patterns is None:
        report.print_text(log.help_text())
        raise SystemExit(1)
    for pattern in patterns:
        set_trace(pattern)


def set_name(name: str) -> None:
    """The name that the kernel shows for the calling thread; for the first one, it is the process's."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15] + b"\0", 0, 0, 0)


def name_threads() -> None:
    """Have the kernel show each thread that starts from now on under its name here."""
    threading.setprofile(_name_new_thread)


def _name_new_thread(_frame: Any, _event: str, _argument: Any) -> None:
    # Called in the new thread before anything else runs there; once is enough.
    sys.setprofile(None)
    set_name(threading.current_thread().name)


def lock_all_memory() -> None:
    """Keep all memory, that to come too, from being swapped out. Raises QobraError."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_CURRENT_AND_FUTURE):
        raise QobraError.from_os("locking memory failed", OSError(ctypes.get_errno(), ""))
