"""Servers that lie: the client says so, and neither hangs nor grows."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.errors import QobraError
from qobra.nbd import connect
from qobra.nbd import protocol as p
from qobra.nbd.client import Client
from qobra.nbd.export_info import ExportInfo
from qobra.nbd.transport import Transport

Serve = Callable[[Callable[[Any], Any]], socket.socket]
COOKIE = 1
"""The client counts its requests from one."""


def chunk(kind: int, payload: bytes = b"", *, done: bool = True, cookie: int = COOKIE, length: int = -1) -> bytes:
    size = len(payload) if length < 0 else length
    return p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, int(done), kind, cookie, size) + payload


def data(offset: int, content: bytes, *, done: bool = True) -> bytes:
    return chunk(p.CHUNK_OFFSET_DATA, p.U64.pack(offset) + content, done=done)


def hole(offset: int, length: int, *, done: bool = True) -> bytes:
    return chunk(p.CHUNK_OFFSET_HOLE, p.HOLE_BODY.pack(offset, length), done=done)


def status(context: int, *extents: tuple[int, int], done: bool = True) -> bytes:
    body = p.U32.pack(context) + b"".join(p.EXTENT.pack(*each) for each in extents)
    return chunk(p.CHUNK_BLOCK_STATUS, body, done=done)


def answered(answer: bytes, *, structured: bool = True) -> Client:
    """A client whose first request is answered with ``answer``, after which the server is gone."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(4096, 2 * len(answer)))
    theirs.sendall(answer)
    theirs.shutdown(socket.SHUT_WR)
    transport = Transport(ours, timeout=20)
    client = Client(
        transport, ExportInfo("x", 1 << 40, 0xFFF & ~2), structured=structured, contexts={1: "base:allocation"}
    )
    client._peer = theirs  # type: ignore[attr-defined]
    return client


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage garbage garbage garbage",
        p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, COOKIE) + bytes(100),  # simple, though structured was agreed
        p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 5, 77),
        data(0, b"x" * 101),
        data(1, b"x" * 100),
        data((1 << 64) - 1, b"x" * 50),
        data(0, b""),
        data(0, b"x" * 60, done=False) + data(40, b"x" * 60),
        data(0, b"x" * 50),  # and that was all
        chunk(p.CHUNK_OFFSET_DATA, length=0xFFFFFFFF),
        chunk(p.CHUNK_OFFSET_DATA, b"12345"),
        hole(0, 0),
        hole(0, 1 << 31),
        hole(0, 60, done=False) + hole(0, 60),
        chunk(p.CHUNK_OFFSET_HOLE, b"1234"),
        chunk(p.CHUNK_NONE, b"x"),
        chunk(p.CHUNK_NONE, done=False) * 100,
        chunk(77),
        status(1, (10, 0)),
        chunk(p.CHUNK_ERROR, b""),
        chunk(p.CHUNK_ERROR, p.ERROR_BODY.pack(0, 0)),
        chunk(p.CHUNK_ERROR, p.ERROR_BODY.pack(5, 100)),
        chunk(p.CHUNK_ERROR, length=1 << 30),
        chunk(p.CHUNK_ERROR, p.ERROR_BODY.pack(5, 0), done=False) * 1000,
        b"",
    ],
)
def test_lies_in_answer_to_a_read(answer: bytes) -> None:
    client = answered(answer)
    with pytest.raises(QobraError):
        client.pread(100, 0)
    assert client.broken is not None or b"x" * 50 in answer
    client.close()


@pytest.mark.parametrize(
    "answer",
    [
        p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, COOKIE),
        chunk(p.CHUNK_NONE),
        status(2, (10, 0)),
        status(1),
        status(1, (0, 0)),
        status(1, (1000, 0), (10, 0)),
        status(1, (10, 0), done=False) + status(1, (10, 0)),
        chunk(p.CHUNK_BLOCK_STATUS, p.U32.pack(1) + b"1234567"),
        chunk(p.CHUNK_BLOCK_STATUS, length=0xFFFFFFFC),
        data(0, b"x"),
    ],
)
def test_lies_in_answer_to_a_block_status(answer: bytes) -> None:
    client = answered(answer)
    with pytest.raises(QobraError):
        client.block_status(1000, 0)
    client.close()


def test_structured_though_not_agreed() -> None:
    client = answered(data(0, b"x" * 100), structured=False)
    with pytest.raises(QobraError, match="invalid reply magic 0x668e33ef"):
        client.pread(100, 0)
    client.close()


PIECES = st.one_of(
    st.binary(max_size=64),
    st.builds(data, st.integers(0, 120), st.binary(max_size=120), done=st.booleans()),
    st.builds(hole, st.integers(0, 120), st.integers(0, 120), done=st.booleans()),
    st.builds(status, st.integers(0, 3), st.tuples(st.integers(0, 2000), st.integers(0, 3)), done=st.booleans()),
    st.builds(
        lambda e, n, d: chunk(p.CHUNK_ERROR, p.ERROR_BODY.pack(e, n) + b"t" * 9, done=d),
        st.integers(0, 200),
        st.integers(0, 20),
        st.booleans(),
    ),
    st.builds(lambda e, c: p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, e, c), st.integers(0, 200), st.integers(0, 2)),
)


@given(st.lists(PIECES, max_size=8), st.booleans(), st.sampled_from(["read", "status", "flush"]))
def test_any_answer_ends_in_a_result_or_an_error(answer: list[bytes], structured: bool, what: str) -> None:
    client = answered(b"".join(answer), structured=structured)
    try:
        if what == "read":
            assert len(client.pread(100, 0)) == 100
        elif what == "status":
            assert sum(extent.length for extent in client.block_status(100, 0)["base:allocation"]) <= 100
        else:
            client.flush()
    except QobraError:
        pass
    client.close()


@given(st.binary(max_size=400))
def test_any_greeting_ends_in_an_error(greeting: bytes) -> None:
    for prefix in (b"", p.GREETING.pack(p.INIT_MAGIC, p.OPTION_MAGIC, 3)):
        ours, theirs = socket.socketpair()
        theirs.sendall(prefix + greeting)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(QobraError):
            connect(ours, "x", handshake_timeout=20)
        theirs.close()
