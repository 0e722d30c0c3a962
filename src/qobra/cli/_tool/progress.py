"""Progress as QEMU's tools show it with ``-p``: ``    (12.34/100%)`` and a carriage return."""

from __future__ import annotations

import _signal as signal  # the module around it brings enum, which is dear
import sys

from qobra.cli._tool.report import flush_output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

STEP = 1.0
"""Per cent that must have been added before the line is printed anew."""


class Progress:
    """How far a command is. Nothing is shown when not ``enabled``, except the state on SIGUSR1."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._total = 0
        self._done = 0
        self._shown = -STEP
        self._before: object = None

    def __enter__(self) -> Progress:
        try:
            self._before = signal.signal(signal.SIGUSR1, self._report)
        except ValueError:
            pass  # not in the main thread
        if self._enabled:
            self._show(0.0)
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
        if self._enabled:
            sys.stdout.write("\n")
            flush_output()

    def start(self, total: int) -> None:
        """What counts as all, in bytes."""
        self._total = total

    def to(self, done: int) -> None:
        """So much is done, in bytes."""
        self._done = done
        if self._enabled:
            percent = self.percent
            if percent >= self._shown + STEP:
                self._show(percent)

    def add(self, length: int) -> None:
        """So much more is done, in bytes."""
        self.to(self._done + length)

    def finish(self) -> None:
        """All is done."""
        self._done = self._total
        if self._enabled:
            self._show(100.0)

    @property
    def percent(self) -> float:
        """Of ``total``; 100 where there was nothing to do."""
        return min(100.0, 100.0 * self._done / self._total) if self._total else 0.0

    def _show(self, percent: float) -> None:
        self._shown = percent
        sys.stdout.write(f"    ({percent:3.2f}/100%)\r")
        flush_output()

    def _report(self, _signal: int, _frame: FrameType | None) -> None:
        sys.stderr.write(f"    ({self.percent:3.2f}/100%)\n")
