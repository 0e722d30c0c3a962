"""The client's handshake against servers good, old and hostile."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.nbd import connect, list_exports
from qobra.nbd import protocol as p
from qobra.nbd.handshake import Handshake, OptionRefused
from qobra.nbd.transport import Transport

Serve = Callable[[Callable[[Any], Any]], socket.socket]


def test_go_tells_everything(serve: Serve) -> None:
    def script(s: Any) -> None:
        assert s.greet() == 3
        option, body = s.option()
        assert (option, body) == (p.OPT_STRUCTURED_REPLY, b"")
        s.reply(option, p.REP_ACK)
        option, body = s.option()
        assert option == p.OPT_SET_META_CONTEXT
        assert body == b"\0\0\0\x04disk" + b"\0\0\0\x02" + b"\0\0\0\x0fbase:allocation" + b"\0\0\0\x03x:y"
        s.reply(option, p.REP_META_CONTEXT, p.U32.pack(7), b"base:allocation")
        s.reply(option, p.REP_ACK)
        option, body = s.option()
        assert (option, body[:8]) == (p.OPT_GO, b"\0\0\0\x04disk")
        s.reply(option, p.REP_INFO, p.U16.pack(p.INFO_NAME), b"the disk")
        s.reply(option, p.REP_INFO, p.U16.pack(p.INFO_DESCRIPTION), "naïve".encode())
        s.reply(option, p.REP_INFO, p.U16.pack(99), b"from the future")
        s.reply(option, p.REP_INFO, p.INFO_BLOCK_SIZE_BODY.pack(p.INFO_BLOCK_SIZE, 512, 4096, 65536))
        s.reply(option, p.REP_INFO, p.INFO_EXPORT_BODY.pack(p.INFO_EXPORT, 1 << 20, 1 | p.FLAG_READ_ONLY))
        s.reply(option, p.REP_ACK)
        assert s.request()[0] == p.CMD_DISC

    with connect(serve(script), "disk", meta_contexts=["base:allocation", "x:y"]) as client:
        assert client.size == 1 << 20
        assert client.info.name == "the disk"
        assert client.info.description == "naïve"
        assert client.block_sizes == (512, 4096, 65536)
        assert client.read_only and client.structured and not client.tls
        assert client.meta_contexts == ("base:allocation",)


def test_export_name_where_go_is_unknown(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.greet(p.FLAG_FIXED_NEWSTYLE)
        s.reply(s.option()[0], p.REP_ERR_UNSUP)
        s.reply(s.option()[0], p.REP_ERR_UNSUP)
        assert s.option() == (p.OPT_EXPORT_NAME, b"old")
        s.send(p.EXPORT_REPLY.pack(4096, 5), bytes(124))
        command, _flags, cookie, *_ = s.request()
        assert command == p.CMD_FLUSH
        s.simple(cookie)

    with connect(serve(script), "old") as client:
        assert client.size == 4096 and not client.structured
        client.flush()


def test_newstyle_that_is_not_fixed(serve: Serve) -> None:
    def script(s: Any) -> None:
        assert s.greet(0) == 0
        assert s.option() == (p.OPT_EXPORT_NAME, b"x")
        s.send(p.EXPORT_REPLY.pack(512, 0), bytes(124))

    client = connect(serve(script), "x")
    assert client.size == 512 and not client.info.can_flush
    client.abort()


def test_oldstyle(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.send(p.MAGICS.pack(p.INIT_MAGIC, p.OLDSTYLE_MAGIC), p.OLDSTYLE_EXPORT.pack(1024, 3), bytes(124))

    client = connect(serve(script))
    assert client.size == 1024 and client.read_only
    client.abort()
    [(info, contexts)] = list_exports(serve(script))
    assert (info.name, info.size, info.read_only, contexts) == ("", 1024, True, [])


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (p.REP_ERR_UNKNOWN, "Requested export not available"),
        (p.REP_ERR_POLICY, "Denied by server for option 7"),
        (p.REP_ERR_TLS_REQD, "TLS negotiation required before option 7 (go)"),
        (p.REP_ERR_SHUTDOWN, "Server shutting down before option 7"),
        (p.REP_ERROR_BIT | 77, "Unknown error code when asking for option 7 (go)"),
    ],
)
def test_refusals(serve: Serve, reply: int, text: str) -> None:
    def script(s: Any) -> None:
        s.greet()
        s.reply(s.option()[0], p.REP_ACK)
        s.reply(s.option()[0], reply, b"no such luck")
        assert s.option() == (p.OPT_ABORT, b"")

    with pytest.raises(OptionRefused) as caught:
        connect(serve(script), "x")
    assert caught.value.desc.startswith(text)
    assert caught.value.hint is not None and caught.value.hint.endswith("server reported: no such luck")
    assert caught.value.reply == reply


def info(size: int = 4096) -> bytes:
    return p.INFO_EXPORT_BODY.pack(p.INFO_EXPORT, size, 1)


@pytest.mark.parametrize(
    "replies",
    [
        [(p.REP_ACK, b"")],  # no export information
        [(p.REP_INFO, b"\0")],
        [(p.REP_INFO, info() + b"x")],
        [(p.REP_INFO, info(1 << 63)), (p.REP_ACK, b"")],
        [(p.REP_SERVER, b"")],
        [(p.REP_INFO, b"\0\3" + bytes(11))],
        [(p.REP_INFO, p.INFO_BLOCK_SIZE_BODY.pack(3, 3, 8, 8)), (p.REP_INFO, info()), (p.REP_ACK, b"")],
        [
            (p.REP_INFO, p.INFO_BLOCK_SIZE_BODY.pack(3, 1 << 20, 1 << 20, 1 << 20)),
            (p.REP_INFO, info()),
            (p.REP_ACK, b""),
        ],
        [(p.REP_INFO, p.INFO_BLOCK_SIZE_BODY.pack(3, 4096, 512, 8192)), (p.REP_INFO, info()), (p.REP_ACK, b"")],
        [(p.REP_INFO, p.INFO_BLOCK_SIZE_BODY.pack(3, 512, 4096, 256)), (p.REP_INFO, info()), (p.REP_ACK, b"")],
        [(p.REP_INFO, p.INFO_BLOCK_SIZE_BODY.pack(3, 512, 4096, 8192)), (p.REP_INFO, info(100)), (p.REP_ACK, b"")],
        [(p.REP_INFO, b"\0\1" + b"n" * 5000)],
        [(p.REP_INFO, info())] * 100,  # and never an end
    ],
)
def test_broken_information(serve: Serve, replies: list[tuple[int, bytes]]) -> None:
    def script(s: Any) -> None:
        s.greet()
        s.reply(s.option()[0], p.REP_ACK)
        option, _ = s.option()
        for kind, body in replies:
            s.reply(option, kind, body)

    with pytest.raises(QobraError, match="broke the protocol"):
        connect(serve(script), "x", handshake_timeout=20)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        p.MAGICS.pack(p.INIT_MAGIC, 5),
        p.GREETING.pack(p.INIT_MAGIC, p.OPTION_MAGIC, 3) + b"x" * 20,
        p.GREETING.pack(p.INIT_MAGIC, p.OPTION_MAGIC, 3) + p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, 7, 1, 0),
        p.GREETING.pack(p.INIT_MAGIC, p.OPTION_MAGIC, 3)
        + p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, p.OPT_STRUCTURED_REPLY, 1, 0xFFFFFFFF),
    ],
)
def test_not_an_nbd_server(serve: Serve, data: bytes) -> None:
    def script(s: Any) -> None:
        s.send(data)
        while True:
            s.recv(1)

    with pytest.raises(QobraError):
        connect(serve(script), "x", handshake_timeout=20)


def test_a_server_that_says_nothing_is_given_up(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.send(b"NBDMAG")
        s.recv(1)

    with pytest.raises(QobraError, match="did not answer in time") as caught:
        connect(serve(script), "x", handshake_timeout=0.05)
    assert caught.value.errno == 110


def test_list_with_details(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.greet()
        s.reply(s.option()[0], p.REP_ACK)
        option, _ = s.option()
        assert option == p.OPT_LIST
        for name, description in (("a", b"first"), ("b", b"")):
            s.reply(option, p.REP_SERVER, p.U32.pack(len(name)), name.encode(), description)
        s.reply(option, p.REP_ACK)
        option, _ = s.option()
        s.reply(option, p.REP_INFO, info(8192))
        s.reply(option, p.REP_ACK)
        option, _ = s.option()
        assert option == p.OPT_LIST_META_CONTEXT
        s.reply(option, p.REP_META_CONTEXT, p.U32.pack(0), b"base:allocation")
        s.reply(option, p.REP_ACK)
        s.reply(s.option()[0], p.REP_ERR_POLICY)
        assert s.option() == (p.OPT_ABORT, b"")

    (one, contexts), (two, nothing) = list_exports(serve(script))
    assert (one.name, one.description, one.size, contexts) == ("a", "first", 8192, ["base:allocation"])
    assert (two.name, two.size, nothing) == ("b", -1, [])


def test_list_entry_longer_than_its_reply(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.greet()
        s.reply(s.option()[0], p.REP_ACK)
        s.reply(s.option()[0], p.REP_SERVER, p.U32.pack(100), b"short")

    with pytest.raises(QobraError, match="too long"):
        list_exports(serve(script))


def test_names_are_bounded(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.greet()
        s.reply(s.option()[0], p.REP_ACK)
        s.option()

    with pytest.raises(QobraError, match="longer than the NBD protocol allows"):
        connect(serve(script), "x" * 5000)


@pytest.mark.parametrize(("steps", "what"), [(0, "server flags"), (1, "option reply")])
def test_a_server_that_leaves_in_the_middle(serve: Serve, steps: int, what: str) -> None:
    def script(s: Any) -> None:
        if steps:
            s.greet()
            s.option()
        else:
            s.send(p.MAGICS.pack(p.INIT_MAGIC, p.OPTION_MAGIC))

    with pytest.raises(QobraError, match=f"Failed to (read {what}|send)"):
        connect(serve(script), "disk")


def test_what_a_server_says_is_told_on_one_line(serve: Serve) -> None:
    def script(s: Any) -> None:
        s.greet()
        s.reply(s.option()[0], p.REP_ACK)
        s.reply(s.option()[0], p.REP_ERR_POLICY, b"no\nway\x1b[2J\xff")
        s.option()

    with pytest.raises(QobraError) as caught:
        connect(serve(script))
    assert caught.value.hint == "server reported: no\\nway\\x1b[2J\ufffd"


@pytest.mark.parametrize("option", [p.OPT_LIST, p.OPT_LIST_META_CONTEXT])
def test_lists_are_bounded(serve: Serve, option: int) -> None:
    name = b"n" * 4096
    body = p.U32.pack(len(name)) + name * 2 if option == p.OPT_LIST else p.U32.pack(1) + name
    kind = p.REP_SERVER if option == p.OPT_LIST else p.REP_META_CONTEXT
    reply = p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(body)) + body

    def script(s: Any) -> None:
        s.greet()
        s.option()
        while True:
            s.send(reply * 16)

    handshake = Handshake(Transport(serve(script), timeout=20))
    with pytest.raises(QobraError, match="more than 16777216 bytes in answer to option"):
        handshake.list_exports() if option == p.OPT_LIST else handshake.list_meta_contexts("x")
    handshake.transport.close()
