"""System programs for tests: start one (Qobra's or QEMU's), speak QMP with it, and be its guest over qtest."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from qobra.testing.guest import QtestAccess


def program_command(architecture: str, *, peer: bool) -> list[str]:
    """What starts Qobra's program, or the real one."""
    if peer:
        return [f"qemu-system-{architecture}"]
    call = f"import sys; from qobra.cli.system import main; sys.exit(main({architecture!r}, sys.argv[1:]))"
    return [sys.executable, "-c", call]


class SystemProgram:
    """A running system program in a directory of its own.

    ``peer`` starts the real one, which takes no clock commands as it has no qtest accelerator everywhere; both are
    started stopped. Use as a context manager.
    """

    def __init__(self, directory: Path, architecture: str, *arguments: str, peer: bool = False) -> None:
        self.events: list[dict[str, Any]] = []
        name = f"{'peer' if peer else 'own'}-{architecture}"
        qmp, qtest = directory / f"{name}.qmp", directory / f"{name}.qtest"
        command = [*program_command(architecture, peer=peer), "-nodefaults", "-display", "none", "-S"]
        command += ["-qmp", f"unix:{qmp},server=on,wait=off", "-qtest", f"unix:{qtest},server=on,wait=off"]
        command += ["-qtest-log", "none", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE)
        # A file for both directions would forget what it has read ahead with each write.
        self._socket = self._connect(qmp)
        self._stream = self._socket.makefile("r")
        self.greeting = json.loads(self._stream.readline())
        self.qmp("qmp_capabilities")
        self.guest = QtestAccess(self._connect(qtest))

    def __enter__(self) -> SystemProgram:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.kill()
        self.process.wait()
        self._stream.close()
        self._socket.close()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def _connect(self, path: Path) -> socket.socket:
        deadline = time.monotonic() + 30
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                return connection
            except OSError:
                connection.close()
                if self.process.poll() is not None:
                    text = self.process.stderr.read().decode() if self.process.stderr else ""
                    raise AssertionError(f"the program ended: {text}")
                assert time.monotonic() < deadline, "the program does not answer"
                time.sleep(0.01)

    def qmp(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """What a command returns, or its error as ``{"error": ...}``; events meanwhile go to ``events``."""
        request: dict[str, Any] = {"execute": command}
        if arguments is not None:
            request["arguments"] = arguments
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = json.loads(self._stream.readline())
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                return {"error": message["error"]}
            else:
                return message["return"]

    def wait_event(self, name: str) -> dict[str, Any]:
        """The next event of that name, which is taken from ``events``."""
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            message = json.loads(self._stream.readline())
            if "event" in message:
                self.events.append(message)

    def next_event(self) -> dict[str, Any]:
        """The next event, which is taken from ``events``. Raises TimeoutError if none comes for 20 seconds."""
        self._socket.settimeout(20)
        while not self.events:
            message = json.loads(self._stream.readline())
            if "event" in message:
                self.events.append(message)
        return self.events.pop(0)


def peer_available(architecture: str) -> bool:
    """Whether QEMU's program for the architecture is installed."""
    return shutil.which(f"qemu-system-{architecture}") is not None
