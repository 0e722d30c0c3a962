"""TPM emulators for tests: one in this process, which tells what it was asked, and the real one, swtpm."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qobra.tpm import control_channel as control
from qobra.tpm import messages

_ALL = 0xFFFF


class TpmEmulator:
    """An emulator at ``path``, for one connection after the other. ``requests`` and ``commands`` are what it was asked.

    ``answer`` makes the response to a command; ``blobs`` are the state that it has or was given; ``results`` has what
    requests end with that are to fail; what is in ``silent`` is not answered.
    """

    def __init__(self, directory: Path, *, is_20: bool = True, capabilities: int = _ALL) -> None:
        self.path = str(directory / "tpm.sock")
        self.requests: list[tuple[int, bytes]] = []
        self.commands: list[tuple[int, bytes]] = []
        self.locality = 0
        self.is_20 = is_20
        self.capabilities = capabilities
        self.established = False
        self.blobs = {kind: (0, bytes((kind,)) * 100 * kind) for kind in control.STATE_TYPES}
        self.results: dict[int, int] = {}
        self.silent: set[int] = set()
        self.answer: Callable[[bytes], bytes] = self.succeed
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(4)
        self._sockets: list[socket.socket] = []
        self._closed = False
        threading.Thread(target=self._serve, name="tpm-emulator", daemon=True).start()

    def succeed(self, command: bytes) -> bytes:
        """A response without parameters, as a TPM of the version gives it."""
        tag = 0x8001 if self.is_20 else 0x00C4
        return messages.HEADER.pack(tag, messages.HEADER.size, 0)

    def close(self) -> None:
        """Be gone."""
        self._closed = True
        for each in (self._listener, *self._sockets):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            each.close()

    def _serve(self) -> None:
        while not self._closed:
            try:
                connection, _address = self._listener.accept()
            except OSError:
                return
            self._sockets.append(connection)
            threading.Thread(target=self._control, args=(connection,), name="tpm-control", daemon=True).start()

    def _control(self, connection: socket.socket) -> None:
        while True:
            try:
                data, fds, _flags, _address = socket.recv_fds(connection, 1 << 20, 4)
                if not data:
                    return
                for fd in fds:
                    self._sockets.append(socket.socket(fileno=fd))
                    threading.Thread(target=self._data, args=(self._sockets[-1],), name="tpm-data", daemon=True).start()
                request = int.from_bytes(data[:4], "big")
                while request == control.SET_STATEBLOB and len(data) - 16 < int.from_bytes(data[12:16], "big"):
                    data += connection.recv(1 << 20)
                connection.sendall(self._carry_out(request, data[4:]))
            except OSError:
                return

    def _data(self, data: socket.socket) -> None:
        while True:
            try:
                command = data.recv(1 << 16)
                if not command:
                    return
                self.commands.append((self.locality, command))
                data.sendall(self.answer(command))
            except OSError:
                return

    def _carry_out(self, request: int, arguments: bytes) -> bytes:
        self.requests.append((request, arguments))
        if request in self.silent:
            return b""
        if request == control.GET_CAPABILITY:
            return self.capabilities.to_bytes(8, "big")
        result = self.results.get(request, 0)
        head = result.to_bytes(4, "big")
        if result:
            return head
        if request == control.SET_LOCALITY:
            self.locality = arguments[0]
        elif request == control.GET_TPMESTABLISHED:
            return head + bytes((self.established, 0, 0, 0))
        elif request == control.RESET_TPMESTABLISHED:
            self.established = False
        elif request == control.SET_BUFFERSIZE:
            size = int.from_bytes(arguments, "big") or 4096
            return head + b"".join(each.to_bytes(4, "big") for each in (size, 1024, 4096))
        elif request == control.GET_STATEBLOB:
            flags, blob = self.blobs[int.from_bytes(arguments[4:8], "big")]
            head = (0 if blob else 0x800).to_bytes(4, "big")
            return head + b"".join(each.to_bytes(4, "big") for each in (flags, len(blob), len(blob))) + blob
        elif request == control.SET_STATEBLOB:
            flags, kind = int.from_bytes(arguments[:4], "big"), int.from_bytes(arguments[4:8], "big")
            self.blobs[kind] = (flags, arguments[12:])
        return head


def connect(machine: Any, path: str, *, id: str = "tpm0") -> Any:
    """A back end of ``machine`` on the emulator at ``path``."""
    address = {"type": "unix", "data": {"path": path}}
    machine.chardevs.create(f"{id}-control", {"type": "socket", "data": {"addr": address, "server": False}})
    return machine.tpms.create({"type": "emulator", "id": id, "chardev": f"{id}-control"})


class Swtpm:
    """The real emulator, of a TPM 2.0 or 1.2, with its state below ``directory``. Use as a context manager."""

    def __init__(self, directory: Path, *, is_20: bool = True, name: str = "swtpm") -> None:
        self.path = str(directory / f"{name}.sock")
        state = directory / f"{name}-state"
        state.mkdir(exist_ok=True)
        version = ["--tpm2"] if is_20 else []
        command = ["swtpm", "socket", *version, "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={self.path}"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not Path(self.path).exists():
            assert self.process.poll() is None, "swtpm has ended"
            assert time.monotonic() < deadline, "swtpm does not listen"
            time.sleep(0.01)

    def __enter__(self) -> Swtpm:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.kill()
        self.process.wait()

    def arguments(self) -> list[str]:
        """The options by which a system program has its TPM there, as ``t``."""
        chardev = f"socket,id=tpmctl,path={self.path}"
        return ["-chardev", chardev, "-tpmdev", "emulator,id=t,chardev=tpmctl"]


def swtpm_available() -> bool:
    """Whether swtpm is installed."""
    return shutil.which("swtpm") is not None
