"""Several channels, packed pages, and streams inside TLS; and who comes to them that should not."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.migration.lanes import Lanes
from qobra.migration.stream import PAGES, StreamWriter
from qobra.qmp import hmp


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what both sides need, for the name ``localhost``."""
    trustme = pytest.importorskip("trustme")
    directory = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca-cert.pem"))
    for name in ("server", "client"):
        certificate = authority.issue_cert("localhost", common_name=name)
        (directory / f"{name}-cert.pem").write_bytes(b"".join(c.bytes() for c in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(directory / f"{name}-key.pem"))
    return directory


def encrypt(both: Any, certificates: Path, *, hostname: str = "localhost", authz: bool | None = None) -> None:
    for machine, endpoint in ((both.source, "client"), (both.destination, "server")):
        creds = {"dir": str(certificates), "sanity-check": False, "endpoint": endpoint, "verify-peer": True}
        both.call(machine, "object-add", qom_type="tls-creds-x509", id="creds", **creds)
        both.call(machine, "migrate-set-parameters", tls_creds="creds", tls_hostname=hostname)
    if authz is not None:
        policy = "allow" if authz else "deny"
        rules = [{"match": "*CN=client*", "policy": policy, "format": "glob"}]
        both.call(both.destination, "object-add", qom_type="authz-list", id="who", policy="deny", rules=rules)
        both.call(both.destination, "migrate-set-parameters", tls_authz="who")


@pytest.mark.parametrize("method", ["none", "zlib", "zstd"])
@pytest.mark.parametrize("more", [(), ("xbzrle",), ("return-path",)])
def test_memory_comes_over_several_channels(sides: Any, method: str, more: tuple[str, ...]) -> None:
    both = sides("multifd", *more, multifd_channels=3, multifd_compression=method)
    both.call(both.source, "migrate-set-parameters", max_bandwidth=0)
    both.start()
    both.wait()
    ram = both.source.migration.describe()["ram"]
    assert (7 << 20) < ram["multifd-bytes"] <= ram["transferred"]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("wait", [False, True])
def test_threads_pack_pages(sides: Any, threads: int, wait: bool) -> None:
    both = sides("compress", compress_threads=threads, decompress_threads=threads, compress_wait_thread=wait)
    content = b"".join(bytes([n % 255 + 1]) * 4096 for n in range(len(both.content) // 4096))  # no page of zeroes
    with both.source.control:
        both.source.board.memory.write(1 << 20, content)
    both.content = content
    both.start()
    both.wait()
    info = both.source.migration.describe()
    packed = info["compression"]
    assert packed["compression-rate"] > 5 and packed["compressed-size"] < info["ram"]["transferred"]
    assert wait == (packed["pages"] >= len(content) // 4096) or packed["busy"] == 0
    assert (packed["busy-rate"] > 0) == (packed["busy"] > 0)


def test_what_has_one_channel_takes_no_more(sides: Any) -> None:
    both = sides("multifd")
    with pytest.raises(QobraError, match="multifd is not supported by current protocol"):
        both.call(both.source, "migrate", uri="exec:cat >/dev/null")
    with pytest.raises(QobraError, match="multifd is not supported by current protocol"):
        both.call(both.destination, "migrate-incoming", uri="exec:sleep 1")
    both.start()
    both.wait()


def test_both_sides_want_several_channels_or_neither(sides: Any, capsys: pytest.CaptureFixture[str]) -> None:
    both = sides("multifd")
    off = [{"capability": "multifd", "state": False}]
    both.call(both.destination, "migrate-set-capabilities", capabilities=off)
    both.start()
    assert both.source.migration.wait(60) and both.destination.migration.wait(60)
    assert both.status(both.source) == "failed" and both.source.run_state.running
    assert "Capability multifd is off, but received capability is on" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["hello", "record", "nothing"])
def test_a_channel_that_is_wrong_ends_it(
    sides: Any, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qobra.migration import page_out

    both = sides("multifd", multifd_channels=1)
    original = page_out.MultiOut.__init__

    def spoil(self: Any, out: Any, channels: Any, *others: Any) -> None:
        original(self, out, channels, *others)
        if what == "record":
            StreamWriter(channels[0]).record(PAGES, b"\xff" * 14)
        if what == "nothing":
            channels[0].hang_up()

    monkeypatch.setattr(page_out.MultiOut, "__init__", spoil)
    if what == "hello":
        monkeypatch.setattr(page_out, "HELLO", b"QOBRANO\n")
    both.start()
    assert both.source.migration.wait(60) and both.destination.migration.wait(60)
    assert both.status(both.destination) == "failed"
    assert both.status(both.source) == "failed" and both.source.run_state.running
    texts = {
        "hello": "A channel is not of this migration",
        "record": "Illegal RAM offset",
        "nothing": "The migration stream ends too early",
    }
    assert texts[what] in capsys.readouterr().err


@pytest.mark.parametrize("capabilities", [(), ("multifd",), ("return-path",), ("postcopy-ram",)])
def test_encrypted(sides: Any, certificates: Path, capabilities: tuple[str, ...]) -> None:
    both = sides(*capabilities)
    encrypt(both, certificates, authz=True)
    if "postcopy-ram" in capabilities:
        both.start_late()
        with both.destination.control:
            assert both.destination.board.memory.read(5 << 20, 64) == both.content[4 << 20 :][:64]
        both.let_go()
    else:
        both.start()
    both.wait()


def test_a_destination_whose_visitors_are_refused_goes_on_listening(
    sides: Any, certificates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = sides()
    encrypt(both, certificates, authz=False)
    way = both.way()
    both.call(both.destination, "migrate-incoming", uri=way)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(way.removeprefix("unix:"))
        stranger.sendall(b"QOBRAVM\n in the clear")
        stranger.recv(100)
    both.call(both.source, "migrate", uri=way)
    assert both.source.migration.wait(60) and both.status(both.source) == "failed"
    assert both.source.run_state.running
    both.call(both.destination, "object-del", id="who")
    both.call(both.source, "migrate", uri=way)  # a missing object denies as well
    assert both.source.migration.wait(60) and both.status(both.source) == "failed"
    both.call(both.destination, "migrate-set-parameters", tls_authz="")
    both.call(both.source, "migrate", uri=way)
    both.wait()
    told = capsys.readouterr().err
    assert "TLS x509 authz check for CN=client" in told or "is denied" in told
    assert "No authorization object with id 'who'" in told


@pytest.mark.parametrize(
    ("hostname", "why"),
    [("example.com", "TLS handshake failed: CERTIFICATE_VERIFY_FAILED"), ("", "No hostname available for TLS")],
)
def test_a_source_that_does_not_know_the_server_does_not_go(
    sides: Any, certificates: Path, hostname: str, why: str
) -> None:
    both = sides()
    encrypt(both, certificates, hostname=hostname)
    both.start()
    assert both.source.migration.wait(60)
    assert both.source.migration.describe()["error-desc"] == why
    assert both.source.run_state.running


def test_credentials_that_are_not_there(sides: Any) -> None:
    both = sides()
    both.call(both.source, "migrate-set-parameters", tls_creds="nobody")
    both.start()
    assert both.source.migration.wait(60)
    assert both.source.migration.describe()["error-desc"] == "No TLS credentials with id 'nobody'"


def test_lanes_do_all_and_tell_of_failures() -> None:
    done: list[int] = []
    lanes: Lanes[int] = Lanes(3, lambda _lane, item: done.append(10 // item))
    for item in (1, 2, 5):
        assert lanes.put(item)
    lanes.drain()
    assert sorted(done) == [2, 5, 10]
    with pytest.raises(ZeroDivisionError):
        lanes.put(0)
        lanes.drain()
    with pytest.raises(ZeroDivisionError):
        lanes.put(1)
    lanes.close()


def test_addresses_are_told_with_the_last_one_first(pair_of: Any) -> None:
    destination = pair_of().destination
    with destination.control:
        destination.migration.expect()
        destination.run_state.incoming = "defer"
        destination.migration.listen("tcp::0")
    hosts = [each["host"] for each in destination.migration.describe()["socket-address"]]
    if len(hosts) != 2:
        pytest.skip("the host has no IPv6")
    assert hosts == ["::", "0.0.0.0"]
    told = hmp.execute(destination, "info migrate")
    assert re.fullmatch(r"socket address: \[\r\n\ttcp::::\d+\r\n\ttcp:0.0.0.0:\d+\r\n\]\r\n", told)
