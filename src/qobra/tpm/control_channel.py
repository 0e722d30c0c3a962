"""The control channel of a TPM emulator, swtpm's (its manual page ``swtpm_ioctls(3)`` and ``tpm_ioctl.h``).

A request is its number and its arguments; a response begins with a result, which is zero where it went well, but for
that of GET_CAPABILITY. All numbers are big-endian. What comes back is bounded, and has to come in time.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence
from struct import Struct
from typing import TYPE_CHECKING

from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.chardev.chardev import Chardev

GET_CAPABILITY, INIT, SHUTDOWN, GET_TPMESTABLISHED, SET_LOCALITY = 1, 2, 3, 4, 5
CANCEL_TPM_CMD, RESET_TPMESTABLISHED, GET_STATEBLOB, SET_STATEBLOB, STOP = 9, 11, 12, 13, 14
SET_DATAFD, SET_BUFFERSIZE = 16, 17
NAMES = {
    GET_CAPABILITY: "CMD_GET_CAPABILITY", INIT: "CMD_INIT", SHUTDOWN: "CMD_SHUTDOWN",
    GET_TPMESTABLISHED: "CMD_GET_TPMESTABLISHED", SET_LOCALITY: "CMD_SET_LOCALITY",
    CANCEL_TPM_CMD: "CMD_CANCEL_TPM_CMD", RESET_TPMESTABLISHED: "CMD_RESET_TPMESTABLISHED",
    GET_STATEBLOB: "CMD_GET_STATEBLOB", SET_STATEBLOB: "CMD_SET_STATEBLOB", STOP: "CMD_STOP",
    SET_DATAFD: "CMD_SET_DATAFD", SET_BUFFERSIZE: "CMD_SET_BUFFERSIZE",
}  # fmt: skip
CAPABILITY = {
    command: 1 << bit
    for command, bit in (
        (INIT, 0), (SHUTDOWN, 1), (GET_TPMESTABLISHED, 2), (SET_LOCALITY, 3), (CANCEL_TPM_CMD, 5),
        (RESET_TPMESTABLISHED, 7), (GET_STATEBLOB, 8), (SET_STATEBLOB, 9), (STOP, 10), (SET_DATAFD, 12),
        (SET_BUFFERSIZE, 13),
    )
}  # fmt: skip
"""The bit of GET_CAPABILITY's response that tells of a request."""
INIT_DELETE_VOLATILE = 1
STATE_DECRYPTED, STATE_ENCRYPTED = 1, 2
PERMANENT, VOLATILE, SAVESTATE = 1, 2, 3
STATE_TYPES = (PERMANENT, VOLATILE, SAVESTATE)
"""The kinds of state blobs, in the order in which they are taken over."""

TIMEOUT_SECONDS = 30.0
"""How long an emulator may take for a request; the first start of a TPM makes keys."""
MAX_BLOB = 4 << 20
_RECEIVE_SIZE = 65536
_NON_FATAL = 0x800
"""Set in results that say that nothing is wrong with the TPM."""
_U32, _U64 = Struct(">I"), Struct(">Q")
_GET_STATE, _STATE_HEAD = Struct(">III"), Struct(">III")


class ControlChannel:
    """Requests over a character device, one at a time, from any thread."""

    hotswap = False

    def __init__(self, chardev: Chardev) -> None:
        self._chardev = chardev
        self._exchange = threading.Lock()
        self._changed = threading.Condition()
        self._input = bytearray()
        self._connected = False
        self._attached = False

    # -- as the front end of the character device

    def receive(self, data: bytes) -> None:
        """A part of a response came."""
        with self._changed:
            self._input += data
            self._changed.notify_all()

    def can_receive(self) -> int:
        """There is room for a piece, as long as nobody sends without having been asked."""
        return max(0, _RECEIVE_SIZE + MAX_BLOB - len(self._input))

    def event(self, name: str) -> None:
        """The emulator came or left."""
        if name in ("opened", "closed"):
            with self._changed:
                self._connected = name == "opened"
                self._changed.notify_all()

    def open(self) -> None:
        """Take the character device. Raises QobraError."""
        self._chardev.attach(self)
        self._attached = True

    def close(self) -> None:
        """Let the character device go."""
        if self._attached:
            self._attached = False
            self._chardev.detach()
        with self._changed:
            self._connected = False
            self._changed.notify_all()

    # -- requests

    def capabilities(self) -> int:
        """What the emulator can do. Raises QobraError."""
        with self._exchange:
            self._send(GET_CAPABILITY)
            return int(_U64.unpack(self._take(_U64.size, GET_CAPABILITY))[0])

    def ask(self, request: int, arguments: bytes = b"", answer: int = 0, fds: Sequence[int] = ()) -> bytes:
        """Have ``request`` carried out; the ``answer`` bytes that follow its result. Raises QobraError."""
        with self._exchange:
            self._send(request, arguments, fds)
            return self._answer(request, answer)

    def state(self, kind: int) -> tuple[int, bytes]:
        """How a blob of the TPM's state is encoded, and its bytes, none if it has no such state. Raises QobraError."""
        with self._exchange:
            self._send(GET_STATEBLOB, _GET_STATE.pack(STATE_DECRYPTED, kind, 0))
            answer = self._answer(GET_STATEBLOB, _STATE_HEAD.size, tolerated=_NON_FATAL)
            flags, total, length = _STATE_HEAD.unpack(answer)
            if total != length or length > MAX_BLOB:
                self._lose()
                raise QobraError(f"tpm-emulator: a state blob of {total} bytes came as {length}", errno=errno.EPROTO)
            return flags, self._take(length, GET_STATEBLOB)

    def set_state(self, kind: int, flags: int, blob: bytes) -> None:
        """Hand a blob of state over. Raises QobraError."""
        self.ask(SET_STATEBLOB, _GET_STATE.pack(flags, kind, len(blob)) + blob)

    def _send(self, request: int, arguments: bytes = b"", fds: Sequence[int] = ()) -> None:
        with self._changed:
            self._input.clear()
            connected = self._connected
        if not connected:
            raise self._failure(request, "the emulator is not there", errno.ECONNRESET)
        message = _U32.pack(request) + arguments
        try:
            if fds:
                self._chardev.write_with_fds(message, fds)
            else:
                self._chardev.write_all(message)
        except QobraError as error:
            raise self._failure(request, error.desc, error.errno)

    def _answer(self, request: int, length: int, *, tolerated: int = 0) -> bytes:
        result = _U32.unpack(self._take(_U32.size, request))[0]
        if result and not result & tolerated:
            name = NAMES[request]
            raise QobraError(f"tpm-emulator: TPM result for {name}: {result:#x}", errno=errno.EIO)
        return self._take(length, request)

    def _take(self, length: int, request: int) -> bytes:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        with self._changed:
            while len(self._input) < length:
                if not self._connected:
                    raise self._failure(request, "the emulator is gone", errno.ECONNRESET)
                left = deadline - time.monotonic()
                if left <= 0:
                    self._lose()
                    raise self._failure(request, "the emulator does not answer", errno.ETIMEDOUT)
                self._changed.wait(left)
            data = bytes(self._input[:length])
            del self._input[:length]
            return data

    def _lose(self) -> None:
        # What still comes would be taken for the answer to another request: nothing more is asked of this emulator.
        with self._changed:
            self._connected = False

    @staticmethod
    def _failure(request: int, reason: str, number: int | None) -> QobraError:
        return QobraError(f"tpm-emulator: Failed to send {NAMES[request]}: {reason}", errno=number)
