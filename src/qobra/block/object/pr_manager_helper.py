"""``pr-manager-helper``: persistent reservations through a privileged helper process on a unix socket.

The protocol is that of QEMU's qemu-pr-helper (docs/interop/pr-helper): a 32-bit word of features each way at the
start, then for each command a 16-byte CDB with the device's descriptor beside it, and a reply of status, size, sense
and data.
"""

from __future__ import annotations

import array
import socket
import struct
import threading
from typing import Any

from qobra.errors import QobraError, strerror
from qobra.object.property import String
from qobra.object.qom import Object
from qobra.object.types import registry

PERSISTENT_RESERVE_IN = 0x5E
PERSISTENT_RESERVE_OUT = 0x5F
_WORD = struct.Struct(">I")
_REPLY = struct.Struct(">ii96s")
MAX_DATA = 8192
"""Most bytes of data that go with one command, as the protocol has it."""
_TIMEOUT_SECONDS = 10.0


@registry.register("pr-manager-helper")
class PRManagerHelper(Object):
    """A connection to the helper. Its coming, loss and return are told by PR_MANAGER_STATUS_CHANGED."""

    type_name = "pr-manager-helper"
    user_creatable = True
    required = ("path",)
    ancestors = {"pr-manager": ("user-creatable",)}

    path_option = String(name="path")

    def __init__(self, tree: Any) -> None:
        super().__init__(tree)
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._ended = False

    def complete(self) -> None:
        try:
            self._connect()
        except OSError as error:
            raise QobraError(f"Failed to connect to '{self.path_option}': {strerror(error)}", errno=error.errno)
        self._tell()
        threading.Thread(target=self._watch, name=f"pr-manager {self.name}", daemon=True).start()

    def is_connected(self) -> bool:
        """Whether the helper is there."""
        return self._socket is not None

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_TIMEOUT_SECONDS)
        try:
            connection.connect(self.path_option)
            _receive(connection, _WORD.size)  # what the helper offers: there is nothing that we use
            connection.sendall(_WORD.pack(0))
        except BaseException:
            connection.close()
            raise
        self._socket = connection

    def execute(self, fd: int, cdb: bytes, data: bytes = b"") -> tuple[int, bytes, bytes]:
        """Run a PERSISTENT RESERVE IN or OUT on the device open as ``fd``: SCSI status, sense, data read.

        Reconnects if the connection was lost. Raises QobraError where the helper cannot be reached or objects.
        """
        if len(cdb) > 16 or cdb[0] not in (PERSISTENT_RESERVE_IN, PERSISTENT_RESERVE_OUT) or len(data) > MAX_DATA:
            raise QobraError("Not a persistent reservation command", errno=22)
        with self._lock:
            try:
                if self._socket is None:
                    self._connect()
                    self._tell()
                    threading.Thread(target=self._watch, name=f"pr-manager {self.name}", daemon=True).start()
                connection = self._socket
                assert connection is not None
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                connection.sendmsg([cdb.ljust(16, b"\0")], rights)
                if data:
                    connection.sendall(data)
                status, size, sense = _REPLY.unpack(_receive(connection, _REPLY.size))
                if size < 0 or size > MAX_DATA:
                    raise OSError(71, "the helper's reply is too long")
                return status, sense, _receive(connection, size) if size else b""
            except OSError as error:
                self._lost()
                raise QobraError(f"Persistent reservation helper failed: {strerror(error)}", errno=error.errno)

    def _watch(self) -> None:
        """Wait for the helper's end, which nothing else would tell of while no command runs."""
        import select

        connection = self._socket
        if connection is None:
            return
        poll = select.poll()
        poll.register(connection, select.POLLHUP | select.POLLRDHUP)
        while not self._ended and self._socket is connection:
            if poll.poll(200):
                with self._lock:
                    if self._socket is connection:
                        self._lost()
                return

    def _lost(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()
            if not self._ended:
                self._tell()

    def _tell(self) -> None:
        self.machine.control.defer(
            self.machine.events.emit, "PR_MANAGER_STATUS_CHANGED", {"id": self.name, "connected": self.is_connected()}
        )

    def finalize(self) -> None:
        self._ended = True
        with self._lock:
            self._lost()


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise OSError(104, "the helper closed the connection")
        data += part
    return data
