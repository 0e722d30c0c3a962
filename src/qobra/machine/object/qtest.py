"""``qtest``: serves the qtest protocol on a character device."""

from __future__ import annotations

import sys
import time

from qobra.errors import QobraError
from qobra.machine.qtest import QtestSession
from qobra.object.property import String
from qobra.object.qom import Object
from qobra.object.types import registry


@registry.register("qtest")
class Qtest(Object):
    """A qtest server. ``log`` names a file for both directions (``none`` for no log); by default standard error."""

    type_name = "qtest"
    user_creatable = True
    required = ("chardev",)
    hotswap = False

    chardev = String()
    log = String()

    def complete(self) -> None:
        board = self.machine.board
        if board is None:
            raise QobraError("Cannot add 'qtest' without a board")
        device = self.machine.chardevs.find(self.chardev)
        if device is None:
            raise QobraError(f"Cannot find character device '{self.chardev}'")
        self._device = device
        self._started_ns = time.monotonic_ns()
        self._stream = None
        if self.log is None:
            self._stream = sys.stderr
        elif self.log != "none":
            try:
                self._stream = open(self.log, "a", encoding="utf-8")
            except OSError as error:
                raise QobraError.from_os(f"Could not open '{self.log}'", error)
        self._session = QtestSession(board, self._send, self._write_log if self._stream else None)
        self._device.attach(self)

    def finalize(self) -> None:
        if "_device" in self.__dict__:
            if self._device.is_open:
                self.event("closed")
            self._device.detach()
            if self._stream is not None and self._stream is not sys.stderr:
                self._stream.close()
            self._stream = None

    # -- front end of the character device

    def can_receive(self) -> int:
        """Bytes that can be taken now."""
        return 1 << 20

    def receive(self, data: bytes) -> None:
        """Bytes from the client."""
        self._session.receive(data)

    def event(self, name: str) -> None:
        """The client came or went; a new one begins afresh."""
        if name == "opened":
            self._started_ns = time.monotonic_ns()
            self._session = QtestSession(self._session.board, self._send, self._write_log if self._stream else None)
        if self._stream is not None and name == "opened":
            # When it came; all that follows counts from there.
            self._stream.write(f"[I {time.time():.6f}] OPENED\n")
            self._stream.flush()
        elif self._stream is not None and name == "closed":
            self._write_log("I", "CLOSED")

    def _send(self, text: str) -> None:
        self._device.write_all(text.encode("latin-1"))

    def _write_log(self, direction: str, text: str) -> None:
        if self._stream is None:
            return  # the client's last command is answered when the object is gone
        microseconds = (time.monotonic_ns() - self._started_ns) // 1000
        seconds, fraction = divmod(microseconds, 1_000_000)
        try:
            self._stream.write(f"[{direction} +{seconds}.{fraction:06d}] {text}\n")
            self._stream.flush()
        except OSError:
            pass  # a log that is full or that nobody reads any more must not disturb the work
