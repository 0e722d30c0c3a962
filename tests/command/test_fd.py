"""Descriptors over real sockets: getfd, fd sets, /dev/fdset/N."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError

MISSING = "No file descriptor supplied via SCM_RIGHTS"


def call(client: Any, command: str, fds: list[int], **arguments: Any) -> dict[str, Any]:
    members = {key.replace("_", "-"): value for key, value in arguments.items()}
    text = json.dumps({"execute": command, "arguments": members}).encode()
    socket.send_fds(client.sock, [text], fds)
    reply: dict[str, Any] = client.reply()
    return reply


def error(desc: str) -> dict[str, Any]:
    return {"error": {"class": "GenericError", "desc": desc}}


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int, int]]:
    """Descriptors to read, to write, and for both."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    fds = (os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY), os.open(path, os.O_RDWR))
    yield fds
    for fd in fds:
        os.close(fd)


def test_named(monitored: Any, files: tuple[int, int, int]) -> None:
    client = monitored.client()
    assert client.call("getfd", {"fdname": "a"}) == error(MISSING)
    assert call(client, "getfd", [files[0]], fdname="a") == {"return": {}}
    assert call(client, "getfd", [files[1]], fdname="a") == {"return": {}}  # in its place
    assert client.call("getfd", {"fdname": "b"}) == error(MISSING)
    digit = error("Parameter 'fdname' expects a name not starting with a digit")
    assert call(client, "getfd", [files[0]], fdname="1") == digit
    fd = monitored.machine.fdsets.take_named("a")
    assert os.fstat(fd).st_ino == os.fstat(files[0]).st_ino
    os.close(fd)
    assert client.call("closefd", {"fdname": "a"}) == error("File descriptor named 'a' not found")


def test_only_the_first_of_many_is_used(monitored: Any, files: tuple[int, int, int]) -> None:
    client = monitored.client()
    before = len(os.listdir("/proc/self/fd"))
    assert call(client, "getfd", list(files), fdname="a") == {"return": {}}
    assert len(os.listdir("/proc/self/fd")) == before + 1
    assert client.call("closefd", {"fdname": "a"}) == {"return": {}}
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("capabilities", [(), ("oob",)])
def test_a_descriptor_may_come_ahead_of_its_command(
    monitored: Any, files: tuple[int, int, int], capabilities: tuple[str, ...]
) -> None:
    client = monitored.client(*capabilities)
    socket.send_fds(client.sock, [b" "], [files[0]])
    assert client.call("getfd", {"fdname": "a"}) == {"return": {}}
    assert client.call("getfd", {"fdname": "b"}) == error(MISSING)


def test_sets(monitored: Any, files: tuple[int, int, int]) -> None:
    client = monitored.client()
    sets = monitored.machine.fdsets
    first = call(client, "add-fd", [files[0]])["return"]
    assert first["fdset-id"] == 0
    second = call(client, "add-fd", [files[1]], fdset_id=0, opaque="w")["return"]
    other = call(client, "add-fd", [files[2]], fdset_id=7)["return"]
    assert client.call("query-fdsets") == {
        "return": [
            {"fdset-id": 7, "fds": [{"fd": other["fd"]}]},
            {"fdset-id": 0, "fds": [{"fd": first["fd"]}, {"fd": second["fd"], "opaque": "w"}]},
        ]
    }
    reader = sets.open("/dev/fdset/0", os.O_RDONLY)
    assert os.read(reader, 100) == b"content"
    writer = sets.open("/dev/fdset/0", os.O_WRONLY)
    with pytest.raises(PermissionError):
        sets.open("/dev/fdset/0", os.O_RDWR)
    with pytest.raises(FileNotFoundError):
        sets.open("/dev/fdset/1", os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        sets.open("/dev/fdset/x", os.O_RDONLY)
    with pytest.raises(QobraError, match=r"^Could not dup FD for /dev/fdset/0 flags 2: Permission denied$"):
        sets.open_image("/dev/fdset/0", os.O_RDWR | os.O_CLOEXEC)
    # Removed: no more to be opened, but what is open stays so.
    assert client.call("remove-fd", {"fdset-id": 0, "fd": second["fd"]}) == {"return": {}}
    with pytest.raises(PermissionError):
        sets.open("/dev/fdset/0", os.O_WRONLY)
    assert os.write(writer, b"C") == 1
    assert client.call("remove-fd", {"fdset-id": 0}) == {"return": {}}
    gone = error("File descriptor named 'fdset-id:0' not found")
    assert client.call("remove-fd", {"fdset-id": 0}) == gone
    gone = error("File descriptor named 'fdset-id:7, fd:999' not found")
    assert client.call("remove-fd", {"fdset-id": 7, "fd": 999}) == gone
    negative = error("Parameter 'fdset-id' expects a non-negative value")
    assert call(client, "add-fd", [files[0]], fdset_id=-1) == negative
    for fd in (reader, writer):
        os.close(fd)


def test_a_new_set_takes_the_lowest_free_number(monitored: Any, files: tuple[int, int, int]) -> None:
    client = monitored.client()
    numbers = [call(client, "add-fd", [files[0]])["return"]["fdset-id"] for _ in range(3)]
    client.call("remove-fd", {"fdset-id": 1})
    assert [*numbers, call(client, "add-fd", [files[0]])["return"]["fdset-id"]] == [0, 1, 2, 1]


def test_exclusive_creation_and_truncation_empty_the_file(monitored: Any, files: tuple[int, int, int]) -> None:
    client = monitored.client()
    call(client, "add-fd", [files[2]])
    sets = monitored.machine.fdsets
    os.close(sets.open("/dev/fdset/0", os.O_RDWR | os.O_CREAT))
    assert os.fstat(files[2]).st_size == 7
    os.close(sets.open("/dev/fdset/0", os.O_RDWR | os.O_TRUNC))
    assert os.fstat(files[2]).st_size == 0


def test_each_request_of_a_queue_has_its_own(monitored: Any, files: tuple[int, int, int]) -> None:
    client = monitored.client("oob")
    for number in range(20):
        text = json.dumps({"execute": "getfd", "arguments": {"fdname": f"f{number}"}}).encode()
        socket.send_fds(client.sock, [text], [files[number % 3]])
    assert [client.reply() for _ in range(20)] == [{"return": {}}] * 20
    for number in range(20):
        fd = monitored.machine.fdsets.take_named(f"f{number}")
        mode = os.O_ACCMODE
        import fcntl

        assert fcntl.fcntl(fd, fcntl.F_GETFL) & mode == fcntl.fcntl(files[number % 3], fcntl.F_GETFL) & mode
        os.close(fd)


def test_what_nobody_took_is_closed_with_the_session(monitored: Any, files: tuple[int, int, int]) -> None:
    client, other = monitored.client(), monitored.client()
    before = len(os.listdir("/proc/self/fd"))
    call(client, "query-name", list(files))
    assert len(os.listdir("/proc/self/fd")) == before + 3
    client.close()
    while len(other.call("query-chardev")["return"]) > 1:
        pass
    assert len(os.listdir("/proc/self/fd")) <= before
