"""How a daemon ends: its machine wants it, or a signal asks for it.

While a daemon is being set up, a signal breaks off whatever is going on. Once it serves it must not: the thread that
would be broken off may hold the control strand, and one that is about to wait for a lock would not notice. So then
signals arrive through a pipe, as the machine's own wish does.
"""

from __future__ import annotations

# Not the signal module: it makes enums of these numbers, which takes as long as much of the rest of the start.
import _signal as signal
import os
import sys

from qobra.report import open_closed_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from qobra.machine.machine import Machine

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WISH = b"\0"  # what the kernel writes for a signal is its number, which is never 0


class Terminate(BaseException):
    """A signal asks the program to end."""


class Ending:
    """The end of the program that runs in the main thread. Until :meth:`serve`, signals raise :class:`Terminate`."""

    def __init__(self) -> None:
        if None in (sys.stdin, sys.stdout, sys.stderr):
            open_closed_streams()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _raise)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def serve(self, machine: Machine) -> None:
        """The machine is set up: from now on signals end :meth:`wait` and nothing else."""
        for number in _SIGNALS:
            signal.signal(number, _note)
        machine.on_exit = self._wish
        if machine.wait_for_exit(0):
            self._wish()

    def wait(self) -> bool:
        """Wait for the end; whether a signal asked for it."""
        return os.read(self._reader, 1) != _WISH

    def close(self) -> None:
        """The program ends: it is not to be disturbed any more."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _wish(self) -> None:
        try:
            os.write(self._writer, _WISH)
        except BlockingIOError:
            pass  # the pipe is full of reasons to end


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise Terminate


def _note(_number: int, _frame: FrameType | None) -> None:
    """The number is in the pipe already."""
