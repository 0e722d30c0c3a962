"""Progress with the rate and the time left, drawn by rich."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TaskProgressColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichBar

from qobra.cli._tool.progress import Progress

MINIMUM_STEP = 1 << 22
"""Bytes between two looks at the bar: a chunk is too little to notice."""


class RichProgress(Progress):
    """As :class:`Progress`, on standard error."""

    def __init__(self) -> None:
        super().__init__(False)
        self._bar: RichBar | None = None
        self._task: TaskID | None = None
        self._told = 0

    def __enter__(self) -> RichProgress:
        super().__enter__()
        self._bar = RichBar(
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=getattr(sys.stderr, "drawing", sys.stderr)),
            transient=True,
        )
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        if self._bar is not None:
            self._bar.stop()

    def start(self, total: int) -> None:
        super().start(total)
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("", total=total)
            else:
                self._bar.update(self._task, total=total)

    def to(self, done: int) -> None:
        super().to(done)
        if self._bar is not None and self._task is not None and abs(done - self._told) >= MINIMUM_STEP:
            self._told = done
            self._bar.update(self._task, completed=done)
