"""A progress bar."""

from __future__ import annotations

import sys
import time

WIDTH = 30


class Bar:
    """A bar that redraws itself on a terminal; elsewhere each quarter is a line."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._terminal = sys.stdout.isatty()
        self._shown = -1
        self._began = time.monotonic()
        self.seconds = 0.0

    def show(self, fraction: float, text: str = "") -> None:
        """Draw ``fraction`` of the whole, with a remark."""
        if self._terminal:
            done = int(fraction * WIDTH)
            bar = "#" * done + "." * (WIDTH - done)
            print(f"\r{self._topic:>9}  [{bar}] {fraction:4.0%} {text}\x1b[K", end="", flush=True)
        elif int(fraction * 4) > self._shown:
            self._shown = int(fraction * 4)
            print(f"{self._topic:>9}  {fraction:4.0%} {text}".rstrip(), flush=True)

    def end(self) -> None:
        """The whole is done: clear the line for what comes next."""
        self.seconds = time.monotonic() - self._began
        if self._terminal:
            print("\r\x1b[K", end="", flush=True)
