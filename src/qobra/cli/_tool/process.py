"""A tool as a process: how it starts quickly, and how it ends whatever happens."""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTED = 130


def run_program(main: Callable[[], int]) -> int:
    """Run ``main`` and leave the process with its status, without taking the interpreter apart first."""
    # Nothing that a start-up allocates is garbage; looking for some costs a tenth of a short command.
    gc.disable()
    interrupted = False
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
        status = INTERRUPTED
    except BrokenPipeError:
        status = 1
    try:
        sys.stderr.flush()
    except BrokenPipeError:
        pass
    if interrupted:
        # Die of the signal, so that a shell sees why.
        import signal  # dear: it brings the enum module

        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


def collect_garbage() -> None:
    """For commands that run long: let the collector work again."""
    gc.enable()
