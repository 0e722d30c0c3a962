"""A scripted NBD server at the other end of a pair of sockets, and certificates."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.nbd import protocol as p


class Script:
    """The server's end of a connection: reads what the client sends, sends what the test says."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(20)

    def recv(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.sock.recv(length - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def send(self, *parts: bytes) -> None:
        self.sock.sendall(b"".join(parts))

    def greet(self, flags: int = p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES) -> int:
        """Send the greeting; the client's flags."""
        self.send(p.GREETING.pack(p.INIT_MAGIC, p.OPTION_MAGIC, flags))
        return int(p.CLIENT_FLAGS.unpack(self.recv(4))[0])

    def option(self) -> tuple[int, bytes]:
        """The client's next option and its payload."""
        magic, option, length = p.OPTION.unpack(self.recv(p.OPTION.size))
        assert magic == p.OPTION_MAGIC
        return option, self.recv(length)

    def reply(self, option: int, kind: int, *parts: bytes) -> None:
        body = b"".join(parts)
        self.send(p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(body)), body)

    def shake(
        self,
        size: int = 1 << 20,
        flags: int = 0xFFF & ~p.FLAG_READ_ONLY,
        *,
        structured: bool = True,
        contexts: dict[int, str] | None = None,
        block_sizes: tuple[int, int, int] | None = None,
    ) -> None:
        """Do the whole handshake as a server of good manners."""
        self.greet()
        while True:
            option, _body = self.option()
            if option == p.OPT_STRUCTURED_REPLY:
                self.reply(option, p.REP_ACK if structured else p.REP_ERR_UNSUP)
            elif option == p.OPT_SET_META_CONTEXT:
                for number, name in (contexts or {}).items():
                    self.reply(option, p.REP_META_CONTEXT, p.U32.pack(number), name.encode())
                self.reply(option, p.REP_ACK)
            elif option == p.OPT_GO:
                if block_sizes:
                    self.reply(option, p.REP_INFO, p.INFO_BLOCK_SIZE_BODY.pack(p.INFO_BLOCK_SIZE, *block_sizes))
                self.reply(option, p.REP_INFO, p.INFO_EXPORT_BODY.pack(p.INFO_EXPORT, size, flags))
                self.reply(option, p.REP_ACK)
                return
            else:
                raise AssertionError(f"unexpected option {option}")

    def request(self) -> tuple[int, int, int, int, int]:
        """(command, flags, cookie, offset, length) of the next request."""
        magic, flags, command, cookie, offset, length = p.REQUEST.unpack(self.recv(p.REQUEST.size))
        assert magic == p.REQUEST_MAGIC
        return command, flags, cookie, offset, length

    def simple(self, cookie: int, error: int = 0, data: bytes = b"") -> None:
        self.send(p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, error, cookie), data)

    def chunk(self, cookie: int, kind: int, payload: bytes = b"", *, done: bool = True) -> None:
        self.send(p.CHUNK.pack(p.STRUCTURED_REPLY_MAGIC, int(done), kind, cookie, len(payload)), payload)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Script], Any]], socket.socket]]:
    """``serve(script)``: a connected socket; ``script`` runs in a thread at the other end, which is closed after it."""
    threads: list[tuple[threading.Thread, list[BaseException]]] = []

    def start(script: Callable[[Script], Any]) -> socket.socket:
        ours, theirs = socket.socketpair()
        failures: list[BaseException] = []

        def run() -> None:
            try:
                script(Script(theirs))
            except (EOFError, OSError):
                pass  # the client left
            except BaseException as error:
                failures.append(error)
            finally:
                theirs.close()

        thread = threading.Thread(target=run, daemon=True)
        threads.append((thread, failures))
        thread.start()
        return ours

    yield start
    for thread, failures in threads:
        thread.join(30)
        assert not thread.is_alive()
        if failures:
            raise failures[0]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem and client-key.pem."""
    import trustme

    directory = tmp_path_factory.mktemp("pki")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca-cert.pem")
    for role, name in (("server", "localhost"), ("client", "client.example")):
        issued = authority.issue_cert(name, common_name=name, organization_name="Qobra")
        issued.private_key_pem.write_to_path(directory / f"{role}-key.pem")
        for index, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(directory / f"{role}-cert.pem", append=index > 0)
    return directory


@pytest.fixture
def server_context(certificates: Path) -> ssl.SSLContext:
    """A server's TLS context that asks clients for a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")
    context.load_verify_locations(certificates / "ca-cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context
