"""``serial``: a serial port of the host (the contract's name for any terminal device)."""

from __future__ import annotations

import os

from qobra.chardev.chardev import registry
from qobra.chardev.fdio import FdChardev, open_path


@registry.register("serial")
class SerialChardev(FdChardev):
    """A terminal device, set to pass every byte; a front end may set speed and format.

    What is no terminal (``/dev/null``) is read and written as it is.
    """

    kind = "serial"
    _is_terminal = False

    def open_fds(self) -> tuple[int, int]:
        import termios
        import tty

        fd = open_path(self, self.options["device"], os.O_RDWR | os.O_NONBLOCK)
        self._is_terminal = os.isatty(fd)
        if self._is_terminal:
            tty.setraw(fd, termios.TCSANOW)
        return fd, fd

    def set_parameters(self, speed: int, parity: str, data_bits: int, stop_bits: int) -> None:
        """Set ``speed`` in bits a second, ``parity`` (``N``, ``E``, ``O``), 5 to 8 data bits, 1 or 2 stop bits.

        A speed that the host does not know is left as it is.
        """
        import termios

        if not self._is_terminal:
            return
        attributes = termios.tcgetattr(self._in)
        code = getattr(termios, f"B{speed}", None)
        if code is not None:
            attributes[4] = attributes[5] = code
        flags = attributes[2] & ~(termios.CSIZE | termios.CSTOPB | termios.PARENB | termios.PARODD)
        flags |= (termios.CS5, termios.CS6, termios.CS7, termios.CS8)[min(max(data_bits, 5), 8) - 5]
        flags |= termios.CSTOPB if stop_bits == 2 else 0
        flags |= {"E": termios.PARENB, "O": termios.PARENB | termios.PARODD}.get(parity, 0)
        attributes[2] = flags
        termios.tcsetattr(self._in, termios.TCSANOW, attributes)

    def send_break(self) -> None:
        import termios

        if self._is_terminal:
            termios.tcsendbreak(self._out, 1)
