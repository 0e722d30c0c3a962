"""What all tests share: how much of a long test to run, and the programs of other projects."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

from qobra import native
from qobra.machine.machine import Machine
from qobra.qmp.monitor import Monitors
from qobra.testing.plugin import make_qobra_server, qobra_server

# The plugin's fixtures; where Qobra is installed, pytest finds them without this.
__all__ = ["make_qobra_server", "qobra_server"]

SOAK = int(os.environ.get("QOBRA_SOAK") or 0)
"""How many times more of what is long or random to do (``make soak SCALE=50``); 0 under ``make test``."""

settings.register_profile(
    "bounded", max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.register_profile(
    "soak", max_examples=max(25, 40 * SOAK), deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
settings.load_profile("soak" if SOAK else "bounded")


@pytest.fixture(scope="session")
def soak_scale() -> int:
    """How many times more of a test marked ``soak`` to run: 1 under ``make test``, SCALE under ``make soak``."""
    return SOAK or 1


@pytest.fixture(scope="session")
def peer() -> Callable[[str], str]:
    """``peer("qemu-img")``: the path of another project's program; skips the test where it is missing."""
    return find_peer


def find_peer(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def pytest_configure() -> None:
    """Compiled forms that are older than their sources fail in odd ways, and late."""
    sources = Path(native.__file__).parent.glob("*.pyx")
    pairs = [(source, source.with_suffix(EXTENSION_SUFFIXES[0])) for source in sources]
    stale = [
        source.name for source, built in pairs if built.exists() and built.stat().st_mtime < source.stat().st_mtime
    ]
    if stale:
        raise pytest.UsageError(
            f"{', '.join(sorted(stale))}: newer than the compiled form; `make compiled` makes it anew"
        )


def pytest_itemcollected(item: pytest.Item) -> None:
    """What is longer or more random under ``make soak`` is a part of it, whether or not it says so."""
    if "soak_scale" in getattr(item, "fixturenames", ()) or is_hypothesis_test(getattr(item, "obj", None)):
        item.add_marker("soak")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("peer"):
        for program in marker.args:
            find_peer(program)


class RawQmp:
    """The bytes of one QMP connection: for tests of the protocol itself."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(30)
        self._input = sock.makefile("rb")
        self.events: list[dict[str, Any]] = []

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sock.sendall(piece)

    def raw_line(self) -> bytes:
        return self._input.readline()

    def line(self) -> dict[str, Any]:
        """The next message, whatever it is."""
        line = self.raw_line()
        assert line.endswith(b"\r\n"), line
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def reply(self) -> dict[str, Any]:
        """The next message that is no event; events go to :attr:`events`."""
        while True:
            line = self.line()
            if "event" not in line:
                return line
            self.events.append(line)

    def call(self, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a command; its whole reply."""
        request: dict[str, Any] = {"execute": command}
        if arguments is not None:
            request["arguments"] = arguments
        self.send(json.dumps(request).encode())
        return self.reply()

    def negotiate(self, *capabilities: str) -> RawQmp:
        assert "QMP" in self.line()
        reply = self.call("qmp_capabilities", {"enable": list(capabilities)} if capabilities else None)
        assert reply == {"return": {}}
        return self

    def close(self) -> None:
        self._input.close()
        self.sock.close()


class MonitoredMachine:
    """A machine and its monitors, each on a pair of sockets."""

    def __init__(self, **arguments: Any) -> None:
        self.machine = Machine(**arguments)
        self.monitors = Monitors(self.machine)
        self._clients: list[RawQmp] = []

    def connect(self, *, pretty: bool = False) -> RawQmp:
        """A connection on which nothing has been read yet."""
        ours, theirs = socket.socketpair()
        self.monitors.serve_socket(theirs, pretty=pretty)
        self._clients.append(RawQmp(ours))
        return self._clients[-1]

    def client(self, *capabilities: str) -> RawQmp:
        """A connection that is ready for commands."""
        return self.connect().negotiate(*capabilities)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.machine.close()
        self.monitors.close()


@pytest.fixture
def make_monitored() -> Iterator[Callable[..., MonitoredMachine]]:
    """Makes machines with monitors, with the arguments of Machine."""
    made: list[MonitoredMachine] = []

    def make(**arguments: Any) -> MonitoredMachine:
        made.append(MonitoredMachine(**arguments))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def monitored(make_monitored: Callable[..., MonitoredMachine]) -> MonitoredMachine:
    """A machine without a board, and its monitors."""
    return make_monitored()
