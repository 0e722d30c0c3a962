"""``pty``: a pseudo-terminal that somebody may open."""

from __future__ import annotations

import os
import select
import threading
from typing import Any

from qobra.chardev.chardev import registry
from qobra.chardev.fdio import READ_SIZE, FdChardev
from qobra.errors import QobraError

_LOOK_SECONDS = 0.1


@registry.register("pty")
class PtyChardev(FdChardev):
    """A pseudo-terminal's master; ``open`` while a process has the slave open."""

    kind = "pty"
    name = ""

    def open_fds(self) -> tuple[int, int]:
        import termios
        import tty

        try:
            master, slave = os.openpty()
        except OSError as error:
            raise QobraError.from_os("Failed to create PTY", error)
        tty.setraw(slave, termios.TCSAFLUSH)
        self.name = os.ttyname(slave)
        os.close(slave)
        os.set_blocking(master, False)
        return master, master

    def start(self) -> None:
        self._in, self._out = self.open_fds()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC)
        threading.Thread(target=self._read, name=f"chardev {self.id}", daemon=True).start()

    def _read(self) -> None:
        poller = select.poll()
        poller.register(self._in, select.POLLIN)
        ended = select.poll()
        ended.register(self._wake_reader, select.POLLIN)
        while not self.closed:
            # While nobody has the slave open, the master is in the state "hung up" and cannot be waited on.
            events = poller.poll(0 if not self.is_open else _LOOK_SECONDS * 1000)
            hung_up = bool(events) and bool(events[0][1] & select.POLLHUP)
            readable = bool(events) and bool(events[0][1] & select.POLLIN)
            if self.is_open == hung_up:
                self.set_open(not hung_up)
            if readable and self.room():
                try:
                    self.deliver(os.read(self._in, READ_SIZE))
                except OSError:
                    pass
            elif hung_up:
                ended.poll(_LOOK_SECONDS * 1000)
        self._release()

    def transmit(self, data: bytes) -> int:
        return super().transmit(data) if self.is_open else len(data)

    def filename(self) -> str:
        return f"pty:{self.name}"

    def return_info(self) -> dict[str, Any]:
        return {"pty": self.name}
