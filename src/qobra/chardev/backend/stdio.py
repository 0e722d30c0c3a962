"""``stdio``: the program's standard input and output, a terminal being set to pass every key."""

from __future__ import annotations

import os

from qobra.chardev.chardev import registry
from qobra.chardev.fdio import FdChardev
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_in_use = False


@registry.register("stdio")
class StdioChardev(FdChardev):
    """Standard input and output. A process has them once, whatever machines it has.

    ``signal`` (the default) leaves Ctrl-C and its kin to the terminal.
    """

    kind = "stdio"
    _saved: list[Any] | None = None

    def open_fds(self) -> tuple[int, int]:
        global _in_use
        if _in_use:
            raise QobraError("cannot use stdio by multiple character devices")
        try:
            # Duplicates, so that closing the device leaves the program its own.
            fds = os.dup(0), os.dup(1)
        except OSError as error:
            raise QobraError.from_os("cannot use stdio", error)
        _in_use = True
        self._owner = True
        self._set_raw()
        return fds

    _owner = False

    def _set_raw(self) -> None:
        if not os.isatty(0):
            return
        import termios

        self._saved = termios.tcgetattr(0)
        attributes = termios.tcgetattr(0)
        attributes[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
            | termios.ICRNL | termios.IXON
        )  # fmt: skip
        attributes[1] |= termios.OPOST
        attributes[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
        if not self.options.get("signal", True):
            attributes[3] &= ~termios.ISIG
        termios.tcsetattr(0, termios.TCSANOW, attributes)

    def stop(self) -> None:
        global _in_use
        if self._saved is not None:
            import termios

            termios.tcsetattr(0, termios.TCSANOW, self._saved)
            self._saved = None
        if self._owner:
            self._owner = _in_use = False
        super().stop()
