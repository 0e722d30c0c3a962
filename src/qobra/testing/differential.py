"""The same QMP script against two servers, and what differs in their answers.

A script is a function that gets a :class:`Run` and calls it with commands. It is run once for each server, each with a
directory of its own; what came back is then compared: replies with replies, events with events, after names that
are made up, times and directories were made equal (:func:`comparable`). A step whose answer is known to differ names
the reason (``differs="why"``); it is then a fault if the answers are the same.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from qobra.machine.machine import Machine
from qobra.qmp.monitor import Monitors

TIMEOUT_SECONDS = 30.0
"""How long a reply or an event may take on a busy machine."""

_CHANCE = frozenset(
    {
        "encryption_key_missing",  # in the manual, always false; 7.2 has dropped it
        "actual-size",  # what the host's file system gave
        "idle_time_ns",
        "rd_total_time_ns",
        "wr_total_time_ns",
        "flush_total_time_ns",
        "unmap_total_time_ns",
        "date-sec",
        "date-nsec",
        "vm-clock-sec",
        "vm-clock-nsec",
        "timestamp",
    }
)
_REPHRASED = re.compile(r"Parameter '[\w.-]+' does not accept value '([^']*)'")
_NO_DEVICE = re.compile(r"Cannot find device='|Node '.*' not found$")
"""Texts of errors that are DeviceNotFound in the manual where it names a class, and GenericError in 7.2."""
_AUTO_NAME = re.compile(r"#block\d+")

Message = dict[str, Any]


def limit_descriptors(count: int = 512) -> None:
    """Let this process, and what it starts, have at most so many open files.

    QEMU opens an image that is its own backing file until it has none left: with very many, that takes hours.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard))


class Server(Protocol):
    """One side: something that speaks QMP on the other end of a socket."""

    directory: Path

    def connect(self) -> socket.socket:
        """The socket of its monitor, which can be asked for once."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class Own:
    """Our server, in this process."""

    def __init__(self, directory: Path, *, capabilities: frozenset[str] = frozenset()) -> None:
        self.directory = directory
        self.machine = Machine(capabilities=capabilities)
        self._monitors = Monitors(self.machine)

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._monitors.serve_socket(theirs)
        return ours

    def close(self) -> None:
        self.machine.close()
        self._monitors.close()


class Program:
    """A program that takes ``--chardev`` and the monitor option given, on a passed socket."""

    def __init__(
        self, directory: Path, command: Sequence[str], monitor: Sequence[str], errors: Path | None = None
    ) -> None:
        """``errors``: a file for what it says on its standard error."""
        self.directory = directory
        self._socket, theirs = socket.socketpair()
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            chardev = f"socket,id=differential,fd={theirs.fileno()}"
            with open(errors or os.devnull, "wb") as told:
                self._process = subprocess.Popen(
                    [*command, "-chardev" if "-S" in command else "--chardev", chardev, *monitor],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=told,
                    cwd=directory,
                )

    def connect(self) -> socket.socket:
        return self._socket

    def wait(self, seconds: float) -> None:
        """Wait until it has ended by itself; subprocess.TimeoutExpired if it takes longer."""
        self._process.wait(seconds)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Step:
    """A command and what was answered."""

    def __init__(self, number: int, command: str, arguments: Message | None, reply: Message, differs: str | None):
        self.number = number
        self.command = command
        self.arguments = arguments
        self.reply = reply
        self.differs = differs


class Run:
    """One run of a script: call it with a command to carry that out."""

    def __init__(self, server: Server, *, by_contract: bool = False) -> None:
        """``by_contract``: check each answer against the contract."""
        self._server = server
        self._by_contract = by_contract
        self._socket = server.connect()
        self._socket.settimeout(TIMEOUT_SECONDS)
        self._input = self._socket.makefile("rb")
        self.steps: list[Step] = []
        self.events: list[Message] = []
        self._seen = 0
        assert "QMP" in self._message()
        self.request("qmp_capabilities", None)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._input.close()
        self._socket.close()

    def __call__(
        self,
        command: str,
        arguments: Message | None = None,
        *,
        differs: str | None = None,
        pick: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Carry out ``command``; what it returned, or None for an error.

        ``differs`` says why the answers are not the same; ``pick`` takes from what is returned what is to be compared.
        """
        reply = self.request(command, arguments)
        if self._by_contract and "return" in reply:
            check_answer(command, reply["return"])
        if pick is not None and "return" in reply:
            reply = {"return": pick(reply["return"])}
        self.steps.append(Step(len(self.steps) + 1, command, arguments, reply, differs))
        return reply.get("return")

    def do(self, command: str, *, differs: str | None = None, **arguments: Any) -> Any:
        """Carry out ``command`` with arguments by name, underscores for hyphens."""
        return self(command, {name.replace("_", "-"): value for name, value in arguments.items()}, differs=differs)

    def add(self, driver: str, *, differs: str | None = None, **options: Any) -> None:
        """blockdev-add, with options by name, underscores for hyphens."""
        self.do("blockdev-add", differs=differs, driver=driver, **options)

    def file(self, name: str, **options: Any) -> Message:
        """Options of a ``file`` node for a file in the server's directory."""
        named = {option.replace("_", "-"): value for option, value in options.items()}
        return {"driver": "file", "filename": self.path(name), **named}

    def wait(self, event: str, **data: Any) -> Message:
        """The next event of that name with these members (underscores for hyphens) that was not waited for before."""
        wanted = {name.replace("_", "-"): value for name, value in data.items()}
        while True:
            while self._seen < len(self.events):
                found = self.events[self._seen]
                self._seen += 1
                if found["event"] == event and wanted.items() <= found.get("data", {}).items():
                    return found
            self._message_is_event(self._message())

    def path(self, name: str) -> str:
        """A file name in the server's directory."""
        return str(self._server.directory / name)

    def tool(self, *command: str) -> None:
        """Run another program in the server's directory, to make or to change an image."""
        for _ in range(5):
            done = subprocess.run(command, cwd=self._server.directory, capture_output=True, text=True)
            if "accurate CPU usage" not in done.stderr:  # QEMU's measurement for a LUKS key, where others are at work
                break
        assert done.returncode == 0, done.stdout + done.stderr

    def finish(self) -> None:
        """Take in the events that are on their way."""
        self.request("query-version", None)

    def request(self, command: str, arguments: Message | None) -> Message:
        """The whole reply to a command that is no step of the script."""
        request: Message = {"execute": command}
        if arguments is not None:
            request["arguments"] = arguments
        self._socket.sendall(json.dumps(request).encode())
        while True:
            message = self._message()
            if not self._message_is_event(message):
                return message

    def _message_is_event(self, message: Message) -> bool:
        if "event" in message:
            self.events.append(message)
            return True
        return False

    def _message(self) -> Message:
        line = self._input.readline()
        assert line, f"the server closed the connection after {len(self.steps)} steps"
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def result(self) -> tuple[list[Any], list[Any]]:
        """Replies and events in comparable form."""
        names: dict[str, str] = {}
        directory = str(self._server.directory)
        replies = [comparable(step.reply, names, directory, step.command) for step in self.steps]
        return replies, [comparable(event, names, directory) for event in without_drains(self.events)]


def without_drains(events: list[Message]) -> list[Message]:
    """``events`` without the pairs that tell of a job that stood still for a moment while the graph changed."""
    moments = {("paused", "running"), ("standby", "ready")}
    result: list[Message] = []
    for event in events:
        if event["event"] == "JOB_STATUS_CHANGE":
            job, status = event["data"]["id"], event["data"]["status"]
            before = next((each for each in reversed(result) if each.get("data", {}).get("id") == job), None)
            if before and (before["data"].get("status"), status) in moments:
                result.remove(before)
                continue
        result.append(event)
    return result


def check_answer(command: str, answer: Any) -> None:
    """Raise QobraError unless ``answer`` is what the contract says that ``command`` returns."""
    from qobra.qapi.contract import contract

    kind = contract().commands[command].ret_type
    if not kind:
        assert answer == {}, answer
    elif kind.startswith("["):
        for each in answer:
            contract().check(kind[1:-1], each)
    else:
        contract().check(kind, answer)


def comparable(value: Any, names: dict[str, str], directory: str, command: str = "") -> Any:
    """``value`` without what is another on every run: times, made up node names, the directory."""
    if isinstance(value, dict):
        if "class" in value and _NO_DEVICE.match(value.get("desc", "")):
            value = {key: each for key, each in value.items() if key != "class"}
        if "recording" in value and "persistent" in value:
            value = {key: each for key, each in value.items() if key != "status"}
        if "dirty-bitmaps" in value:
            named = [bitmap for bitmap in value["dirty-bitmaps"] if "name" in bitmap]
            value = {key: each for key, each in value.items() if key != "dirty-bitmaps"}
            value |= {"dirty-bitmaps": named} if named else {}
        value = {key: comparable(each, names, directory) for key, each in value.items() if key not in _CHANCE}
        if command == "qom-list" and "return" in value:
            value["return"].sort(key=lambda found: found["name"])
        return _graph(value["return"]) if command == "x-debug-query-block-graph" and "return" in value else value
    if isinstance(value, list | tuple):
        return [comparable(each, names, directory) for each in value]
    if isinstance(value, str):
        text = _REPHRASED.sub(r"Invalid parameter '\1'", value.replace(directory, "DIR"))
        return _AUTO_NAME.sub(lambda match: names.setdefault(match[0], f"#auto{len(names) + 1}"), text)
    return value


def _graph(graph: Message) -> Message:
    """An XDbgBlockGraph whose vertices are known by their names, in an order that does not depend on history."""
    names = {node["id"]: f"{node['type']} {node['name']}" for node in graph["nodes"]}
    edges = [{**edge, "parent": names[edge["parent"]], "child": names[edge["child"]]} for edge in graph["edges"]]
    return {
        "nodes": sorted(names.values()),
        "edges": sorted(edges, key=lambda edge: json.dumps(edge, sort_keys=True)),
    }


def differences(script: Callable[[Run], None], servers: Sequence[Server]) -> list[str]:
    """Run ``script`` against both ``servers`` and say where they differ though they should not, or the reverse."""
    runs = []
    try:
        for server in servers:
            with Run(server, by_contract=server is servers[0]) as run:
                script(run)
                run.finish()
                runs.append(run)
    finally:
        for server in servers:
            server.close()
    first, second = runs
    (replies, events), (other_replies, other_events) = first.result(), second.result()
    found = []
    if len(replies) != len(other_replies):
        found.append(f"{len(replies)} steps against {len(other_replies)}")
    for step, reply, other in zip(first.steps, replies, other_replies, strict=False):
        if (reply != other) != (step.differs is not None):
            known = f" (known to differ: {step.differs})" if step.differs else ""
            found.append(
                f"step {step.number}: {step.command} {json.dumps(step.arguments)}{known}\n"
                + describe_difference(reply, other, "  ")
            )
    if events != other_events:
        found.append("events\n" + _sequence(events) + "\n  against\n" + _sequence(other_events))
    return found


def against_storage_daemon(script: Callable[[Run], None]) -> Callable[[Path], None]:
    """Decorator: a test that the script has the same effects on QEMU's storage daemon and on ours."""

    def test(tmp_path: Path) -> None:
        command = [find_program("qemu-storage-daemon")]
        monitor = ["--monitor", "chardev=differential"]
        _check(script, tmp_path, lambda place: Own(place), lambda place: Program(place, command, monitor))

    return _named(test, script)


def against_system(*options: str) -> Callable[[Callable[[Run], None]], Callable[[Path], None]]:
    """Decorator: the same of ``qemu-system-x86_64`` and ours, with these options of both besides ``-S``."""

    def decorate(script: Callable[[Run], None]) -> Callable[[Path], None]:
        def test(tmp_path: Path) -> None:
            common = ["-nodefaults", "-display", "none", "-S", *options]
            theirs = [find_program("qemu-system-x86_64"), *common]
            ours = [sys.executable, "-c", "import sys, qobra.cli.system as s; sys.exit(s.main_x86_64())", *common]
            monitor = ["-mon", "chardev=differential,mode=control"]
            _check(
                script,
                tmp_path,
                lambda place: Program(place, ours, monitor),
                lambda place: Program(place, theirs, monitor),
            )

        return _named(test, script)

    return decorate


def find_program(name: str) -> str:
    """The path of another project's program; the test is skipped where it is missing."""
    import pytest

    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def _named(test: Callable[[Path], None], script: Callable[[Run], None]) -> Callable[[Path], None]:
    test.__name__ = script.__name__
    test.__doc__ = script.__doc__
    test.__module__ = script.__module__
    return test


def _check(
    script: Callable[[Run], None],
    directory: Path,
    own: Callable[[Path], Server],
    other: Callable[[Path], Server],
) -> None:
    places = [directory / "a", directory / "b"]
    for place in places:
        place.mkdir()
    found = differences(script, [own(places[0]), other(places[1])])
    assert not found, "ours | theirs\n" + "\n".join(found)


def _sequence(events: list[Message]) -> str:
    return "\n".join(f"    {event['event']} {json.dumps(event.get('data', {}))}" for event in events)


def describe_difference(value: Any, other: Any, indent: str, path: str = "") -> str:
    """Both values, cut down to where they differ."""
    if isinstance(value, dict) and isinstance(other, dict) and value.keys() & other.keys():
        parts = []
        for key in [*value, *(key for key in other if key not in value)]:
            if key not in value or key not in other or value[key] != other[key]:
                parts.append(describe_difference(value.get(key, _NONE), other.get(key, _NONE), indent, f"{path}.{key}"))
        return "\n".join(parts) or f"{indent}the same"
    if isinstance(value, dict) and isinstance(other, dict) and "parent" in value and "child" in value:
        return f"{indent}{path}: {_text(value)}\n{indent}{' ' * len(path)}| {_text(other)}"
    if isinstance(value, list) and isinstance(other, list) and value and len(value) == len(other):
        return "\n".join(
            describe_difference(one, two, indent, f"{path}[{index}]")
            for index, (one, two) in enumerate(zip(value, other, strict=True))
            if one != two
        )
    return f"{indent}{path}: {_text(value)}\n{indent}{' ' * len(path)}| {_text(other)}"


_NONE = object()


def _text(value: Any) -> str:
    return "(absent)" if value is _NONE else json.dumps(value, sort_keys=True)
