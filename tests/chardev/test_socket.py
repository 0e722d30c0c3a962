"""Socket character devices: ends, addresses, names, reconnection, descriptors, layers."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from qobra.chardev import address
from qobra.errors import QobraError
from qobra.machine.machine import Machine


def unix(path: Path, **rest: Any) -> dict[str, Any]:
    return {"type": "unix", "data": {"path": str(path), **rest}}


def inet(port: int = 0, **rest: Any) -> dict[str, Any]:
    return {"type": "inet", "data": {"host": "127.0.0.1", "port": str(port), **rest}}


def make(machine: Machine, **options: Any) -> Any:
    return machine.chardevs.create("s", {"type": "socket", "data": options})


def dial(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(str(path))
    return sock


def port_of(device: Any) -> int:
    return int(device.filename().removeprefix("disconnected:").split(":")[2].split(",")[0])


def dial_inet(device: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(device)), 30)


def test_server_takes_one_client_after_another(
    machine: Machine, recorder: Any, eventually: Any, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    device = make(machine, addr=unix(path), server=True, wait=False)
    assert device.filename() == f"disconnected:unix:{path},server=on"
    front = recorder()
    device.attach(front)
    for turn in range(3):
        with dial(path) as client:
            eventually(lambda: front.events[-1:] == ["opened"])
            assert device.filename() == f"unix:{path},server=on"
            client.sendall(b"%d" % turn)
            device.write_all(b"hello")
            assert client.recv(5, socket.MSG_WAITALL) == b"hello"
        eventually(lambda: front.events[-1] == "closed")
    assert front.data == b"012"
    device.close()
    assert not path.exists()


def test_nobody_there_means_written_to_nobody(machine: Machine, tmp_path: Path) -> None:
    device = make(machine, addr=unix(tmp_path / "s"), server=True, wait=False)
    assert device.write(b"x" * 10) == 10


def test_a_peer_that_does_not_read_gets_no_more(
    machine: Machine, recorder: Any, eventually: Any, tmp_path: Path
) -> None:
    device = make(machine, addr=unix(tmp_path / "s"), server=True, wait=False)
    front = recorder()
    device.attach(front)
    with dial(tmp_path / "s") as client:
        eventually(lambda: front.events)
        total = 0
        while sent := device.write(b"x" * 65536):
            total += sent
        assert not device.wait_writable(0.01)
        assert len(client.recv(total, socket.MSG_WAITALL)) == total
        assert device.wait_writable(30)


def test_a_front_end_that_comes_late_hears_of_the_peer_before_its_data(
    machine: Machine, recorder: Any, eventually: Any, tmp_path: Path
) -> None:
    class Log(recorder):  # type: ignore[misc]
        def receive(self, data: bytes) -> None:
            self.events.append(data.decode())

    for turn in range(20):
        path = tmp_path / str(turn)
        options = {"addr": unix(path), "server": True, "wait": False}
        device = machine.chardevs.create(f"d{turn}", {"type": "socket", "data": options})
        with dial(path) as client:
            client.sendall(b"data")
            if turn % 2:
                eventually(lambda device=device: device.is_open)
            front = Log()
            device.attach(front)
            eventually(lambda front=front: len(front.events) == 2)
            assert front.events == ["opened", "data"]


def test_client_and_names(machine: Machine, recorder: Any, eventually: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        device = make(machine, addr=inet(port), server=False, nodelay=True)
        front = recorder()
        device.attach(front)
        peer, address = listener.accept()
        with peer:
            assert device.filename() == f"tcp:127.0.0.1:{address[1]} <-> 127.0.0.1:{port}"
            peer.sendall(b"hi")
            eventually(lambda: front.data == b"hi")
        eventually(lambda: front.events == ["opened", "ended", "closed"])
        assert device.filename() == f"disconnected:tcp:127.0.0.1:{port}"


def test_client_reconnects(machine: Machine, recorder: Any, eventually: Any, tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "s"
    device = make(machine, addr=unix(path), server=False, reconnect=1)
    front = recorder()
    device.attach(front)
    eventually(lambda: "Unable to connect character device s: Failed to connect to" in capfd.readouterr().err)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        for _ in range(2):
            peer, _address = listener.accept()
            peer.sendall(b"x")
            peer.close()
    eventually(lambda: front.data == b"xx")


def test_a_client_without_a_front_end_reconnects(machine: Machine, eventually: Any, tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(30)
        device = make(machine, addr=unix(path), server=False, reconnect=1)
        for _ in range(3):
            peer, _address = listener.accept()
            eventually(lambda: device.is_open)
            peer.close()


def test_what_a_peer_has_left_waits_for_a_front_end(
    machine: Machine, recorder: Any, eventually: Any, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    device = make(machine, addr=unix(path), server=True, wait=False)
    with dial(path):
        eventually(lambda: device.is_open)
    eventually(lambda: not device.is_open)
    with dial(path) as client:
        client.sendall(b"kept")
    eventually(lambda: device.is_open)
    front = recorder()
    device.attach(front)
    eventually(lambda: front.data == b"kept")
    eventually(lambda: front.events == ["opened", "ended", "closed"])


def test_wait_blocks_until_a_client_is_there(machine: Machine, tmp_path: Path, capfd: Any, eventually: Any) -> None:
    path = tmp_path / "s"
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(make(machine, addr=unix(path), server=True, wait=True)))
    thread.start()
    eventually(path.exists)
    eventually(lambda: "waiting for connection on: disconnected:unix:" in capfd.readouterr().err)
    assert not made
    with dial(path):
        thread.join(30)
        assert made


def test_who_waits_says_which_option_asked_for_it(machine: Machine, tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "s"
    backend = {"type": "socket", "data": {"addr": unix(path), "server": True, "wait": True}}
    option = f"-chardev socket,id=c,path={path}"
    thread = threading.Thread(target=lambda: machine.chardevs.create("c", backend, asked_by=option))
    thread.start()
    while not path.exists():
        thread.join(0.01)
    with dial(path):
        thread.join(30)
    told = f": {option}: info: QEMU waiting for connection on: disconnected:unix:{path},server=on\n"
    assert capfd.readouterr().err.endswith(told)


def test_descriptor_by_name(machine: Machine, recorder: Any, eventually: Any) -> None:
    ours, theirs = socket.socketpair()
    machine.fdsets.put_named("sock", theirs.detach())
    device = make(machine, addr={"type": "fd", "data": {"str": "sock"}}, server=False)
    front = recorder()
    device.attach(front)
    ours.sendall(b"x")
    eventually(lambda: front.data == b"x")
    ours.close()


def test_a_listening_descriptor(machine: Machine, recorder: Any, eventually: Any, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        device = make(machine, addr={"type": "fd", "data": {"str": str(os.dup(listener.fileno()))}}, wait=False)
    front = recorder()
    device.attach(front)
    assert device.filename() == f"disconnected:unix:{tmp_path}/s,server=on"
    for _ in range(2):
        with dial(tmp_path / "s") as client:
            client.sendall(b"x")
            eventually(lambda: front.events[-1:] == ["opened"])
            assert device.filename() == f"unix:{tmp_path}/s,server=on"
        eventually(lambda: front.events[-1] == "closed")
    assert front.data == b"xx"


def test_descriptors_come_along(machine: Machine, recorder: Any, eventually: Any, tmp_path: Path) -> None:
    device = make(machine, addr=unix(tmp_path / "s"), server=True, wait=False)
    taken: list[list[int]] = []

    class Taker(recorder):  # type: ignore[misc]
        def receive(self, data: bytes) -> None:
            super().receive(data)
            if data != b"keep":
                taken.append(device.take_fds())

    front = Taker()
    device.attach(front)
    before = len(os.listdir("/proc/self/fd"))
    with dial(tmp_path / "s") as client, open("/dev/null") as null:
        for text, count in ((b"keep", 2), (b"two", 2), (b"none", 0)):
            socket.send_fds(client, [text], [null.fileno()] * count)
            eventually(lambda text=text: front.data.endswith(text))
    eventually(lambda: front.events[-1] == "closed")
    assert [len(fds) for fds in taken] == [2, 0]
    for fd in taken[0]:
        os.close(fd)
    # Those that nobody took were closed.
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_abstract_names(machine: Machine, eventually: Any) -> None:
    name = f"qobra-test-{os.getpid()}-{id(machine)}"
    device = make(machine, addr=unix(Path(name), abstract=True), server=True, wait=False)
    assert device.filename() == f"disconnected:unix:{name},abstract=on,tight=on,server=on"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(b"\0" + name.encode())
        eventually(lambda: device.is_open)


def test_a_device_of_the_host_is_not_replaced(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[object] = []
    monkeypatch.setattr(os, "unlink", removed.append)
    with pytest.raises(QobraError, match="Address already in use"):
        address.listen(machine, {"type": "unix", "data": {"path": "/dev/null"}})
    assert not removed


def test_stale_paths_are_replaced_and_new_owners_left_alone(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = make(machine, addr=unix(path), server=True, wait=False)
    second = machine.chardevs.create(
        "t", {"type": "socket", "data": {"addr": unix(path), "server": True, "wait": False}}
    )
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"addr": unix(Path("/proc/none/s")), "server": True}, "Failed to bind socket to /proc/none/s: No such file"),
        ({"addr": unix(Path("/proc/none/s")), "server": False}, "Failed to connect to '/proc/none/s': No such file"),
        ({"addr": unix(Path("a" * 200)), "server": True}, "UNIX socket path 'a*' is too long"),
        ({"addr": inet(1), "server": False}, "Failed to connect to '127.0.0.1:1': Connection refused"),
        ({"addr": inet(1), "server": True, "reconnect": 1}, "'reconnect' option is incompatible with socket in server"),
        ({"addr": inet(1), "server": True, "reconnect": 0}, "'reconnect' option is incompatible with socket in server"),
        ({"addr": inet(1), "server": False, "reconnect": -1}, "Failed to connect to '127.0.0.1:1': Connection refused"),
        ({"addr": inet(1), "server": False, "wait": False}, "'wait' option is incompatible with socket in client"),
        ({"addr": inet(1), "server": False, "websocket": True}, "Websocket client is not implemented"),
        ({"addr": inet(0), "tls-creds": "x"}, "No TLS credentials with id 'x'"),
        ({"addr": inet(0), "reconnect": 1, "tls-creds": "x"}, "No TLS credentials with id 'x'"),
        ({"addr": inet(0), "tls-authz": "x"}, "'tls_authz' option requires 'tls_creds' option"),
        ({"addr": {"type": "fd", "data": {"str": "foo"}}}, "File descriptor named 'foo' has not been found"),
        ({"addr": {"type": "fd", "data": {"str": "9999999"}}}, "File descriptor named '9999999' has not been found"),
        ({"addr": {"type": "inet", "data": {"host": "::1", "port": "x"}}}, "address resolution failed for ::1:x: "),
        ({"addr": {"type": "vsock", "data": {"cid": "x", "port": "1"}}}, "Failed to parse cid 'x'"),
    ],
)
def test_refusals(machine: Machine, options: dict[str, Any], text: str) -> None:
    with pytest.raises(QobraError, match=f"^Failed to add chardev 's': {text}"):
        make(machine, **options)
    assert machine.chardevs.find("s") is None


def test_port_ranges(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        device = make(machine, addr=inet(port, to=port + 50), server=True, wait=False)
        assert port < port_of(device) <= port + 50
        with pytest.raises(QobraError, match=r"Failed to find an available port for 127.0.0.1"):
            machine.chardevs.create("t", {"type": "socket", "data": {"addr": inet(port), "wait": False}})


def test_telnet(machine: Machine, recorder: Any, eventually: Any) -> None:
    device = make(machine, addr=inet(), server=True, wait=False, telnet=True)
    assert device.filename().startswith("disconnected:telnet:127.0.0.1:")
    front = recorder()
    device.attach(front)
    with dial_inet(device) as client:
        assert client.recv(12, socket.MSG_WAITALL) == b"\xff\xfb\x01\xff\xfb\x03\xff\xfb\x00\xff\xfd\x00"
        answer = b"a\xff\xfd\x01b\xff\xffc\xff\xfa\x18\x00vt100\xff\xf0d\xff\xf3e"
        for byte in answer:
            client.sendall(bytes((byte,)))
        eventually(lambda: front.data == b"ab\xffcde")
        assert front.events == ["opened", "break"]
        device.write_all(b"x\xffy")
        assert client.recv(4, socket.MSG_WAITALL) == b"x\xff\xffy"


def test_tn3270(machine: Machine, recorder: Any, eventually: Any) -> None:
    device = make(machine, addr=inet(), server=True, wait=False, tn3270=True)
    front = recorder()
    device.attach(front)
    with dial_inet(device) as client:
        asked = b"\xff\xfd\x19\xff\xfb\x19\xff\xfd\x00\xff\xfb\x00\xff\xfd\x18\xff\xfa\x18\x01\xff\xf0"
        assert client.recv(len(asked), socket.MSG_WAITALL) == asked
        client.sendall(b"\xff\xfb\x18\xff\xfa\x18\x00IBM-3278-2\xff\xf0\x88\xff\xff\x40\xff\xef")
        eventually(lambda: front.data == b"\x88\xff\x40\xff\xef")
        device.write_all(b"\xf5\xff\xff\xff\xef")
        assert client.recv(5, socket.MSG_WAITALL) == b"\xf5\xff\xff\xff\xef"


def test_only_a_server_speaks_telnet(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        device = make(machine, addr=inet(other.getsockname()[1]), server=False, telnet=True)
        peer, _name = other.accept()
        with peer:
            device.write_all(b"a\xffb")
            assert peer.recv(3, socket.MSG_WAITALL) == b"a\xffb"


def test_a_unix_socket_is_called_one_whatever_it_speaks(machine: Machine, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    device = make(machine, addr={"type": "unix", "data": {"path": path}}, server=True, wait=False, telnet=True)
    assert device.filename() == f"disconnected:unix:{path},server=on"


REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: binary\r\n\r\n"
)


def frame(opcode: int, payload: bytes) -> bytes:
    size = bytes((0x80 | len(payload),)) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    mask = b"\x01\x02\x03\x04"
    return bytes((0x80 | opcode,)) + size + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


def test_websocket(machine: Machine, recorder: Any, eventually: Any) -> None:
    device = make(machine, addr=inet(), server=True, wait=False, websocket=True)
    front = recorder()
    device.attach(front)
    with dial_inet(device) as client:
        client.sendall(REQUEST + frame(2, b"early"))
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += client.recv(1)
        # The example of RFC 6455 section 1.3.
        assert b"HTTP/1.1 101 " in answer
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer
        for byte in frame(1, b"text") + frame(9, b"ping") + frame(2, b"x" * 300):
            client.sendall(bytes((byte,)))
        eventually(lambda: front.data == b"earlytext" + b"x" * 300)
        assert client.recv(6, socket.MSG_WAITALL) == b"\x8a\x04ping"
        device.write_all(b"y" * 200)
        assert client.recv(204, socket.MSG_WAITALL) == b"\x82\x7e\x00\xc8" + b"y" * 200
        client.sendall(frame(8, b"\x03\xe8"))
        eventually(lambda: front.events == ["opened", "ended", "closed"])


@pytest.mark.parametrize(
    "request_", [b"POST / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 5000, REQUEST.replace(b"13", b"12")]
)
def test_websocket_refuses(machine: Machine, recorder: Any, eventually: Any, request_: bytes, capfd: Any) -> None:
    device = make(machine, addr=inet(), server=True, wait=False, websocket=True)
    front = recorder()
    device.attach(front)
    with dial_inet(device) as client:
        client.sendall(request_)
        assert client.recv(1) == b""
    with dial_inet(device) as client:
        client.sendall(REQUEST)
        eventually(lambda: front.events == ["opened"])


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca-cert.pem"))
    for name in ("server", "client"):
        certificate = authority.issue_cert("127.0.0.1", "localhost", common_name=name)
        (tmp_path / f"{name}-cert.pem").write_bytes(b"".join(c.bytes() for c in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(str(tmp_path / f"{name}-key.pem"))
    return tmp_path


def test_tls(machine: Machine, recorder: Any, eventually: Any, certificates: Path) -> None:
    common = {"dir": str(certificates), "sanity-check": False}
    machine.objects.create("tls-creds-x509", "creds", common | {"endpoint": "server", "verify-peer": False})
    device = make(machine, addr=inet(), server=True, wait=False, **{"tls-creds": "creds"})
    front = recorder()
    device.attach(front)
    context = ssl.create_default_context(cafile=str(certificates / "ca-cert.pem"))
    with context.wrap_socket(dial_inet(device), server_hostname="127.0.0.1") as client:
        client.sendall(b"secret")
        eventually(lambda: front.data == b"secret")
        device.write_all(b"r" * 300000)
        received = 0
        while received < 300000:
            received += len(client.recv(65536))
    eventually(lambda: front.events == ["opened", "ended", "closed"])
    # Someone without TLS is refused, and the next one served.
    with dial_inet(device) as plain:
        plain.sendall(b"hello, I speak no TLS\r\n")
        while plain.recv(100):
            pass
    with context.wrap_socket(dial_inet(device), server_hostname="127.0.0.1") as client:
        eventually(lambda: front.events[-1] == "opened")


def test_tls_between_two_of_ours(machine: Machine, recorder: Any, eventually: Any, certificates: Path) -> None:
    common = {"dir": str(certificates), "sanity-check": False}
    machine.objects.create("tls-creds-x509", "ours", common | {"endpoint": "server"})
    machine.objects.create("tls-creds-x509", "theirs", common | {"endpoint": "client"})
    server = make(machine, addr=inet(), server=True, wait=False, **{"tls-creds": "ours"})
    front, back = recorder(), recorder()
    server.attach(front)
    options = {"addr": inet(port_of(server)), "server": False, "tls-creds": "theirs"}
    client = machine.chardevs.create("t", {"type": "socket", "data": options})
    client.attach(back)
    client.write_all(b"ping")
    eventually(lambda: front.data == b"ping")
    server.write_all(b"pong")
    eventually(lambda: back.data == b"pong")
