"""Socket addresses as QMP writes them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.nbd.sockets import connect, describe, hung_up, listen


def test_unix(tmp_path: Path) -> None:
    address = {"type": "unix", "path": str(tmp_path / "s")}
    with pytest.raises(QobraError, match="Failed to connect to '.*/s': No such file"):
        connect(address)
    (listener,) = listen(address)
    connect(address).close()
    listener.close()
    with pytest.raises(QobraError, match="Connection refused"):
        connect(address)
    listen(address)[0].close()  # takes the place of the dead one
    regular = tmp_path / "file"
    regular.write_text("precious")
    with pytest.raises(QobraError, match="Failed to bind"):
        listen({"type": "unix", "path": str(regular)})
    assert regular.read_text() == "precious"
    # What a program has made to have a name for itself holds nothing that could be lost.
    regular.write_text("")
    listen({"type": "unix", "path": str(regular)})[0].close()
    assert regular.is_socket()


def test_abstract() -> None:
    address = {"type": "unix", "path": f"qobra-{os.getpid()}", "abstract": True}
    (listener,) = listen(address)
    connect(address).close()
    listener.close()


def test_every_family_of_a_host_has_the_same_port() -> None:
    listeners = listen({"type": "inet", "host": "localhost", "port": "0"})
    assert len({each.getsockname()[1] for each in listeners}) == 1
    port = str(listeners[0].getsockname()[1])
    connect({"type": "inet", "host": "localhost", "port": port, "keep-alive": True}).close()
    for each in listeners:
        each.close()


def test_a_range_of_ports() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    address: dict[str, Any] = {"type": "inet", "host": "127.0.0.1", "port": str(port)}
    with pytest.raises(QobraError, match="Failed to find an available port"):
        listen(address)
    (listener,) = listen({**address, "to": min(port + 50, 65535)})
    assert port < listener.getsockname()[1] <= port + 50
    listener.close()
    taken.close()


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ({"type": "inet", "host": "h", "port": "1", "ipv4": False, "ipv6": False}, "Cannot disable IPv4 and IPv6"),
        ({"type": "inet", "host": "127.0.0.1", "port": "no-such-service"}, "address resolution failed for 127.0.0.1:"),
        ({"type": "inet", "host": "::1", "port": "1", "ipv4": True}, "address resolution failed"),
        ({"type": "inet", "host": "name", "port": "1", "numeric": True}, "address resolution failed"),
        ({"type": "unix", "path": "x" * 108}, "UNIX socket path 'x+' is too long"),
        ({"type": "vsock", "cid": "x", "port": "1"}, "Failed to parse cid 'x'$"),
        ({"type": "vsock", "cid": "-1", "port": "1"}, "Failed to parse cid '-1'$"),
        ({"type": "vsock", "cid": "1", "port": "4294967296"}, "Failed to parse port '4294967296'$"),
        ({"type": "fd", "str": "name"}, "No file descriptor named 'name'"),
        ({"type": "fd", "str": "\u00b2"}, "No file descriptor named '\u00b2'"),
        ({"type": "fd", "str": "9" * 20}, "No file descriptor named '9+'"),
        ({"type": "fd", "str": "9" * 19}, "File descriptor '9+' is not a socket"),
        ({"type": "carrier-pigeon"}, "Unsupported socket address type"),
    ],
)
def test_refusals(address: dict[str, Any], text: str) -> None:
    with pytest.raises(QobraError, match=text):
        connect(address)


def test_descriptors() -> None:
    left, right = socket.socketpair()
    number = os.dup(left.fileno())
    adopted = connect({"type": "fd", "str": "mine"}, find_fd={"mine": number}.__getitem__)
    adopted.sendall(b"x")
    assert right.recv(1) == b"x"
    for each in (adopted, left, right):
        each.close()
    with open(os.devnull) as file, pytest.raises(QobraError, match="is not a socket"):
        connect({"type": "fd", "str": str(os.dup(file.fileno()))})


def test_who_has_hung_up() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not hung_up(ours)
        theirs.send(b"last words")
        theirs.shutdown(socket.SHUT_WR)
        assert hung_up(ours)
    assert hung_up(ours)  # its thread has closed it, and is about to say so


def test_describe() -> None:
    assert describe({"type": "inet", "host": "h", "port": "1"}) == "h:1"
    assert describe({"type": "unix", "path": "/s"}) == "/s"
    assert describe({"type": "vsock", "cid": "2", "port": "3"}) == "vsock:2:3"
    assert describe({"type": "fd", "str": "n"}) == "fd:n"


@pytest.mark.parametrize(
    ("options", "served"), [({}, True), ({"ipv4": False}, False), ({"ipv6": True}, False), ({"ipv4": True}, None)]
)
def test_all_addresses_of_ipv6_are_those_of_ipv4_as_well(options: dict[str, bool], served: bool | None) -> None:
    address = {"type": "inet", "host": "::", "port": "0", **options}
    if served is None:
        with pytest.raises(QobraError):
            listen(address)
        return
    try:
        (sock,) = listen(address)
    except QobraError:
        pytest.skip("the host has no IPv6")
    with sock, socket.socket() as client:
        refused = client.connect_ex(("127.0.0.1", sock.getsockname()[1]))
        assert (refused == 0) == served
