"""Byte streams, plain and encrypted."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from qobra.errors import QobraError
from qobra.nbd.tls import client_context
from qobra.nbd.transport import Disconnected, TlsTransport, Transport, _reason

Pair = tuple[Transport, Transport]


@pytest.fixture(params=["plain", "tls"])
def pair(request: pytest.FixtureRequest, certificates: Path, server_context: ssl.SSLContext) -> Pair:
    left, right = socket.socketpair()
    if request.param == "plain":
        return Transport(left), Transport(right)
    ours: list[TlsTransport] = []
    thread = threading.Thread(target=lambda: ours.append(Transport(left).start_tls(server_context, server_side=True)))
    thread.start()
    client = Transport(right).start_tls(client_context(str(certificates)), server_side=False, hostname="localhost")
    thread.join(20)
    return ours[0], client


def test_both_directions_at_once(pair: Pair) -> None:
    """More than any buffer holds, each way, with readers and writers in four threads."""
    source = random.Random(5)
    content = [source.randbytes(3 << 20) for _ in range(2)]
    got: list[bytes | None] = [None, None]

    def write(number: int) -> None:
        data = memoryview(content[number])
        pair[number].send([data[:100], data[100 : 1 << 20], b"", data[1 << 20 :]])

    def read(number: int) -> None:
        got[number] = pair[1 - number].recv_exact(3 << 20)

    threads = [threading.Thread(target=each, args=(number,)) for number in (0, 1) for each in (read, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == content


def test_many_parts(pair: Pair) -> None:
    parts = [bytes([number % 256]) * 3 for number in range(3000)]
    pair[0].timeout = 20
    pair[0].send(parts)
    assert pair[1].recv_exact(9000) == b"".join(parts)


def test_the_end(pair: Pair) -> None:
    pair[0].send([b"abc"])
    pair[0].shutdown()
    with pytest.raises(Disconnected):
        pair[1].recv_exact(4)
    pair[0].close()


def test_timeout(pair: Pair) -> None:
    pair[0].timeout = 0.02
    with pytest.raises(QobraError, match="in time"):
        pair[0].recv_exact(1)


def test_sending_to_nobody_who_reads_times_out(pair: Pair) -> None:
    pair[0].timeout = 0.02
    with pytest.raises(QobraError):
        for _ in range(100):
            pair[0].send([bytes(1 << 20)])


def test_has_buffered(pair: Pair) -> None:
    pair[0].send([b"abcdef"])
    assert pair[1].recv_exact(3) == b"abc"
    assert pair[1].has_buffered() == pair[1].tls  # what TLS has decrypted, poll does not see
    assert pair[1].recv_exact(3) == b"def"
    assert not pair[1].has_buffered()


def test_tampering_is_noticed(certificates: Path, server_context: ssl.SSLContext) -> None:
    left, right = socket.socketpair()
    accepted: list[TlsTransport] = []
    thread = threading.Thread(
        target=lambda: accepted.append(Transport(left).start_tls(server_context, server_side=True))
    )
    thread.start()
    client = Transport(right).start_tls(client_context(str(certificates)), server_side=False, hostname="localhost")
    thread.join(20)
    left.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(QobraError):
        client.recv_exact(1)


def test_an_end_that_the_peer_did_not_announce_is_told_apart(
    certificates: Path, server_context: ssl.SSLContext
) -> None:
    left, right = socket.socketpair()
    thread = threading.Thread(target=lambda: Transport(left).start_tls(server_context, server_side=True))
    thread.start()
    client = Transport(right).start_tls(client_context(str(certificates)), server_side=False, hostname="localhost")
    thread.join(20)
    left.close()
    with pytest.raises(Disconnected, match="^Cannot read from TLS channel: Software caused connection abort$"):
        client.recv_exact(1)


def test_reasons_of_openssl_are_told_without_its_callers() -> None:
    error = ssl.SSLError(1, "[SSL] tlsv1 alert unknown psk identity (_ssl.c:1006)")
    error.reason = None  # type: ignore[assignment]  # one that Python has no name for
    assert _reason(error) == "tlsv1 alert unknown psk identity"


def test_certificates_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(QobraError, match="Unable to load TLS certificates"):
        client_context(str(tmp_path))
    assert client_context(str(tmp_path), verify=False).verify_mode == ssl.CERT_NONE


def test_pre_shared_keys_need_a_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys.psk"
    keys.write_text("bob:0102\n")
    with pytest.raises(QobraError, match="No key for user"):
        client_context(psk_file=str(keys), username="alice")


def test_what_is_long_is_encrypted_bit_by_bit(
    certificates: Path, server_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the peer decrypts in the meantime, and ciphertext takes up little memory."""
    left, right = socket.socketpair()
    ours: list[TlsTransport] = []
    thread = threading.Thread(target=lambda: ours.append(Transport(left).start_tls(server_context, server_side=True)))
    thread.start()
    client = Transport(right).start_tls(client_context(str(certificates)), server_side=False, hostname="localhost")
    thread.join(20)
    sizes: list[int] = []

    def encode(parts: Sequence[bytes | bytearray | memoryview]) -> list[memoryview]:
        sizes.append(sum(map(len, parts)))
        return TlsTransport.encode(ours[0], parts)

    monkeypatch.setattr("qobra.nbd.transport._TLS_SEND", 1000)
    monkeypatch.setattr(ours[0], "encode", encode)
    data = random.Random(6).randbytes(4500)
    ours[0].send([data[:700], data[700:1000], b"", data[1000:3300], data[3300:]])
    assert client.recv_exact(len(data)) == data
    assert sizes == [1000, 1000, 1000, 1000, 500]
