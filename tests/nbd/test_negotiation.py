"""The server's handshake, against our own client and against clients that break the rules."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qobra.errors import QobraError
from qobra.nbd import protocol as p
from qobra.nbd.export_info import BlockSizes, ExportInfo
from qobra.nbd.handshake import Handshake, OptionRefused
from qobra.nbd.negotiation import Entered, Negotiation
from qobra.nbd.tls import client_context
from qobra.nbd.transport import Transport


class FakeExport:
    def __init__(self, name: str, minimum: int = 1) -> None:
        self.name = name
        self.minimum = minimum

    def nbd_info(self, structured: bool) -> ExportInfo:
        flags = 1 | (p.FLAG_SEND_DF if structured else 0)
        return ExportInfo(self.name, 1 << 30, flags, f"about {self.name}", BlockSizes(self.minimum, 4096, 32 << 20))

    def contexts(self) -> dict[str, int]:
        return {"base:allocation": 0, "qemu:allocation-depth": 1, "qemu:dirty-bitmap:b": 2, "qemu:dirty-bitmap:c": 3}


class FakeDirectory:
    def __init__(self, **exports: FakeExport) -> None:
        self.exports = exports

    def listed(self) -> list[tuple[str, str]]:
        return [(name, f"about {name}") for name in self.exports]

    def lookup(self, name: str) -> FakeExport | None:
        return self.exports.get(name)


class Server:
    """Runs a negotiation in a thread; ``result`` is what it returned or raised."""

    def __init__(self, **options: Any) -> None:
        self.client_end, self.server_end = socket.socketpair()
        self.directory = FakeDirectory(a=FakeExport("a"), big=FakeExport("big", 512))
        self.result: Entered | QobraError | None = None
        self._options = options
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        transport = Transport(self.server_end, timeout=20)
        try:
            self.result = Negotiation(transport, self.directory, **self._options).run()
        except QobraError as error:
            self.result = error
        if not isinstance(self.result, Entered):
            self.server_end.close()

    def ended(self) -> Entered | QobraError | None:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.result

    def handshake(self) -> Handshake:
        return Handshake(Transport(self.client_end, timeout=20))

    def close(self) -> None:
        self.client_end.close()
        self.ended()
        self.server_end.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_go(server: Server) -> None:
    handshake = server.handshake()
    assert handshake.request_structured_replies()
    assert handshake.set_meta_contexts("a", ["qemu:dirty-bitmap:c", "base:allocation", "nope"]) == {
        0: "base:allocation",
        3: "qemu:dirty-bitmap:c",
    }
    info = handshake.go("a")
    assert (info.size, info.description, info.block_sizes) == (1 << 30, "about a", (1, 4096, 32 << 20))
    assert info.can_df
    entered = server.ended()
    assert isinstance(entered, Entered)
    assert entered.structured and entered.contexts == {0: "base:allocation", 3: "qemu:dirty-bitmap:c"}
    assert entered.export is server.directory.exports["a"]


def test_info_refusals_and_lists(server: Server) -> None:
    handshake = server.handshake()
    assert handshake.list_exports() == [("a", "about a"), ("big", "about big")]
    with pytest.raises(OptionRefused) as caught:
        handshake.info("nope")
    assert caught.value.reply == p.REP_ERR_UNKNOWN
    assert caught.value.hint == "server reported: export 'nope' not present"
    with pytest.raises(OptionRefused) as caught:
        handshake.info("n" * 4096)
    assert caught.value.hint == f"server reported: export '{'n' * 80}...' not present"
    everything = list(FakeExport("").contexts())
    assert handshake.list_meta_contexts("a") == everything  # no structured replies are needed to ask
    with pytest.raises(OptionRefused, match="structured reply is not negotiated"):
        handshake.set_meta_contexts("a", everything)
    assert handshake.request_structured_replies()
    assert not handshake.request_structured_replies()  # once is enough
    assert handshake.list_meta_contexts("a") == everything
    assert handshake.list_meta_contexts("a", ["base:"]) == everything[:1]
    assert handshake.list_meta_contexts("a", ["qemu:"]) == everything[1:]
    assert handshake.list_meta_contexts("a", ["qemu:dirty-bitmap:"]) == everything[2:]
    assert handshake.list_meta_contexts("a", ["qemu:allocation-depth", "x:"]) == everything[1:2]
    assert handshake.set_meta_contexts("a", ["qemu:", "base:"]) == {}  # families are for listing
    assert handshake.info("a").size == 1 << 30
    handshake.abort()
    assert server.ended() is None


def test_contexts_of_another_export_do_not_count(server: Server) -> None:
    handshake = server.handshake()
    handshake.request_structured_replies()
    handshake.set_meta_contexts("big", ["base:allocation"])
    handshake.go("a")
    entered = server.ended()
    assert isinstance(entered, Entered) and entered.contexts == {}


def test_export_name_with_and_without_zeroes() -> None:
    for flags, extra in ((0, 124), (p.FLAG_FIXED_NEWSTYLE, 124), (p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES, 0)):
        server = Server()
        transport = Transport(server.client_end)
        transport.recv_exact(18)
        transport.send([p.CLIENT_FLAGS.pack(flags), p.OPTION.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, 1), b"a"])
        assert p.EXPORT_REPLY.unpack(transport.recv_exact(10)) == (1 << 30, 1)
        assert transport.recv_exact(extra) == bytes(extra)
        entered = server.ended()
        assert isinstance(entered, Entered) and not entered.structured
        server.close()


def test_a_client_that_does_not_know_replies_gets_none(server: Server) -> None:
    server.client_end.sendall(p.CLIENT_FLAGS.pack(0) + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_LIST, 0))
    transport = Transport(server.client_end, timeout=20)
    transport.recv_exact(18)
    with pytest.raises(QobraError):
        transport.recv_exact(1)
    assert "Unsupported option" in str(server.ended())


def raw(server: Server, *options: tuple[int, bytes]) -> tuple[list[tuple[int, int, bytes]], Any]:
    """Send options as they are; the replies until the server has had enough, and how it ended."""
    transport = Transport(server.client_end, timeout=20)
    transport.recv_exact(18)
    transport.send([p.CLIENT_FLAGS.pack(3)])
    for option, body in options:
        transport.send([p.OPTION.pack(p.OPTION_MAGIC, option, len(body)), body])
    server.client_end.shutdown(socket.SHUT_WR)
    replies = []
    try:
        while True:
            _magic, option, reply, length = p.OPTION_REPLY.unpack(transport.recv_exact(20))
            replies.append((option, reply, transport.recv_exact(length)))
            if (option, reply) == (p.OPT_GO, p.REP_ACK):
                break
    except QobraError:
        pass
    return replies, server.ended()


def test_names_that_are_no_text_go_over_the_wire_as_they_are(server: Server) -> None:
    name = b"\xff\xfe"
    server.directory.exports[os.fsdecode(name)] = FakeExport("odd")
    asked = p.U32.pack(len(name)) + name + p.U16.pack(1) + p.U16.pack(p.INFO_NAME)
    unknown = p.U32.pack(1) + b"\xfd" + p.U16.pack(0)
    replies, _end = raw(server, (p.OPT_LIST, b""), (p.OPT_INFO, unknown), (p.OPT_GO, asked))
    told = [body for _option, _reply, body in replies]
    assert any(body.startswith(p.U32.pack(len(name)) + name) for body in told)
    assert b"export '\xfd' not present" in told
    assert p.U16.pack(p.INFO_NAME) + name in told


@pytest.mark.parametrize(
    ("option", "body", "reply"),
    [
        (99, b"whatever", p.REP_ERR_UNSUP),
        (p.OPT_EXTENDED_HEADERS, b"", p.REP_ERR_UNSUP),
        (p.OPT_LIST, b"x", p.REP_ERR_INVALID),
        (p.OPT_STRUCTURED_REPLY, b"x", p.REP_ERR_INVALID),
        (p.OPT_STARTTLS, b"", p.REP_ERR_POLICY),
        (p.OPT_STARTTLS, b"x", p.REP_ERR_INVALID),
        (p.OPT_INFO, b"", p.REP_ERR_INVALID),
        (p.OPT_INFO, p.U32.pack(5000) + b"x" * 5000 + b"\0\0", p.REP_ERR_INVALID),
        (p.OPT_INFO, p.U32.pack(1) + b"a" + b"\0\1", p.REP_ERR_INVALID),
        (p.OPT_INFO, p.U32.pack(1) + b"a" + b"\0\0" + b"x", p.REP_ERR_INVALID),
        (p.OPT_GO, p.U32.pack(0xFFFFFFFF), p.REP_ERR_INVALID),
        (p.OPT_LIST_META_CONTEXT, b"", p.REP_ERR_INVALID),
        (p.OPT_INFO, bytes(2 << 20), p.REP_ERR_TOO_BIG),
    ],
)
def test_bad_options_are_refused_and_the_next_is_answered(server: Server, option: int, body: bytes, reply: int) -> None:
    replies, _end = raw(server, (option, body), (p.OPT_ABORT, b""))
    assert [(each[0], each[1]) for each in replies] == [(option, reply), (p.OPT_ABORT, p.REP_ACK)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        p.U32.pack(1) + b"a",
        p.U32.pack(1) + b"a" + p.U32.pack(1),
        p.U32.pack(1) + b"a" + p.U32.pack(0xFFFFFFFF) + p.U32.pack(2) + b"x:",
        p.U32.pack(1) + b"a" + p.U32.pack(1) + p.U32.pack(0x7FFFFFFF),
        p.U32.pack(1) + b"a" + p.U32.pack(0) + b"x",
    ],
)
def test_bad_queries(server: Server, body: bytes) -> None:
    replies, _end = raw(server, (p.OPT_STRUCTURED_REPLY, b""), (p.OPT_SET_META_CONTEXT, body))
    assert replies[1][:2] == (p.OPT_SET_META_CONTEXT, p.REP_ERR_INVALID)


def test_a_query_too_long_to_mean_anything_is_not_the_query_for_everything(server: Server) -> None:
    query = p.U32.pack(5000) + b"x" * 5000
    replies, _end = raw(server, (p.OPT_LIST_META_CONTEXT, p.U32.pack(1) + b"a" + p.U32.pack(1) + query))
    assert [kind for _, kind, _ in replies] == [p.REP_ACK]


def test_a_description_is_told_without_being_asked_for(server: Server) -> None:
    replies, _end = raw(server, (p.OPT_INFO, p.U32.pack(1) + b"a" + b"\0\0"))
    assert p.U16.pack(p.INFO_DESCRIPTION) + b"about a" in [body for _, _, body in replies]


def test_block_sizes_have_to_be_asked_for(server: Server) -> None:
    ask = p.U32.pack(3) + b"big"
    replies, end = raw(
        server,
        (p.OPT_INFO, ask + b"\0\0"),
        (p.OPT_INFO, ask + b"\0\1\0\3"),
        (p.OPT_GO, ask + b"\0\0"),
    )
    sizes = [p.INFO_BLOCK_SIZE_BODY.unpack(body)[1] for _, kind, body in replies if body[:2] == b"\0\3"]
    assert sizes == [512, 512, 1]  # who goes without asking may send anything
    assert [kind for _, kind, _ in replies if kind != p.REP_INFO] == [p.REP_ERR_BLOCK_SIZE_REQD, p.REP_ACK, p.REP_ACK]
    assert isinstance(end, Entered)


@pytest.mark.parametrize(
    "data",
    [
        p.CLIENT_FLAGS.pack(4),
        p.CLIENT_FLAGS.pack(3) + b"GET / HTTP/1.1\r\n\r\n",
        p.CLIENT_FLAGS.pack(3) + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, 4) + b"nope",
        p.CLIENT_FLAGS.pack(3) + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_EXPORT_NAME, 5000) + bytes(5000),
        p.CLIENT_FLAGS.pack(3) + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_INFO, 0xFFFFFFFF),
        p.CLIENT_FLAGS.pack(3) + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_INFO, 100),
        b"",
    ],
)
def test_hopeless_clients_are_dropped(server: Server, data: bytes) -> None:
    server.client_end.sendall(data)
    server.client_end.shutdown(socket.SHUT_WR)
    assert isinstance(server.ended(), QobraError)


@given(st.lists(st.one_of(st.binary(max_size=40), st.tuples(st.integers(0, 12), st.binary(max_size=60))), max_size=6))
def test_any_client_ends(messages: list[Any]) -> None:
    server = Server()
    server.client_end.sendall(p.CLIENT_FLAGS.pack(3))
    try:
        for each in messages:
            if isinstance(each, tuple):
                server.client_end.sendall(p.OPTION.pack(p.OPTION_MAGIC, each[0], len(each[1])) + each[1])
            else:
                server.client_end.sendall(each)
    except OSError:
        pass  # dropped already
    server.client_end.shutdown(socket.SHUT_WR)
    server.close()


def test_tls_is_mandatory_where_there_is_any(certificates: Path, server_context: ssl.SSLContext) -> None:
    server = Server(tls=server_context, authorize=lambda transport: transport.peer_certificate() is not None)
    handshake = server.handshake()
    assert not handshake.request_structured_replies()
    with pytest.raises(OptionRefused) as caught:
        handshake.info("a")
    assert caught.value.reply == p.REP_ERR_TLS_REQD
    with pytest.raises(OptionRefused, match="TLS"):
        handshake.list_exports()
    handshake.start_tls(client_context(str(certificates)), "localhost")
    assert handshake.transport.tls
    with pytest.raises(OptionRefused, match="already enabled"):
        handshake.start_tls(client_context(str(certificates)), "localhost")
    assert handshake.request_structured_replies()
    assert handshake.go("a").size == 1 << 30
    entered = server.ended()
    assert isinstance(entered, Entered) and entered.transport.tls
    server.close()


def test_export_name_before_tls(server_context: ssl.SSLContext) -> None:
    server = Server(tls=server_context)
    _replies, end = raw(server, (p.OPT_EXPORT_NAME, b"a"))
    assert isinstance(end, QobraError) and "not permitted before TLS" in end.desc
    server.close()


def test_refused_by_authorization(certificates: Path, server_context: ssl.SSLContext) -> None:
    server = Server(tls=server_context, authorize=lambda transport: False)
    handshake = server.handshake()
    handshake.start_tls(client_context(str(certificates)), "localhost")
    with pytest.raises(QobraError):
        handshake.go("a")
    end = server.ended()
    assert isinstance(end, QobraError) and "authz" in end.desc
    server.close()


@pytest.mark.parametrize("hostname", ["wrong.example", "127.0.0.1"])
def test_the_servers_name_is_checked(certificates: Path, server_context: ssl.SSLContext, hostname: str) -> None:
    server = Server(tls=server_context)
    handshake = server.handshake()
    with pytest.raises(QobraError, match="does not match the hostname"):
        handshake.start_tls(client_context(str(certificates)), hostname)
    server.close()
