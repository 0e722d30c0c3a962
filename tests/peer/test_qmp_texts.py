"""The same bytes to QEMU's storage daemon and to ours: the replies are the same, error texts and all."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.json_reader import Reader

END = b'\xff\n{"execute":"x-end","id":"the end of it"}'


class Peer:
    """QEMU's storage daemon with one QMP socket."""

    def __init__(self, program: str, directory: Path) -> None:
        self.path = directory / "qmp"
        listening = f"socket,id=c,path={self.path},server=on,wait=off"
        self.process = subprocess.Popen([program, "--chardev", listening, "--monitor", "c"])

    def connect(self) -> socket.socket:
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(self.path))
                return sock
            except OSError:
                sock.close()
                assert self.process.poll() is None


@pytest.fixture(scope="module")
def qemu(peer: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    running = Peer(peer("qemu-storage-daemon"), tmp_path_factory.mktemp("qemu"))
    yield running
    running.process.kill()
    running.process.wait()


def ask(sock: socket.socket, *pieces: bytes, negotiated: bool = True, oob: bool = False) -> list[Any]:
    """All replies to ``pieces`` on a new connection, without those to what is sent around them."""
    sock.settimeout(30)
    with sock, sock.makefile("rb") as replies:
        assert b"QMP" in replies.readline()
        if negotiated:
            enabled = b'"oob"' if oob else b""
            sock.sendall(b'{"execute":"qmp_capabilities","arguments":{"enable":[%s]}}' % enabled)
            assert replies.readline() == b'{"return": {}}\r\n'
        for piece in pieces:
            sock.sendall(piece)
        sock.sendall(END)
        found = []
        while True:
            line = replies.readline()
            assert line, "the connection was lost"
            if b"the end of it" in line:
                return found
            found += Reader().feed(line)


EXACT = [
    b"xxx\n",
    b"{xxx}",
    b'{"execute":}',
    b'{"a" 1}',
    b"{,}",
    b"[1,]",
    b"[1 2]",
    b'{"a":1,}',
    b'{"a":1 "b":2}',
    b"{1:2}",
    b"{{}}",
    b"{[]:1}",
    b"{[1 2]:1}",
    b"{null:1}",
    b"]",
    b"}",
    b":",
    b",",
    b"[[[}",
    b'{"a":[1,2}}',
    b'{"a":1}}',
    b'{"execute":"x"]',
    b'"abc"',
    b"1 ",
    b"null ",
    b"[]",
    b"{}",
    b'{"id":3}',
    b'{"execute":1}',
    b'{"execute":null,"arguments":1}',
    b'{"execute":"x","id":[1,{"a":null}]}',
    b'{"execute":"x","x":1}',
    b'{"execute":"x","arguments":1}',
    b'{"execute":"query-commands","arguments":{"x":1}}',
    b'{"execute":"x","exec-oob":"x"}',
    b'{"exec-oob":"x","id":1}',
    b'{"execute":"qmp_capabilities"}',
    b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}',
    b'{"execute":"qmp_capabilities","arguments":{"enable":1}}',
    b'{"execute":"x","execute":"x"}',
    b'{"a":1,"a":xyz}',
    b'{"execute":"x","id":99999999999999999999999}',
    b'{"execute":"x","id":-9223372036854775809}',
    b'{"execute":"x","id":18446744073709551615}',
    b'{"execute":"x","id":0.1}',
    b'{"execute":"x","id":01}',
    b'{"execute":"x","id":-}',
    b'{"execute":"x","id":1.}',
    b'{"execute":"x","id":1e}',
    b'{"execute":"x","id":NaN}',
    b'{"execute":"x","id":+1}',
    b'{"execute":"x","id":%d}',
    b'{"execute":"x","id":"\\u00e9\\u20ac\\ud83d\\ude00\\/\\b\\f\\n\\r\\t\\u0001\\u0000\\\'"}',
    b'{"execute":"x","id":"\\ud83d"}',
    b'{"execute":"x","id":"\\ud83d\\u0041"}',
    b'{"execute":"x","id":"\\ud83f\\udffe"}',
    b'{"execute":"x","id":"\\ufffe"}',
    b'{"execute":"x","id":"\\x"}',
    b'{"execute":"x","id":"\\u12"}',
    b'{"execute":"x","id":"\xc3\xa9\xc0\x80\x7f"}',
    b'{"execute":"x","id":"\xc3"}',
    b'{"execute":"x","id":"\xed\xa0\x80"}',
    b'{"execute":"x","id":"\xef\xbf\xbf"}',
    b'{"execute":"x","id":"\xff"}',
    b'{"execute":"x","id":"\x01"}',
    b'{"execute":"x","id":"a\nb"}',
    b'{"execute":"\xff{"execute":"x","id":7}',
    b'\x00{"execute":"x"}',
    b'\xef\xbb\xbf{"execute":"x"}',
    b'/* c */{"execute":"x"}',
    b'{@}{"execute":"x"}',
    b'{"execute":"\\u00e9"}',
    b'{"execute":"a\\nb\\"c"}',
    b"{'execute':'x','id':'a\"b\\'c'}",
    b'{"execute":"x","id":' + b"[" * 300 + b"]" * 300 + b"}",
    b"[" * 1024 + b"]" * 1024,
    b"[" * 1030 + b'{"execute":"x"}',
]


@pytest.mark.parametrize("text", EXACT, ids=lambda text: repr(text[:40]))
def test_known_cases(qemu: Peer, monitored: Any, text: bytes) -> None:
    assert ask(monitored.connect().sock, text) == ask(qemu.connect(), text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"execute":"query-version","id":1}',
        b'{"execute":"x"}',
        b'{"execute":"qmp_capabilities","arguments":{"x":1}}',
        b'{"exec-oob":"qmp_capabilities"}',
        b"{}",
        b'{"execute":1}',
        b'{"execute":"x","arguments":1}',
    ],
)
def test_before_negotiation(qemu: Peer, monitored: Any, text: bytes) -> None:
    assert ask(monitored.connect().sock, text, negotiated=False) == ask(qemu.connect(), text, negotiated=False)


@pytest.mark.parametrize(
    "text",
    [
        b'{"exec-oob":"query-version","id":2}',
        b'{"exec-oob":"nope","id":2}',
        b'{"exec-oob":1,"id":2}',
        b'{"exec-oob":"x","x":2}',
        b'{"exec-oob":"x","arguments":2}',
        b'{"exec-oob":"x","execute":"x"}',
        b'{"execute":1,"exec-oob":"x"}',
        b'{"exec-oob":"qmp_capabilities"}',
        b'{"execute":"x"}',
        b"{}",
        b"[]",
        b"xxx\n",
    ],
)
def test_out_of_band(qemu: Peer, monitored: Any, text: bytes) -> None:
    assert ask(monitored.connect().sock, text, oob=True) == ask(qemu.connect(), text, oob=True)


fragments = st.sampled_from(
    [b"{", b"}", b"[", b"]", b",", b":", b'"execute"', b'"id"', b"'x'", b"1", b"-0", b"2.5e3", b"01", b"null", b"tru"]
    + [b" ", b"\n", b"\t", b"\xff", b"@", b"a\\u0041", b'"\\u00', b'"\xc3\xa9"', b"\x00"]
)


@given(st.lists(st.lists(fragments, max_size=12).map(b"".join), min_size=1, max_size=3))
def test_made_up_cases(qemu: Peer, make_monitored: Callable[..., Any], pieces: list[bytes]) -> None:
    assert ask(make_monitored().connect().sock, *pieces) == ask(qemu.connect(), *pieces)
