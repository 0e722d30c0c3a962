"""``pipe``: a pair of named pipes, ``PATH.in`` and ``PATH.out``, or one named pipe or device for both."""

from __future__ import annotations

import os

from qobra.chardev.chardev import registry
from qobra.chardev.fdio import FdChardev
from qobra.errors import QobraError


@registry.register("pipe")
class PipeChardev(FdChardev):
    """Named pipes. They are opened for both directions, so that a writer who leaves does not end them."""

    kind = "pipe"

    def open_fds(self) -> tuple[int, int]:
        path = self.options["device"]
        opened: list[int] = []
        for name in (f"{path}.in", f"{path}.out"):
            try:
                opened.append(os.open(name, os.O_RDWR | os.O_CLOEXEC))
            except OSError:
                break
        if len(opened) == 2:
            return opened[0], opened[1]
        for fd in opened:
            os.close(fd)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise QobraError.from_os(f"Could not open '{path}'", error)
        return fd, fd
