"""How VNC clients are let in: TLS, WebSockets, SASL; and what becomes of those that do not keep to it."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from qobra.crypto.sasl import SaslServer
from qobra.display.vnc.options import addresses, web_addresses
from qobra.errors import QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.testing.vnc import VncTestClient
from qobra.testing.waiting import wait_until


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = simple_machine("x86_64", "none", memory=0)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca-cert.pem"))
    for name in ("server", "client"):
        certificate = authority.issue_cert("127.0.0.1", common_name=name)
        certificate.private_key_pem.write_to_path(str(tmp_path / f"{name}-key.pem"))
        certificate.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / f"{name}.pem"))
        certificate.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}-cert.pem"))
    common = {"dir": str(tmp_path), "endpoint": "server", "sanity-check": False}
    with machine.control:
        machine.objects.create("tls-creds-x509", "open", common | {"verify-peer": False})
        machine.objects.create("tls-creds-x509", "known", common)
        machine.objects.create("tls-creds-anon", "anon", {"endpoint": "server"})
        machine.objects.create("tls-creds-anon", "client", {"endpoint": "client"})
        machine.objects.create("authz-simple", "nobody", {"identity": "nobody"})
        machine.objects.create("secret", "word", {"data": "abc"})
    yield machine
    machine.close()


def _open(machine: Machine, tmp_path: Path, **options: Any) -> Path:
    with machine.control:
        machine.vnc.open({"vnc": f"unix:{tmp_path}/vnc", **options})
    return tmp_path / "vnc"


def _listen(machine: Machine, **options: Any) -> dict[bool, tuple[str, int]]:
    """Addresses by whether they are those of WebSockets; on ports that are free."""
    with machine.control:
        machine.vnc.open({"vnc": "127.0.0.1:20000", "to": 30000, **options})
        servers = next(iter(machine.vnc)).servers()
    return {each["websocket"]: (each["host"], int(each["service"])) for each in servers}


def _call(machine: Machine, command: str, **arguments: Any) -> Any:
    with machine.control:
        return dispatch.call(machine, command, arguments)


def test_tls_and_a_password(machine: Machine, tmp_path: Path) -> None:
    client = VncTestClient(_open(machine, tmp_path, **{"tls-creds": "open", "password-secret": "word"}))
    client.vencrypt(261)
    client.tls(tmp_path / "ca-cert.pem")
    client.answer(b"abc")
    assert client.read(4) == bytes(4)
    client.begin()
    client.ask()
    assert client.update()[0][0] == (0, 0, 640, 480)
    assert _call(machine, "query-vnc")["auth"] == "vencrypt+x509+vnc"
    _call(machine, "change-vnc-password", password="other")


def test_a_certificate_names_the_client(machine: Machine, tmp_path: Path) -> None:
    client = VncTestClient(_open(machine, tmp_path, **{"tls-creds": "known"}))
    client.vencrypt(260)
    client.tls(tmp_path / "ca-cert.pem", tmp_path / "client.pem")
    assert client.read(4) == bytes(4)
    client.begin()
    wait_until(lambda: "CN=client" in _call(machine, "query-vnc")["clients"][0].get("x509_dname", ""))


@pytest.mark.parametrize(("authz", "certificate"), [("nobody", True), ("missing", True), (None, False)])
def test_who_may_not_come_in(machine: Machine, tmp_path: Path, authz: str | None, certificate: bool) -> None:
    options = {"tls-creds": "known"} | ({"tls-authz": authz} if authz else {})
    client = VncTestClient(_open(machine, tmp_path, **options))
    client.vencrypt(260)
    try:
        client.tls(tmp_path / "ca-cert.pem", tmp_path / "client.pem" if certificate else None)
        assert client.ends()
    except OSError:
        pass
    wait_until(lambda: _call(machine, "query-vnc")["clients"] == [])


def test_what_is_not_offered_is_refused(machine: Machine, tmp_path: Path) -> None:
    path = _open(machine, tmp_path, **{"tls-creds": "anon"})
    client = VncTestClient(path)
    assert client.read(12)
    client.send(b"RFB 003.003\n")
    assert client.read(4) == bytes(4) and client.ends()
    client = VncTestClient(path)
    client.greet(19)
    client.read(2)
    client.send(b"\0\1")
    assert client.read(1) == b"\1" and client.ends()
    client = VncTestClient(path)
    client.greet(19)
    client.read(2)
    client.send(b"\0\2")
    client.read(6)
    client.send((260).to_bytes(4, "big"))
    assert client.read(1) == b"\0" and client.ends()


def test_what_came_before_tls_is_no_part_of_what_is_inside(machine: Machine, tmp_path: Path) -> None:
    client = VncTestClient(_open(machine, tmp_path, **{"tls-creds": "anon"}))
    client.greet(19)
    client.read(2)
    # All in one piece: what somebody in between put in behind the choice is taken for TLS, which it is not.
    client.send(b"\0\2" + (257).to_bytes(4, "big") + b"\1\3\0\0\0")
    assert client.read(7) == b"\0\1\0\0\1\1\1"
    assert client.ends()


@pytest.mark.parametrize("secure", [False, True])
def test_websockets(machine: Machine, tmp_path: Path, secure: bool) -> None:
    options = {"tls-creds": "known"} if secure else {}
    where = _listen(machine, **{"websocket": "on", "password-secret": "word", **options})
    client = VncTestClient(where[True])
    if secure:
        client.tls(tmp_path / "ca-cert.pem", tmp_path / "client.pem")
    client.websocket()
    client.greet(2)
    client.answer(b"abc")
    assert client.read(4) == bytes(4)
    client.begin()
    client.ask()
    assert client.update()[0][0] == (0, 0, 640, 480)
    wait_until(lambda: _call(machine, "query-vnc")["clients"][0]["websocket"])
    assert ("x509_dname" in _call(machine, "query-vnc")["clients"][0]) is secure
    servers = _call(machine, "query-vnc-servers")[0]["server"]
    assert [each["auth"] for each in servers] == ["vnc", "vencrypt" if secure else "vnc"]
    text = _call(machine, "human-monitor-command", **{"command-line": "info vnc"})
    assert "(ipv4 (Websocket))" in text and f"Sub: {'x509-vnc' if secure else 'none'}" in text


@pytest.mark.parametrize(
    ("where", "options", "expected"),
    [
        ("1.2.3.4:7", {"websocket": "on"}, {"host": "1.2.3.4", "port": "5707"}),
        ("1.2.3.4:7", {"websocket": "on", "to": 9}, {"host": "1.2.3.4", "port": "5707", "to": 5709}),
        ("1.2.3.4:7", {"websocket": "5999"}, {"host": "1.2.3.4", "port": "5999"}),
        (":7", {"websocket": "[::1]:80", "ipv6": True}, {"host": "::1", "port": "80", "ipv6": True}),
        ("unix:/x", {"websocket": "on"}, {"host": "", "port": "5700"}),
    ],
)
def test_where_websockets_are_taken(where: str, options: dict[str, Any], expected: dict[str, Any]) -> None:
    options = {"vnc": where, **options}
    assert web_addresses(options, addresses(options)) == {"type": "inet", "data": expected}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tls-creds": "none"}, "No TLS credentials with id 'none'"),
        ({"tls-creds": "word"}, "Object with id 'word' is not TLS credentials"),
        ({"tls-creds": "client"}, "Expected TLS credentials for a server endpoint"),
        ({"tls-authz": "nobody"}, "'tls-authz' provided but TLS is not enabled"),
        ({"sasl-authz": "nobody"}, "'sasl-authz' provided but SASL auth is not enabled"),
        ({"websocket": "x"}, "address resolution failed for 127.0.0.1:x: it is no port"),
        ({"websocket": "70000"}, "port 70000 out of range"),
        ({"websocket": "unix:/x"}, "UNIX sockets not supported with websock"),
        ({"websocket": "on", "reverse": True}, "Cannot use websockets in reverse mode"),
    ],
)
def test_refusals(machine: Machine, options: dict[str, Any], complaint: str) -> None:
    with machine.control, pytest.raises(QobraError) as caught:
        machine.vnc.open({"vnc": "127.0.0.1:9", **options})
    assert caught.value.desc == complaint
    assert _call(machine, "query-vnc-servers") == []


def test_sasl_without_a_name(machine: Machine, tmp_path: Path) -> None:
    try:
        ctypes.CDLL("libsasl2.so.2")
    except OSError:
        pytest.skip("libsasl2 is not installed")
    path = _open(machine, tmp_path, sasl=True)
    client = VncTestClient(path)
    client.greet(20)
    if "PLAIN" not in client.read(int.from_bytes(client.read(4), "big")).decode():
        pytest.skip("libsasl2 has no mechanism PLAIN")
    client.close()
    for words in (b"\0\0\0\0", b"\0\0\0\x03FOO\0\0\0\0", b"\0\0\0\x65" + bytes(0x65), b"\0\0\0\5PLAIN\xff\xff\xff\xff"):
        client = VncTestClient(path)
        client.greet(20)
        assert "PLAIN" in client.read(int.from_bytes(client.read(4), "big")).decode()
        client.send(words)
        assert client.ends()
    client = VncTestClient(path)
    client.greet(20)
    with pytest.raises(PermissionError):
        client.sasl("PLAIN", "fred", "wrong")
    wait_until(lambda: _call(machine, "query-vnc")["clients"] == [])


class _Endless:
    """A mechanism that never has heard enough."""

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        self.steps = 0

    def mechanisms(self) -> list[str]:
        return ["ENDLESS"]

    def start(self, _mechanism: str, _data: bytes | None) -> tuple[bytes | None, bool]:
        return b"more", False

    def step(self, _data: bytes | None) -> tuple[bytes | None, bool]:
        return b"more", False

    def close(self) -> None:
        pass


def test_sasl_does_not_go_on_for_ever(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qobra.crypto.sasl.require", lambda: None)
    monkeypatch.setattr("qobra.display.vnc.sasl.SaslServer", _Endless)
    client = VncTestClient(_open(machine, tmp_path, sasl=True))
    client.greet(20)
    client.send(b"\0\0\0\x07ENDLESS" + bytes(4) * 34)
    got = client.read(11) + client.read(33 * (4 + 5 + 1))
    assert got.count(b"more\0") == 33
    assert client.ends()


def test_sasl_pieces_are_not_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    server = SaslServer.__new__(SaslServer)
    server._protected = False
    size = [100]
    monkeypatch.setattr(server, "_number", lambda _name: size[0])
    with pytest.raises(QobraError, match="SASL: the client takes too little at a time"):
        server.layer()
    size[0] = 256
    assert server.layer() is not None


@pytest.mark.parametrize("creds", ["open", "anon"])
@pytest.mark.parametrize("web", [False, True])
def test_nonsense(machine: Machine, tmp_path: Path, creds: str, web: bool) -> None:
    where = _listen(machine, **{"tls-creds": creds, "websocket": "on"})
    chance = random.Random(11)
    for turn in range(24):
        client = VncTestClient(where[web])
        try:
            if web and turn % 3:
                client.tls(tmp_path / "ca-cert.pem" if creds == "open" else None)
                if turn % 3 > 1:
                    client.websocket()
            elif turn % 3:
                client.vencrypt(260 if creds == "open" else 257)
                if turn % 3 > 1:
                    client.tls(tmp_path / "ca-cert.pem" if creds == "open" else None)
            client.sock.sendall(chance.randbytes(chance.randrange(1, 3000)))
        except OSError:
            pass
        client.close()
    wait_until(lambda: _call(machine, "query-vnc")["clients"] == [])
