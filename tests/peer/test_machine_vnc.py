"""VNC's security on QEMU's program and ours: the same clients come in, and the same is told of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from qobra.testing.system import SystemProgram, peer_available
from qobra.testing.vnc import VncTestClient

pytestmark = pytest.mark.skipif(not peer_available("x86_64"), reason="qemu-system-x86_64 is not installed")

_SASLDB = "saslpasswd2"
Talk = Callable[[VncTestClient, Path], None]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates, and where it can be made the users of SASL."""
    directory = tmp_path_factory.mktemp("keys")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca-cert.pem"))
    for name in ("server", "client"):
        certificate = authority.issue_cert("127.0.0.1", common_name=name)
        certificate.private_key_pem.write_to_path(str(directory / f"{name}-key.pem"))
        certificate.private_key_and_cert_chain_pem.write_to_path(str(directory / f"{name}.pem"))
        certificate.cert_chain_pems[0].write_to_path(str(directory / f"{name}-cert.pem"))
    conf = f"mech_list: plain digest-md5 scram-sha-256\nsasldb_path: {directory}/users\npwcheck_method: auxprop\n"
    (directory / "qemu.conf").write_text(conf + "auxprop_plugin: sasldb\n")
    if shutil.which(_SASLDB):
        words = [_SASLDB, "-p", "-c", "-f", str(directory / "users"), "fred"]
        subprocess.run(words, input=b"sekret", check=True)
    return directory


def _none(client: VncTestClient, keys: Path) -> None:
    client.greet(1)


def _x509(kind: int, certificate: str | None = None) -> Talk:
    def talk(client: VncTestClient, keys: Path) -> None:
        client.vencrypt(kind)
        client.tls(keys / "ca-cert.pem", keys / certificate if certificate else None)

    return talk


def _anonymous(kind: int) -> Talk:
    def talk(client: VncTestClient, keys: Path) -> None:
        client.vencrypt(kind)
        client.tls(None)

    return talk


def _password(word: bytes, before: Talk) -> Talk:
    def talk(client: VncTestClient, keys: Path) -> None:
        before(client, keys)
        client.answer(word)

    return talk


def _web(before: Talk | None, kind: int) -> Talk:
    def talk(client: VncTestClient, keys: Path) -> None:
        if before is not None:
            before(client, keys)
        client.websocket()
        client.greet(kind)

    return talk


def _tls(client: VncTestClient, keys: Path) -> None:
    client.tls(keys / "ca-cert.pem", keys / "client.pem")


def _sasl(mechanism: str, before: Talk, password: str = "sekret", *, protected: bool = True) -> Talk:
    def talk(client: VncTestClient, keys: Path) -> None:
        before(client, keys)
        client.sasl(mechanism, "fred", password, protected=protected)

    return talk


def _vnc(client: VncTestClient, keys: Path) -> None:
    client.greet(2)


def _plain_sasl(client: VncTestClient, keys: Path) -> None:
    client.greet(20)


_CASES: dict[str, tuple[str, Talk]] = {
    "nothing": ("share=ignore", _none),
    "password": ("password-secret=s", _password(b"abc", _vnc)),
    "wrong-password": ("password-secret=s", _password(b"abd", _vnc)),
    "x509-none": ("tls-creds=x", _x509(260)),
    "x509-none-of-a-name": ("tls-creds=v", _x509(260, "client.pem")),
    "x509-none-without-a-name": ("tls-creds=v", _x509(260)),
    "x509-allowed": ("tls-creds=v,tls-authz=y", _x509(260, "client.pem")),
    "x509-forbidden": ("tls-creds=v,tls-authz=n", _x509(260, "client.pem")),
    "x509-authz-missing": ("tls-creds=v,tls-authz=zz", _x509(260, "client.pem")),
    "x509-vnc": ("tls-creds=x,password-secret=s", _password(b"abc", _x509(261))),
    "x509-vnc-wrong": ("tls-creds=x,password-secret=s", _password(b"", _x509(261))),
    "tls-none": ("tls-creds=a", _anonymous(257)),
    "tls-vnc": ("tls-creds=a,password-secret=s", _password(b"abc", _anonymous(258))),
    "websocket": ("websocket=on", _web(None, 1)),
    "websocket-password": ("websocket=on,password-secret=s", _password(b"abc", _web(None, 2))),
    "websocket-tls": ("websocket=on,tls-creds=v,tls-authz=y", _web(_tls, 1)),
    "websocket-tls-forbidden": ("websocket=on,tls-creds=v,tls-authz=n", _web(_tls, 1)),
    "sasl-digest": ("sasl=on", _sasl("DIGEST-MD5", _plain_sasl, protected=False)),
    "sasl-digest-wrong": ("sasl=on", _sasl("DIGEST-MD5", _plain_sasl, "secret", protected=False)),
    "sasl-x509-plain": ("sasl=on,tls-creds=x", _sasl("PLAIN", _x509(263))),
    "sasl-x509-plain-wrong": ("sasl=on,tls-creds=x", _sasl("PLAIN", _x509(263), "x")),
    "sasl-x509-scram": ("sasl=on,tls-creds=v", _sasl("SCRAM-SHA-256", _x509(263, "client.pem"))),
    "sasl-tls-digest": ("sasl=on,tls-creds=a", _sasl("DIGEST-MD5", _anonymous(264), protected=False)),
    "sasl-allowed": ("sasl=on,sasl-authz=u,tls-creds=x", _sasl("PLAIN", _x509(263))),
    "sasl-forbidden": ("sasl=on,sasl-authz=n,tls-creds=x", _sasl("PLAIN", _x509(263))),
    "sasl-websocket": (  # where QEMU forgets that TLS is outside
        "sasl=on,websocket=on,tls-creds=x",
        _sasl("PLAIN", _web(_tls, 20)),
    ),
}


def _come_in(name: str, program: SystemProgram, keys: Path) -> list[Any]:
    """What became of a client, and what QMP says of it."""
    listed = program.qmp("query-vnc-servers")
    web = "websocket" in name
    port = next(int(each["service"]) for each in listed[0]["server"] if each["websocket"] is web)
    client = VncTestClient(("127.0.0.1", port))
    inside = False
    found: list[Any] = []
    try:
        _CASES[name][1](client, keys)
        if "sasl" not in name:
            assert client.read(4) == bytes(4)
        found.append(client.begin())
        client.ask(area=(0, 0, 8, 8))
        assert client.update()
        inside = True
    except (EOFError, OSError, PermissionError, AssertionError) as error:
        found.append("refused" if isinstance(error, OSError | EOFError) else type(error).__name__)
    events = [program.wait_event("VNC_CONNECTED")]
    if inside:
        events.append(program.wait_event("VNC_INITIALIZED"))
        found.append([program.qmp("query-vnc"), program.qmp("query-vnc-servers")])
        found.append(program.qmp("human-monitor-command", {"command-line": "info vnc"}))
    own = client.sock.getsockname()[1]
    client.close()
    events.append(program.wait_event("VNC_DISCONNECTED"))
    text = json.dumps([found, [(each["event"], each["data"]) for each in events]], sort_keys=True)
    plain = next(each["service"] for each in listed[0]["server"] if not each["websocket"])
    for number, word in ((own, "CLIENT"), (port, "SERVER"), (plain, "PLAIN")):
        text = text.replace(str(number), word)
    return [inside, *json.loads(text)]


@pytest.mark.parametrize("name", _CASES)
def test_clients_come_in_and_are_told_of(
    name: str, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sasl" in name and not (keys / "users").exists():
        pytest.skip(f"{_SASLDB} is not installed")
    monkeypatch.setenv("SASL_CONF_PATH", str(keys))
    options = _CASES[name][0]
    common = f"tls-creds-x509,dir={keys},endpoint=server"
    objects = [
        f"{common},id=x,verify-peer=off", f"{common},id=v", "tls-creds-anon,id=a,endpoint=server",
        "secret,id=s,data=abc", "authz-simple,id=n,identity=nobody", "authz-simple,id=u,identity=fred",
        '{"qom-type":"authz-list","id":"y","rules":[{"match":"*CN=client","policy":"allow","format":"glob"}]}',
    ]  # fmt: skip
    arguments = ["-machine", "none", *(word for each in objects for word in ("-object", each))]
    answers = []
    for peer in (False, True):
        # One display each, as they may not wait for each other's ports; far from what people use.
        display = 300 + 2 * list(_CASES).index(name) + peer
        with SystemProgram(tmp_path, "x86_64", *arguments, "-vnc", f"127.0.0.1:{display},{options}", peer=peer) as each:
            answers.append(_come_in(name, each, keys))
    if name != "sasl-websocket":
        assert answers[0] == answers[1]
    assert answers[0][0] is not any(word in name for word in ("wrong", "forbidden", "missing", "without"))
