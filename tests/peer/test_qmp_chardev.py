"""Character devices and descriptors: what QEMU answers to the same commands."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Send = Callable[..., Any]


def unix(path: Path | str) -> dict[str, Any]:
    return {"type": "unix", "data": {"path": str(path)}}


def inet(port: str, **rest: Any) -> dict[str, Any]:
    return {"type": "inet", "data": {"host": "127.0.0.1", "port": port, **rest}}


def sender(sock: socket.socket) -> Send:
    sock.settimeout(30)
    stream = sock.makefile("rb")
    stream.readline()

    def send(command: str, fds: tuple[int, ...] = (), **arguments: Any) -> Any:
        members = {key.replace("_", "-"): value for key, value in arguments.items()}
        text = json.dumps({"execute": command, "arguments": members}).encode()
        socket.send_fds(sock, [text], list(fds))
        while True:
            reply = json.loads(stream.readline())
            if "event" not in reply:
                return reply

    send("qmp_capabilities")
    return send


def start(command: list[str], path: Path) -> tuple[subprocess.Popen[bytes], Send]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
            return process, sender(sock)
        except OSError:
            sock.close()
            assert process.poll() is None
            time.sleep(0.005)


@pytest.fixture
def both(peer: Callable[[str], str], monitored: Any, tmp_path: Path) -> Iterator[tuple[Send, Send]]:
    """Ours, and QEMU's machine emulator without a machine."""
    path = tmp_path / "qemu"
    command = [peer("qemu-system-x86_64"), "-nodefaults", "-display", "none", "-machine", "none"]
    process, theirs = start([*command, "-qmp", f"unix:{path},server=on,wait=off"], path)
    yield sender(monitored.connect().sock), theirs
    process.kill()
    process.wait()


def test_chardevs(both: tuple[Send, Send], tmp_path: Path) -> None:
    ours, theirs = both

    def add(id: str, kind: str, **data: Any) -> tuple[str, dict[str, Any]]:
        return "chardev-add", {"id": id, "backend": {"type": kind, "data": data}}

    missing, bad = tmp_path / "missing" / "x", tmp_path / "x"
    steps: list[tuple[str, dict[str, Any]]] = [
        add("n", "null"),
        add("n", "null"),
        add("f", "file", out=str(bad)),
        add("f2", "file", out=str(missing)),
        add("f3", "file", **{"out": str(bad), "in": str(missing)}),
        add("r", "ringbuf", size=1000),
        add("r", "ringbuf", size=1024),
        add("s2", "socket", addr=unix(missing), server=True, wait=False),
        add("s3", "socket", addr=unix(missing), server=False),
        add("s5", "socket", addr=inet("1"), server=False),
        add("s7", "socket", addr=inet("1"), server=True, reconnect=1),
        add("s9", "socket", addr=inet("no-such-service"), server=True),
        add("s10", "socket", addr={"type": "fd", "data": {"str": "foo"}}),
        add("s14", "socket", addr=unix(bad), server=True, wait=False, **{"tls-creds": "x"}),
        add("s15", "socket", addr=unix("a" * 200), server=True, wait=False),
        add("u", "udp", remote=inet("5")),
        add("pi", "pipe", device=str(missing)),
        add("se", "serial", device=str(missing)),
        add("mu", "mux", chardev="n"),
        add("mu2", "mux", chardev="zz"),
        add("mu3", "mux", chardev="n"),
        ("chardev-remove", {"id": "zz"}),
        ("chardev-remove", {"id": "n"}),
        ("chardev-remove", {"id": "mu"}),
        ("chardev-remove", {"id": "n"}),
        ("chardev-send-break", {"id": "zz"}),
        ("chardev-send-break", {"id": "r"}),
        ("ringbuf-write", {"device": "zz", "data": "abc"}),
        ("ringbuf-write", {"device": "f", "data": "abc"}),
        ("ringbuf-write", {"device": "r", "data": "a\u20ac"}),
        ("ringbuf-write", {"device": "r", "data": "YP8=", "format": "base64"}),
        ("ringbuf-read", {"device": "r", "size": 0}),
        ("ringbuf-read", {"device": "r", "size": 5}),
        ("ringbuf-read", {"device": "r", "size": 5, "format": "base64"}),
        ("ringbuf-write", {"device": "r", "data": "x" * 1500 + "end"}),
        ("ringbuf-read", {"device": "r", "size": 5000}),
        ("chardev-change", {"id": "zz", "backend": {"type": "null", "data": {}}}),
        ("chardev-change", {"id": "r", "backend": {"type": "null", "data": {}}}),
        ("ringbuf-read", {"device": "r", "size": 5}),
        ("chardev-add", {"id": "x"}),
        ("chardev-add", {"id": "x", "backend": {"type": "null"}}),
        ("chardev-add", {"id": "x", "backend": {"type": "file", "data": {"out": 1}}}),
        ("chardev-add", {"id": "x", "backend": {"type": "null", "data": {"x": 1}}}),
    ]
    for command, arguments in steps:
        assert ours(command, **arguments) == theirs(command, **arguments), (command, arguments)
    listed = [
        sorted((each["label"], each["filename"], each["frontend-open"]) for each in send("query-chardev")["return"])
        for send in both
    ]
    assert [entry for entry in listed[0] if entry[0] != "qmp0"] == [
        entry for entry in listed[1] if entry[0] != "compat_monitor0"
    ]


def test_descriptors(both: tuple[Send, Send], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    fds = [os.open(path, flags) for flags in (os.O_RDONLY, os.O_WRONLY)]
    steps: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
        ("getfd", (), {"fdname": "a"}),
        ("getfd", (0,), {"fdname": "1"}),
        ("getfd", (0, 1), {"fdname": "a"}),
        ("getfd", (), {"fdname": "b"}),
        ("closefd", (), {"fdname": "b"}),
        ("closefd", (), {"fdname": "a"}),
        ("add-fd", (), {}),
        ("add-fd", (0,), {}),
        ("add-fd", (1,), {"fdset_id": 0, "opaque": "w"}),
        ("add-fd", (0,), {"fdset_id": -1}),
        ("add-fd", (0,), {"fdset_id": 5}),
        ("add-fd", (0,), {"opaque": "z"}),
        ("query-fdsets", (), {}),
        ("remove-fd", (), {"fdset_id": 3}),
        ("remove-fd", (), {"fdset_id": 0, "fd": 999}),
        ("remove-fd", (), {"fdset_id": 5}),
        ("query-fdsets", (), {}),
        ("chardev-add", (), {"id": "f", "backend": {"type": "file", "data": {"out": "/dev/fdset/9"}}}),
        ("chardev-add", (), {"id": "f", "backend": {"type": "file", "data": {"out": "/dev/fdset/0"}}}),
        ("blockdev-add", (), {"driver": "file", "filename": "/dev/fdset/0", "node_name": "a"}),
    ]
    for command, passed, arguments in steps:
        replies = []
        for send in both:
            reply = send(command, tuple(fds[index] for index in passed), **arguments)
            replies.append(without_numbers(reply))
        assert replies[0] == replies[1], (command, arguments)
    for fd in fds:
        os.close(fd)


def without_numbers(value: Any) -> Any:
    """``value`` without the descriptors' numbers, which are each process's own."""
    if isinstance(value, dict):
        return {key: without_numbers(member) for key, member in value.items() if key != "fd"}
    if isinstance(value, list):
        return [without_numbers(element) for element in value]
    return value


def test_human_monitor(both: tuple[Send, Send]) -> None:
    for line in (
        *("", "   ", "foo", "info foo", "info version x", "quit x", "help foo bar", "help q", "help help", "? q"),
        *("info status", "stop", "info status", "cont", "info uuid", "info name", "info block", "info block-jobs"),
        *("object_add", "object_del x", "object_add secret,id=s,data=x", "object_del s", "object_del s"),
        *(
            "chardev-add null",
            "chardev-add ringbuf,id=r",
            'ringbuf_write r "a b"',
            "ringbuf_read r 3",
            "ringbuf_read r",
        ),
        *("ringbuf_read r x", "ringbuf_write r", "chardev-remove r", "chardev-remove r", "help info status"),
        *("info block -x", "block_resize n x", "block_resize n", "block_resize", "help block_resize"),
        *("help chardev-add", "help object_add", "help cont", "help info uuid"),
    ):
        ours, theirs = (send("human-monitor-command", command_line=line) for send in both)
        if line.startswith(("help", "?")):
            ours, theirs = usages(ours["return"]), usages(theirs["return"])
            assert not set(ours.values()) & set(theirs.values())
            assert ours.keys() == theirs.keys(), line
        else:
            assert ours == theirs, line


def test_help_of_the_human_monitor_is_our_own(both: tuple[Send, Send]) -> None:
    """Commands and arguments are QEMU's, the words that tell what they do are not."""
    for topic in ("help", "help info"):
        ours, theirs = (usages(send("human-monitor-command", command_line=topic)["return"]) for send in both)
        assert ours.keys() & theirs.keys()
        assert not [usage for usage, words in ours.items() if theirs.get(usage) == words]


def usages(text: str) -> dict[str, str]:
    """What a command is for, by how it is written."""
    return dict(line.split(" -- ", 1) for line in text.splitlines() if " -- " in line)
