"""TLS between us and GnuTLS: qemu, libnbd; certificates, pre-shared keys, authorization."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.machine import Machine
from qobra.nbd import connect
from qobra.nbd.tls import client_context

MIB = 1 << 20
KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What certtool would make: an authority, a server's and a client's certificate, and a key file."""
    import trustme

    directory = tmp_path_factory.mktemp("pki")
    authority = trustme.CA(organization_name="Qobra", organization_unit_name="Tests")
    authority.cert_pem.write_to_path(directory / "ca-cert.pem")
    for role, names in (("server", ["localhost", "127.0.0.1"]), ("client", ["client.example"])):
        issued = authority.issue_cert(
            *names, common_name=names[0], organization_name="Qobra", organization_unit_name="Clients"
        )
        issued.private_key_pem.write_to_path(directory / f"{role}-key.pem")
        for index, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(directory / f"{role}-cert.pem", append=index > 0)
    (directory / "keys.psk").write_text(f"alice:{KEY}\nbob:ffff\n")
    return directory


class Served:
    """A machine that exports ``disk`` with TLS."""

    def __init__(self, directory: Path, creds: dict[str, Any], **options: Any) -> None:
        self.socket = str(directory / "tls.sock")
        raw = directory / "raw.img"
        raw.touch()
        os.truncate(raw, MIB)
        self.machine = Machine()
        with self.machine.control:
            self.machine.objects.create(creds.pop("qom-type"), "tls", creds)
            block = self.machine.block
            block.add_node({"driver": "raw", "node-name": "disk", "file": {"driver": "file", "filename": str(raw)}})
            for name, properties in options.pop("objects", {}).items():
                self.machine.objects.create(properties.pop("qom-type"), name, properties)
            block.exports.start_nbd_server({"type": "unix", "path": self.socket}, tls_creds="tls", **options)
            block.exports.add({"type": "nbd", "id": "disk", "node-name": "disk", "writable": True})

    def uri(self, query: str = "", user: str = "") -> str:
        return f"nbds+unix://{user}/disk?socket={self.socket}{query}"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(creds: dict[str, Any], **options: Any) -> Served:
        made.append(Served(tmp_path, creds, **options))
        return made[-1]

    yield start
    for each in made:
        each.machine.close()


def x509(pki: Path, endpoint: str = "server", **more: Any) -> dict[str, Any]:
    return {"qom-type": "tls-creds-x509", "dir": str(pki), "endpoint": endpoint, **more}


def psk(pki: Path, **more: Any) -> dict[str, Any]:
    return {"qom-type": "tls-creds-psk", "dir": str(pki), "endpoint": "server", **more}


def run(*command: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=100)


@pytest.mark.peer("nbdinfo")
def test_nbdinfo_with_certificates(serve: Any, pki: Path) -> None:
    served = serve(x509(pki))
    done = run("nbdinfo", served.uri(f"&tls-certificates={pki}"))
    assert done.returncode == 0, done.stderr
    assert "newstyle-fixed with TLS" in done.stdout
    plain = run("nbdinfo", served.uri().replace("nbds", "nbd"))
    assert plain.returncode != 0  # TLS is not optional


@pytest.mark.peer("nbdcopy")
def test_nbdcopy_through_tls(serve: Any, pki: Path, tmp_path: Path) -> None:
    served = serve(x509(pki))
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(MIB))
    uri = served.uri(f"&tls-certificates={pki}")
    assert run("nbdcopy", source, uri).returncode == 0
    assert run("nbdcopy", uri, target).returncode == 0
    assert source.read_bytes() == target.read_bytes()


@pytest.mark.peer("qemu-img")
def test_qemu_img_as_client(serve: Any, pki: Path) -> None:
    served = serve(x509(pki))
    where = f"driver=nbd,export=disk,server.type=unix,server.path={served.socket},tls-creds=t,tls-hostname=localhost"
    creds = f"tls-creds-x509,id=t,dir={pki},endpoint=client"
    done = run("qemu-img", "info", "--object", creds, "--image-opts", where)
    assert done.returncode == 0 and "1 MiB" in done.stdout, done.stderr


@pytest.mark.peer("nbdinfo")
def test_pre_shared_keys(serve: Any, pki: Path) -> None:
    served = serve(psk(pki))
    good = run("nbdinfo", served.uri(f"&tls-psk-file={pki}/keys.psk", "alice@"))
    assert good.returncode == 0 and "with TLS" in good.stdout, good.stderr
    wrong = pki / "wrong.psk"
    wrong.write_text("alice:00000000000000000000000000000000\n")
    assert run("nbdinfo", served.uri(f"&tls-psk-file={wrong}", "alice@")).returncode != 0


def test_our_client_with_pre_shared_keys(serve: Any, pki: Path) -> None:
    served = serve(psk(pki))
    uri = served.uri(f"&tls-psk-file={pki}/keys.psk", "alice@")
    with connect(uri) as client:
        assert client.tls and client.pread(4, 0) == bytes(4)
    (pki / "wrong.psk").write_text("alice:00000000000000000000000000000000\n")
    with pytest.raises(QobraError):
        connect(served.uri(f"&tls-psk-file={pki}/wrong.psk", "alice@"))
    with pytest.raises(QobraError, match="No key for user 'carol'"):
        connect(served.uri(f"&tls-psk-file={pki}/keys.psk", "carol@"))


def test_our_client_with_certificates(serve: Any, pki: Path, tmp_path: Path) -> None:
    served = serve(x509(pki))
    with connect(served.uri(f"&tls-certificates={pki}")) as client:
        data = os.urandom(MIB)
        client.pwrite(data, 0)
        assert client.tls and client.pread(MIB, 0) == data
    with connect(served.uri(), tls=client_context(str(pki)), tls_hostname="127.0.0.1") as client:
        assert client.tls
    with pytest.raises(QobraError, match="does not match the hostname"):
        connect(served.uri(), tls=client_context(str(pki)), tls_hostname="elsewhere.example")
    (tmp_path / "ca-cert.pem").write_bytes((pki / "ca-cert.pem").read_bytes())
    with pytest.raises(QobraError):  # no certificate of its own: refused, at the latest when it wants something
        connect(served.uri(f"&tls-certificates={tmp_path}"))


def test_authorization(serve: Any, pki: Path) -> None:
    name = client_name(pki)
    served = serve(x509(pki), tls_authz="who", objects={"who": {"qom-type": "authz-simple", "identity": name}})
    uri = served.uri(f"&tls-certificates={pki}")
    connect(uri).close()
    with served.machine.control:
        served.machine.objects.delete("who")
    with pytest.raises(QobraError):
        connect(uri)  # looked up for each client: while it is missing, nobody comes in
    with served.machine.control:
        served.machine.objects.create("authz-simple", "who", {"identity": "CN=somebody else"})
    with pytest.raises(QobraError):
        connect(uri)


def client_name(pki: Path) -> str:
    """The client as authorization objects know it."""
    from qobra.crypto.identity import distinguished_name

    first = (pki / "client-cert.pem").read_text().split("-----END")[0]
    return distinguished_name(ssl.PEM_cert_to_DER_cert(first + "-----END CERTIFICATE-----\n"))


def accepts(path: str) -> bool:
    """Whether somebody listens on the unix socket ``path`` by now."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


@pytest.mark.peer("qemu-nbd")
@pytest.mark.parametrize("identity", ["right", "wrong"])
def test_our_idea_of_a_name_is_qemus(pki: Path, tmp_path: Path, identity: str) -> None:
    """qemu-nbd lets our client in exactly if authz-simple has the name that we would have worked out."""
    name = client_name(pki) if identity == "right" else "CN=nobody"
    path = tmp_path / "qemu.sock"
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(MIB))
    process = subprocess.Popen(
        [
            "qemu-nbd", "-t", "-f", "raw", "-k", path, "-x", "disk",
            "--object", f"tls-creds-x509,id=tls,dir={pki},endpoint=server",
            "--object", f"authz-simple,id=who,identity={name.replace(',', ',,')}",
            "--tls-creds", "tls", "--tls-authz", "who", raw,
        ]
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not accepts(str(path)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        uri = f"nbds+unix:///disk?socket={path}&tls-certificates={pki}"
        if identity == "right":
            with connect(uri) as client:
                assert client.tls and client.pread(4, 0) == bytes(4)
        else:
            with pytest.raises(QobraError):
                connect(uri)
    finally:
        process.terminate()
        process.wait(30)


def test_the_driver_with_tls(serve: Any, pki: Path) -> None:
    served = serve(x509(pki))
    machine = Machine()
    with machine.control:
        machine.objects.create("tls-creds-x509", "t", {"dir": str(pki), "endpoint": "client"})
        node = machine.block.add_node(
            {
                "driver": "nbd",
                "node-name": "n",
                "export": "disk",
                "server": {"type": "unix", "path": served.socket},
                "tls-creds": "t",
                "tls-hostname": "localhost",
            }
        )
        assert node.read(0, 100) == bytes(100)
        with pytest.raises(QobraError, match="in use"):
            machine.objects.delete("t")
        machine.block.delete_node("n")
        machine.objects.delete("t")
    machine.close()


def test_libnbd_through_tls(serve: Any, pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, "/usr/lib/python3/dist-packages"])
    nbd = pytest.importorskip("nbd", reason="python3-libnbd is not installed for this Python")
    served = serve(x509(pki))
    handle = nbd.NBD()
    handle.set_tls(nbd.TLS_REQUIRE)
    handle.set_tls_certificates(str(pki))
    handle.set_export_name("disk")
    handle.connect_unix(served.socket)
    data = os.urandom(300_000)
    handle.pwrite(data, 17)
    assert handle.pread(300_000, 17) == data
    handle.shutdown()
