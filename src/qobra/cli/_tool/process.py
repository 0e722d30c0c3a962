"""A tool as a process: how it starts quickly, and how it ends whatever happens."""

from __future__ import annotations

import gc
import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

SIGINT = 2


class Terminated(BaseException):
    """A signal asked the program to end; what is unfinished is cleared away on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def end_in_order() -> None:
    """From here on SIGTERM, SIGHUP and Ctrl-C unwind the program, so that it clears away what is unfinished.

    What is ignored (by ``nohup``) stays so.
    """
    # The module around it brings enum, which takes longer than a small image.
    import _signal as signal

    catch_interrupts()
    for number in (signal.SIGTERM, signal.SIGHUP):
        try:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _terminate)
        except ValueError:
            pass  # not in the main thread, where signals are somebody else's


class Undisturbed:
    """In a ``with``: what has to come to its end. A signal to end is heard afterwards, a second one at once."""

    def __enter__(self) -> None:
        import _signal as signal

        self._noted = 0
        self._before = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if handler is None or handler == signal.SIG_IGN:
                continue  # not Python's to put back, or to stay ignored
            try:
                signal.signal(number, self._note)
            except ValueError:
                break  # not in the main thread
            self._before.append((number, handler))

    def __exit__(self, kind: object, *_exc: object) -> None:
        import _signal as signal

        for number, handler in self._before:
            signal.signal(number, handler)
        if self._noted and kind is None:
            _end(self._noted)

    def _note(self, number: int, _frame: object) -> None:
        if self._noted:
            _end(number)
        self._noted = number


def _end(number: int) -> NoReturn:
    if number == SIGINT:
        raise KeyboardInterrupt
    raise Terminated(number)


def catch_interrupts() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt. Before, console programs of ours just end: Python would show where
    in its start it was, or lose the signal in the middle of an import.
    """
    import _signal as signal

    try:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    except ValueError:
        pass  # not in the main thread


def _terminate(number: int, _frame: object) -> None:
    raise Terminated(number)


def run_program(main: Callable[[], int]) -> int:
    """Run ``main`` and leave the process with its status, without taking the interpreter apart first."""
    # Nothing that a start-up allocates is garbage; looking for some costs a tenth of a short command.
    gc.disable()
    buffer_output()
    guard_terminal()
    ended_by = 0
    try:
        status = main()
        status = finish_output(status)
    except KeyboardInterrupt:
        ended_by, status = SIGINT, 128 + SIGINT
    except Terminated as signalled:
        ended_by, status = signalled.number, 128 + signalled.number
    except BrokenPipeError:
        status = 1
    try:
        sys.stderr.flush()
    except BrokenPipeError:
        pass
    if ended_by:
        # Die of the signal, so that a shell sees why.
        import signal  # dear: it brings the enum module

        signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)
    os._exit(status)


def run_tool(run: Callable[[str, list[str]], int], own: str, argv: list[str] | None, name: str | None) -> int:
    """``main`` of the tool called ``own``: carry out ``argv`` inside this process, or the process's command line."""
    if argv is not None:
        return run(name or own, argv)
    return run_program(lambda: run(name or sys.argv[0], sys.argv[1:]))


class _Output(io.FileIO):
    """A standard stream that takes what cannot be written, and remembers why.

    A full disk under a log is no reason to leave an image half done. That a pipe's reader has gone is still raised.
    """

    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        while True:
            try:
                written = super().write(data)
            except BrokenPipeError:
                raise
            except OSError as error:
                self.lost = error
                return len(data)
            if written is not None:
                return written
            from select import select  # somebody made the terminal or pipe non-blocking

            select([], [self.fileno()], [])


def buffer_output() -> None:
    """Write standard output in blocks, or lines to a terminal, as C's stdio does, whatever PYTHONUNBUFFERED says.

    Names in images and of files are octets: what is no UTF-8 goes out as it came, in every locale.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):
        from qobra.report import open_closed_streams

        open_closed_streams()
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.fileno() == number:
            raw = _Output(number, "w", closefd=False)
            lines = number == 2 or raw.isatty()
            writer = io.BufferedWriter(raw)
            setattr(sys, name, io.TextIOWrapper(writer, stream.encoding, "surrogateescape", line_buffering=lines))


def guard_terminal() -> None:
    """From here on nothing that is printed controls a terminal (see :mod:`.screen`)."""
    if sys.stdout.isatty() or sys.stderr.isatty():
        from qobra.cli._tool.screen import guard

        guard()


def finish_output(status: int) -> int:
    """Write out what is left, and return the exit status: 1 for a success of which something could not be told."""
    sys.stdout.flush()
    output = sys.stdout
    if isinstance(output, io.TextIOWrapper) and isinstance(output.buffer, io.BufferedWriter):
        raw = output.buffer.raw
        if isinstance(raw, _Output) and raw.lost is not None:
            sys.stderr.write(f"{os.path.basename(sys.argv[0])}: standard output: {os.strerror(raw.lost.errno or 0)}\n")
            return status or 1
    return status


def collect_garbage() -> None:
    """For commands that run long: let the collector work again."""
    gc.enable()
