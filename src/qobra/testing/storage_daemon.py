"""A storage daemon as a process, ours or QEMU's, and a plain QMP connection to it: for tests that compare the two."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OURS = [sys.executable, "-c", "import sys; from qobra.cli.storage_daemon import main; sys.exit(main())"]
QEMUS = ["qemu-storage-daemon"]

TIMEOUT = 60.0
"""Seconds that anything may take on a machine that is loaded."""


class StorageDaemon:
    """A running daemon in ``directory``; ``events`` is what it told since the last :meth:`take_events`."""

    def __init__(self, command: list[str], directory: Path) -> None:
        self.process = subprocess.Popen(
            [*command, "--chardev", "socket,id=c,path=qmp,server=on,wait=off", "--monitor", "chardev=c"],
            cwd=directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._sock = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                self._sock.connect(str(directory / "qmp"))
                break
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.005)
        self._sock.settimeout(TIMEOUT)
        self._lines = self._sock.makefile("rb")
        self._lines.readline()
        self.events: list[dict[str, Any]] = []
        self.ask("qmp_capabilities")

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """The whole reply to a command, ``return`` or ``error``."""
        self.send(command, arguments)
        while True:
            message = self._read()
            if "event" not in message:
                return message

    def send(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        """Send a command whose reply nobody waits for."""
        self._sock.sendall(json.dumps({"execute": command, "arguments": arguments or {}}).encode())

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """What a command returns, which has to succeed."""
        reply = self.ask(command, arguments)
        assert "return" in reply, (command, reply)
        return reply["return"]

    def wait_job(self, job: str, status: str = "null") -> None:
        """Wait until the last that was told of the job is that it is in ``status``."""
        while self._last_status(job) != status:
            self._read()

    def _last_status(self, job: str) -> str | None:
        for event in reversed(self.events):
            if event["event"] == "JOB_STATUS_CHANGE" and event["id"] == job:
                return str(event["status"])
        return None

    def take_events(self) -> list[dict[str, Any]]:
        """The events so far, each as its members with its name as ``event``; they are forgotten."""
        self.events, events = [], self.events
        return events

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise EOFError("the daemon has gone")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self.events.append({"event": message["event"], **message.get("data", {})})
        return message

    def kill(self) -> None:
        """kill -9, at once."""
        self._sock.close()
        self.process.kill()
        self.process.wait()

    def quit(self) -> None:
        """Let it end in order."""
        self._sock.sendall(b'{"execute":"quit"}')
        self.process.wait(TIMEOUT)
        self._sock.close()
