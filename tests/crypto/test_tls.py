"""Credentials objects: handshakes between a server's and a client's context, and refusals before one is
tried.
"""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from qobra.errors import QobraError
from qobra.machine.machine import Machine


@pytest.fixture
def machine() -> Any:
    machine = Machine()
    yield machine
    machine.close()


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, hostname: str | None = None) -> ssl.SSLObject:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=hostname),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    ends[0].write(b"ping")
    assert ends[1].read(4) == b"ping"
    return ends[1]


def _pki(directory: Path, authority: trustme.CA, common_name: str = "localhost") -> None:
    directory.mkdir(exist_ok=True)
    certificate = authority.issue_cert(common_name)
    authority.cert_pem.write_to_path(str(directory / "ca-cert.pem"))
    for side in ("server", "client"):
        certificate.private_key_pem.write_to_path(str(directory / f"{side}-key.pem"))
        certificate.cert_chain_pems[0].write_to_path(str(directory / f"{side}-cert.pem"))


def test_x509_verifies_both_sides(machine: Machine, tmp_path: Path) -> None:
    authority = trustme.CA()
    _pki(tmp_path / "good", authority)
    _pki(tmp_path / "other", trustme.CA())
    server = machine.objects.create("tls-creds-x509", "s", {"dir": str(tmp_path / "good"), "endpoint": "server"})
    client = machine.objects.create("tls-creds-x509", "c", {"dir": str(tmp_path / "good")})
    stranger = machine.objects.create("tls-creds-x509", "x", {"dir": str(tmp_path / "other")})
    assert _handshake(server.server_context(), client.client_context(), "localhost").getpeercert()
    with pytest.raises(ssl.SSLError):
        _handshake(server.server_context(), stranger.client_context(), "localhost")
    with pytest.raises(QobraError, match="Expected TLS credentials for a server endpoint"):
        client.server_context()


def test_x509_opens_an_encrypted_key_with_a_secret(machine: Machine, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as ser

    _pki(tmp_path, trustme.CA())
    key_file = tmp_path / "server-key.pem"
    key = ser.load_pem_private_key(key_file.read_bytes(), None)
    key_file.write_bytes(
        key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.BestAvailableEncryption(b"let me in"))
    )
    machine.objects.create("secret", "pw", {"data": "let me in"})
    machine.objects.create("secret", "bad", {"data": "nope"})
    props = {"dir": str(tmp_path), "endpoint": "server"}
    assert machine.objects.create("tls-creds-x509", "s", props | {"passwordid": "pw"}).get("loaded") is True
    with pytest.raises(QobraError, match="Cannot load certificate"):
        machine.objects.create("tls-creds-x509", "t", props | {"passwordid": "bad"})


def test_x509_keys_that_only_sign(machine: Machine, tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    authority, name = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)]) for each in ("ca", "localhost"))
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    no = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    for file, subject, ca in (("ca-cert.pem", authority, True), ("server-cert.pem", name, False)):
        usage = x509.KeyUsage(digital_signature=True, key_cert_sign=ca, **no)
        builder = x509.CertificateBuilder(authority, subject, key.public_key(), 7, now, now + datetime.timedelta(1))
        builder = builder.add_extension(x509.BasicConstraints(ca, None), True).add_extension(usage, True)
        (tmp_path / file).write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "server-key.pem").write_bytes(secret)
    machine.objects.create("tls-creds-x509", "s", {"dir": str(tmp_path), "endpoint": "server"})


def test_x509_sanity_check_names_the_fault(machine: Machine, tmp_path: Path) -> None:
    authority = trustme.CA()
    _pki(tmp_path, authority)
    expired = authority.issue_cert(
        "localhost",
        not_before=datetime.datetime(2000, 1, 1),
        not_after=datetime.datetime(2001, 1, 1),
    )
    expired.cert_chain_pems[0].write_to_path(str(tmp_path / "server-cert.pem"))
    expired.private_key_pem.write_to_path(str(tmp_path / "server-key.pem"))
    props = {"dir": str(tmp_path), "endpoint": "server"}
    with pytest.raises(QobraError, match=r"The server certificate .*server-cert.pem has expired"):
        machine.objects.create("tls-creds-x509", "s", props)
    assert machine.objects.find("s") is None
    machine.objects.create("tls-creds-x509", "s", props | {"sanity-check": False})
    other = trustme.CA()
    other.cert_pem.write_to_path(str(tmp_path / "ca-cert.pem"))
    with pytest.raises(QobraError, match="failed validation against"):
        machine.objects.create("tls-creds-x509", "c", {"dir": str(tmp_path)})


def test_missing_directory_and_files(machine: Machine, tmp_path: Path) -> None:
    for kind in ("tls-creds-x509", "tls-creds-psk"):
        with pytest.raises(QobraError, match="Missing 'dir' property value"):
            machine.objects.create(kind, "t", {})
    with pytest.raises(QobraError, match=r"Unable to access credentials .*/ca-cert.pem: No such file"):
        machine.objects.create("tls-creds-x509", "t", {"dir": str(tmp_path)})


def test_psk_knows_its_users(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "keys.psk").write_text("qemu:00112233445566778899aabbccddeeff\nfred:0a0b0c0d0e0f\n")
    (tmp_path / "b" / "keys.psk").write_text("qemu:ffff2233445566778899aabbccddeeff\n")
    create = machine.objects.create
    server = create("tls-creds-psk", "s", {"dir": str(tmp_path / "a"), "endpoint": "server"})
    client = create("tls-creds-psk", "c", {"dir": str(tmp_path / "a"), "username": "fred"})
    impostor = create("tls-creds-psk", "i", {"dir": str(tmp_path / "b")})
    _handshake(server.server_context(), client.client_context())
    with pytest.raises(ssl.SSLError):
        _handshake(server.server_context(), impostor.client_context())
    with pytest.raises(QobraError, match="^Username nobody not found in PSK file "):
        create("tls-creds-psk", "n", {"dir": str(tmp_path / "a"), "username": "nobody"})


def test_parameters_are_for_those_who_listen(machine: Machine) -> None:
    machine.objects.create("tls-creds-anon", "c", {"dir": "/dev/null/none"})
    with pytest.raises(QobraError, match="Unable to access credentials"):
        machine.objects.create("tls-creds-anon", "s", {"dir": "/dev/null/none", "endpoint": "server"})


def test_anonymous_encrypts(machine: Machine) -> None:
    server = machine.objects.create("tls-creds-anon", "s", {"endpoint": "server"})
    client = machine.objects.create("tls-creds-anon", "c", {})
    accepted = _handshake(server.server_context(), client.client_context())
    assert accepted.version() == "TLSv1.2"


@pytest.mark.parametrize(
    ("priority", "version"), [("NORMAL:-VERS-TLS1.3", "TLSv1.2"), ("NORMAL:-VERS-ALL:+VERS-TLS1.3", "TLSv1.3")]
)
def test_priority_limits_the_version(machine: Machine, tmp_path: Path, priority: str, version: str) -> None:
    _pki(tmp_path, trustme.CA())
    server = machine.objects.create(
        "tls-creds-x509", "s", {"dir": str(tmp_path), "endpoint": "server", "priority": priority}
    )
    client = machine.objects.create("tls-creds-x509", "c", {"dir": str(tmp_path)})
    assert _handshake(server.server_context(), client.client_context(), "localhost").version() == version
    with pytest.raises(QobraError, match="unknown keyword"):
        machine.objects.create("tls-creds-x509", "p", {"dir": str(tmp_path), "priority": "NORMAL:+ROT13"})
