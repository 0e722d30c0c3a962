"""The spellings of addresses."""

from __future__ import annotations

import pytest

from qobra.client import ConnectError
from qobra.client.address import SshAddress, TcpAddress, UnixAddress, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/run/vm.sock", UnixAddress("/run/vm.sock")),
        ("./vm.sock", UnixAddress("./vm.sock")),
        ("vm.sock", UnixAddress("vm.sock")),
        ("./a:1", UnixAddress("./a:1")),
        ("unix:vm.sock,server=on,wait=off", UnixAddress("vm.sock")),
        ("@abstract", UnixAddress("@abstract")),
        ("localhost:4444", TcpAddress("localhost", 4444)),
        (":4444", TcpAddress("localhost", 4444)),
        ("tcp:[::1]:4444", TcpAddress("::1", 4444)),
        ("ssh://root@host/run/vm.sock", SshAddress("root@host", None, UnixAddress("/run/vm.sock"))),
        ("ssh://host:2222/run/vm:1", SshAddress("host", 2222, UnixAddress("/run/vm:1"))),
        ("ssh://[fe80::1]:22/localhost:4444", SshAddress("fe80::1", 22, TcpAddress("localhost", 4444))),
    ],
)
def test_parse(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "unix:", "host:99999", "tcp:host", "ssh://host", "ssh:///x", "ssh://-oProxy=x/y", "ssh://h:x/y"],
)
def test_refused(text: str) -> None:
    with pytest.raises(ConnectError):
        parse_address(text)


@pytest.mark.parametrize("text", ["unix:/run/vm.sock", "tcp:[::1]:4444", "ssh://root@host:2222/run/vm.sock"])
def test_text_reads_back(text: str) -> None:
    assert str(parse_address(text)) == text
