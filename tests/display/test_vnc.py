"""VNC servers as their clients see them: admission, pictures, input, and what QMP says of it."""

from __future__ import annotations

import random
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qobra.audio.sound import Form
from qobra.display.console import Cursor
from qobra.display.surface import Surface
from qobra.display.vnc.audio import Sound
from qobra.display.vnc.handshake import response
from qobra.display.vnc.options import addresses
from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.machine.launch import simple_machine
from qobra.machine.machine import Machine
from qobra.qmp import dispatch
from qobra.testing.vnc import VncTestClient as Client
from qobra.testing.waiting import wait_until

_RGB565 = struct.pack(">BBBBHHHBBB3x", 16, 16, 0, 1, 31, 63, 31, 11, 5, 0)
_MAPPED = struct.pack(">BBBBHHHBBB3x", 8, 8, 0, 0, 0, 0, 0, 0, 0, 0)


class Mouse:
    """A device that takes what it is sent."""

    def __init__(self, *kinds: str) -> None:
        self.input_name = "test"
        self.accepts = frozenset(kinds)
        self.events: list[dict[str, Any]] = []

    def input_event(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def input_sync(self) -> None:
        pass


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = simple_machine("x86_64", "none", memory=0)
    machine.name = "box"
    yield machine
    machine.close()


@pytest.fixture
def events(machine: Machine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    machine.events.subscribe(found.append)
    return found


def _open(machine: Machine, tmp_path: Path, **options: Any) -> Path:
    path = tmp_path / "vnc"
    with machine.control:
        machine.vnc.open({"vnc": f"unix:{path}", **options})
    return path


def _call(machine: Machine, command: str, **arguments: Any) -> Any:
    with machine.control:
        return dispatch.call(machine, command, arguments)


def _console(machine: Machine, width: int = 4, height: int = 2) -> Any:
    board: Any = machine.board
    console = board.consoles.add(object())
    console.show(Surface(width, height, bytearray(i % 256 for i in range(4 * width * height))))
    return console


def test_response() -> None:
    # The bits of each byte turned round, the password is the key of a known pair of plain and encrypted text.
    password, plain = bytes.fromhex("c82cea9ed93dfb8f"), bytes.fromhex("0123456789abcdef")
    assert response(password, plain).hex() == "85e813540f0ab405"
    assert response(b"longer than eight", bytes(16)) == response(b"longer t", bytes(16))


def test_who_is_there_and_how_it_is_told(machine: Machine, events: list[Any], tmp_path: Path) -> None:
    assert _call(machine, "query-vnc") == {"enabled": False}
    path = _open(machine, tmp_path)
    server = {"host": "", "service": str(path), "family": "unix", "websocket": False, "auth": "none"}
    client = Client(path)
    assert client.join() == "QEMU (box)"
    wait_until(lambda: [each["event"] for each in events] == ["VNC_CONNECTED", "VNC_INITIALIZED"])
    info = {"host": "", "service": "", "family": "unix", "websocket": False}
    assert all(each["data"] == {"server": server, "client": info} for each in events)
    assert _call(machine, "query-vnc") == {
        "enabled": True,
        "host": "",
        "service": str(path),
        "family": "unix",
        "auth": "none",
        "clients": [info],
    }
    assert _call(machine, "query-vnc-servers") == [
        {"id": "default", "server": [server], "clients": [info], "auth": "none"}
    ]
    client.close()
    wait_until(lambda: events[-1]["event"] == "VNC_DISCONNECTED")
    assert _call(machine, "query-vnc")["clients"] == []


def test_passwords(machine: Machine, tmp_path: Path) -> None:
    path = _open(machine, tmp_path, password=True)
    assert _call(machine, "query-vnc")["auth"] == "vnc"
    for command, arguments in (
        ("set_password", {"protocol": "vnc", "password": "secret"}),
        ("change-vnc-password", {"password": "secret"}),
        ("change", {"device": "vnc", "target": "password", "arg": "secret"}),
    ):
        _refused(path, b"secret")
        _call(machine, command, **arguments)
        Client(path).join(b"secret")
        _refused(path, b"wrong")
        _call(machine, "expire_password", protocol="vnc", time="now")
        _refused(path, b"secret")
        _call(machine, "expire_password", protocol="vnc", time="+1000")
        Client(path).join(b"secret")
        _call(machine, "expire_password", protocol="vnc", time="12")
        _refused(path, b"secret")
        _call(machine, "expire_password", protocol="vnc", time="never")
        Client(path).join(b"secret")
        _call(machine, "change-vnc-password", password="another")


def _refused(path: Path, password: bytes) -> None:
    client = Client(path)
    client.read(12)
    client.sock.sendall(b"RFB 003.008\n")
    assert client.read(2) == b"\1\2"
    client.sock.sendall(b"\2")
    client.sock.sendall(response(password, client.read(16)))
    assert client.read(8) == b"\0\0\0\1\0\0\0\x16"
    assert client.read(22) == b"Authentication failed\0"
    with pytest.raises(EOFError):
        client.read(1)


def test_what_becomes_of_clients_when_the_password_changes(machine: Machine, tmp_path: Path) -> None:
    path = _open(machine, tmp_path, password=True)
    _call(machine, "set_password", protocol="vnc", password="a")
    client = Client(path)
    client.join(b"a")
    wait_until(lambda: len(_call(machine, "query-vnc")["clients"]) == 1)
    with pytest.raises(QobraError, match="Could not set password"):
        _call(machine, "set_password", protocol="vnc", password="b", connected="fail")
    _call(machine, "set_password", protocol="vnc", password="b", connected="keep")
    client.ask()
    assert client.update()
    _call(machine, "set_password", protocol="vnc", password="b", connected="disconnect")
    with pytest.raises(EOFError):
        client.read(1)


@pytest.mark.parametrize("version", [b"RFB 003.003\n", b"RFB 003.005\n", b"RFB 003.007\n"])
def test_older_clients(machine: Machine, tmp_path: Path, version: bytes) -> None:
    client = Client(_open(machine, tmp_path))
    client.read(12)
    client.sock.sendall(version)
    if version.endswith(b"7\n"):
        assert client.read(2) == b"\1\1"
        client.sock.sendall(b"\1")
    else:
        assert client.read(4) == b"\0\0\0\1"
    client.sock.sendall(b"\1")
    assert struct.unpack(">HH", client.read(4)) == (640, 480)


def test_cards_that_tell_what_they_show_only_when_asked(machine: Machine, tmp_path: Path) -> None:
    console = _console(machine)
    wanted = [0x80]

    def refresh() -> None:
        if console.surface.data[4] != wanted[0]:
            console.surface.data[4] = wanted[0]
            console.update(1, 0, 1, 1)

    console.refresh = refresh
    client = Client(_open(machine, tmp_path))
    client.join()
    client.ask()
    [(place, _encoding, data)] = client.update()
    assert (place, data[4]) == ((0, 0, 4, 2), 0x80)
    client.ask(incremental=True)
    wanted[0] = 0x81  # nobody says so
    [(place, _encoding, data)] = client.update()
    assert (place, data[0]) == ((1, 0, 1, 1), 0x81)


def test_pictures(machine: Machine, tmp_path: Path) -> None:
    console = _console(machine)
    client = Client(_open(machine, tmp_path))
    client.join()
    assert client.size == (4, 2)
    client.ask()
    assert client.update() == [((0, 0, 4, 2), 0, bytes(range(32)))]
    client.encodings(6, -223)
    client.ask(incremental=True, area=(0, 0, 2, 2))
    with machine.control:
        console.surface.data[:] = b"\x10\x20\x80\0" * 8
        console.update(3, 0, 1, 1)  # where the client does not look
        console.update(1, 1, 1, 1)
    [(place, encoding, data)] = client.update()
    assert (place, encoding) == ((1, 0, 1, 2), 6)
    unpacker = zlib.decompressobj()
    assert unpacker.decompress(data) == b"\x10\x20\x80\0" * 2
    client.ask(incremental=True)
    [(place, _encoding, data)] = client.update()
    assert place == (1, 0, 3, 2) and unpacker.decompress(data) == b"\x10\x20\x80\0" * 6
    client.ask(incremental=True)
    with machine.control:
        console.show(Surface(2, 1, bytearray(b"\xff\0\0\0\0\0\xff\0")))
    resized, (place, _encoding, data) = client.update()
    assert resized == ((0, 0, 2, 1), -223, b"")
    assert place == (0, 0, 2, 1) and unpacker.decompress(data) == b"\xff\0\0\0\0\0\xff\0"


def test_pixels_as_the_client_wants_them(machine: Machine, tmp_path: Path) -> None:
    console = _console(machine, 1, 1)
    console.surface.data[:] = b"\x08\x10\xf8\0"
    client = Client(_open(machine, tmp_path))
    client.join()
    client.sock.sendall(b"\0\0\0\0" + _RGB565)
    client.ask()
    assert client.update(2)[0][2] == struct.pack("<H", 0x1E << 11 | 3 << 5 | 0)
    client.sock.sendall(b"\0\0\0\0" + _MAPPED)
    assert client.read(6) == b"\1\0\0\0\1\0"
    colours = client.read(6 * 256)
    client.ask()
    value = client.update(1)[0][2][0]
    red, _green, blue = struct.unpack_from(">HHH", colours, 6 * value)
    assert red > 50000 and blue == 0


def test_the_pointer_has_a_picture(machine: Machine, tmp_path: Path) -> None:
    console = _console(machine)
    client = Client(_open(machine, tmp_path))
    client.join()
    client.encodings(-239)
    client.ask()
    client.update()
    client.ask(incremental=True)
    with machine.control:
        console.define_cursor(Cursor(2, 1, 1, 0, b"\1\2\3\xff\4\5\6\0"))
    assert client.update() == [((1, 0, 2, 1), -239, b"\1\2\3\xff\4\5\6\0\x80")]


@pytest.mark.parametrize("absolute", [True, False])
def test_input(machine: Machine, tmp_path: Path, absolute: bool) -> None:
    board: Any = machine.board
    mouse, keyboard = Mouse("btn", "abs" if absolute else "rel"), Mouse("key")
    board.input.add(mouse)
    board.input.add(keyboard)
    with machine.control:
        machine.run_state.start()
    console = _console(machine, 101, 201)
    client = Client(_open(machine, tmp_path))
    client.join()
    client.sock.sendall(struct.pack(">BBxxI", 4, 1, ord("A")) + struct.pack(">BBxxI", 4, 0, 0xFF0D))
    client.sock.sendall(struct.pack(">BBHII", 255, 0, 1, 0, 0x9D))
    client.sock.sendall(struct.pack(">BxxxI", 6, 5) + b"hello")
    client.sock.sendall(struct.pack(">BBHH", 5, 1, 100, 100) + struct.pack(">BBHH", 5, 0, 103, 98))
    wait_until(lambda: len(mouse.events) == (6 if absolute else 4) and len(keyboard.events) == 3)
    keys = [(each["data"]["key"]["data"], each["data"]["down"]) for each in keyboard.events]
    assert keys == [("a", True), ("ret", False), (0x9D, True)]
    moves = [each["data"] for each in mouse.events if each["type"] != "btn"]
    if absolute:
        assert moves[:2] == [{"axis": "x", "value": 0x7FFF}, {"axis": "y", "value": 0x7FFF // 2}]
    else:
        assert moves == [{"axis": "x", "value": 3}, {"axis": "y", "value": -2}]
    assert [each["data"] for each in mouse.events if each["type"] == "btn"] == [
        {"button": "left", "down": True},
        {"button": "left", "down": False},
    ]
    assert console is next(iter(board.consoles))


def test_motion_for_clients_that_know_it(machine: Machine, tmp_path: Path) -> None:
    board: Any = machine.board
    mouse = Mouse("rel", "btn")
    board.input.add(mouse)
    with machine.control:
        machine.run_state.start()
    client = Client(_open(machine, tmp_path))
    client.join()
    client.encodings(-257)
    client.ask()
    assert client.update()[0] == ((0, 0, 640, 480), -257, b"")
    client.sock.sendall(struct.pack(">BBHH", 5, 0, 0x7FFF + 5, 0x7FFF - 7))
    wait_until(lambda: len(mouse.events) == 2)
    assert [each["data"]["value"] for each in mouse.events] == [5, -7]


def test_a_client_may_want_the_screen_for_itself(machine: Machine, tmp_path: Path) -> None:
    path = _open(machine, tmp_path)
    first, second, third = Client(path), Client(path), Client(path)
    first.join()
    second.join(shared=False)
    with pytest.raises(EOFError):
        first.read(1)
    with pytest.raises(EOFError):
        third.join()
    second.ask()
    assert second.update()


def test_clients_of_others(machine: Machine, tmp_path: Path) -> None:
    _open(machine, tmp_path, password=True)
    for known in (True, False):
        ours, theirs = socket.socketpair()
        machine.fdsets.put_named("c", theirs.detach())
        _call(machine, "add_client", protocol="vnc", fdname="c", skipauth=known)
        client = Client(sock=ours)
        if known:
            client.join()
        else:
            client.read(12)
            ours.sendall(b"RFB 003.008\n")
            assert client.read(2) == b"\1\2"


def test_sound(machine: Machine, tmp_path: Path) -> None:
    with machine.control:
        backend = machine.audiodevs.create({"id": "a", "driver": "none"})
        voice = backend.open_voice()
    client = Client(_open(machine, tmp_path, audiodev="a"))
    client.join()
    client.encodings(0, -259)
    client.ask()
    assert ((0, 0, 640, 480), -259, b"") in client.update()
    client.sock.sendall(struct.pack(">BBHBBI", 255, 1, 2, 1, 1, 8000) + struct.pack(">BBH", 255, 1, 0))
    wait_until(lambda: len(backend.listeners) == 1)
    with machine.control:
        for _ in range(2):
            voice.play(b"\0\x40" * 1600, Form(8000, 2, 16), (1.0, 0.5))
        voice.pause()
    assert client.read(4) == b"\xff\1\0\1"
    sound = b""
    while (head := client.read(4)) == b"\xff\1\0\2":
        sound += client.read(int.from_bytes(client.read(4), "big"))
    assert head == b"\xff\1\0\0" and sound == b"\x30" * 1600
    client.sock.sendall(struct.pack(">BBH", 255, 1, 1))
    wait_until(lambda: not backend.listeners)
    client.sock.sendall(struct.pack(">BBH", 255, 1, 0))
    wait_until(lambda: len(backend.listeners) == 1)
    with machine.control:
        voice.play(bytes(1 << 21), Form(48000, 2, 16), (1.0, 1.0))  # more than anybody waits for
    client.close()
    wait_until(lambda: not backend.listeners)
    with machine.control, pytest.raises(QobraError, match="Audiodev 'b' not found"):
        machine.vnc.open({"vnc": "none", "id": "x", "audiodev": "b"})


@pytest.mark.parametrize(
    "message", [(1, 3), (1, 2, 6, 1, 8000), (1, 2, 3, 3, 8000), (1, 2, 3, 2, 0), (1, 2, 3, 2, 1 << 31)]
)
def test_sound_that_nobody_can_have(machine: Machine, tmp_path: Path, message: tuple[int, ...]) -> None:
    machine.audiodevs.create({"id": "a", "driver": "none"})
    client = Client(_open(machine, tmp_path, audiodev="a"))
    client.join()
    client.sock.sendall(struct.pack(">BBHBBI"[: 2 + len(message)], 255, *message))
    assert client.ends()


def test_another_address(machine: Machine, tmp_path: Path) -> None:
    path = _open(machine, tmp_path)
    with pytest.raises(QobraError, match="no vnc port specified"):
        _call(machine, "change", device="vnc", target="nowhere")
    Client(path).join()
    _call(machine, "change", device="vnc", target=f"unix:{tmp_path}/new")
    Client(tmp_path / "new").join()
    assert not path.exists()
    _call(machine, "change", device="vnc", target="none")
    assert _call(machine, "query-vnc") == {"enabled": False}


def test_internet(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        display = taken.getsockname()[1] - 5900
        options = {"vnc": f"127.0.0.1:{display}", "to": display + 50}
        with machine.control:
            machine.vnc.open(options)
            with pytest.raises(QobraError, match="Failed to find an available port: Address already in use"):
                machine.vnc.open({"vnc": f"127.0.0.1:{display}"})
    port = int(_call(machine, "query-vnc")["service"])
    assert port > display + 5900
    with socket.create_connection(("127.0.0.1", port)) as sock:
        Client(sock=sock).join()
        wait_until(lambda: _call(machine, "query-vnc")["clients"][0]["service"] == str(sock.getsockname()[1]))


def test_a_client_that_waits_for_servers(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with machine.control:
            machine.vnc.open({"vnc": f"127.0.0.1:{listener.getsockname()[1]}", "reverse": True})
        sock, _peer = listener.accept()
        Client(sock=sock).join()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("foo", "no vnc port specified"),
        (":x", "can't convert to a number: x"),
        (":-5", "can't convert to a number: -5"),
        ("127.0.0.1:70000", "port 70000 out of range"),
    ],
)
def test_addresses_that_are_none(text: str, complaint: str) -> None:
    with pytest.raises(QobraError) as caught:
        addresses({"vnc": text})
    assert caught.value.desc == complaint


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"share": "x"}, "unknown vnc share= option"),
        ({"password": True, "password-secret": "s"}, "'password' flag is redundant with 'password-secret'"),
        ({"password-secret": "s"}, "No secret with id 's'"),
        ({"display": "zz"}, "Device 'zz' not found"),
    ],
)
def test_refusals(machine: Machine, options: dict[str, Any], complaint: str) -> None:
    with machine.control, pytest.raises(QobraError) as caught:
        machine.vnc.open({"vnc": "none", **options})
    assert caught.value.desc == complaint


def test_commands_without_a_server(machine: Machine) -> None:
    assert _call(machine, "query-vnc-servers") == []
    for command, arguments, complaint in (
        ("set_password", {"protocol": "vnc", "password": "x"}, "Could not set password"),
        ("set_password", {"protocol": "spice", "password": "x"}, "SPICE is not in use"),
        ("set_password", {"protocol": "foo", "password": "x"}, "Invalid parameter 'protocol'"),
        ("set_password", {"protocol": "vnc", "password": "x", "connected": "y"}, "Invalid parameter 'connected'"),
        ("expire_password", {"protocol": "vnc", "time": "now"}, "Could not set password expire time"),
        ("expire_password", {"protocol": "spice", "time": "now"}, "SPICE is not in use"),
        ("change-vnc-password", {"password": "x"}, "Could not set password"),
    ):
        with pytest.raises(QobraError) as caught:
            _call(machine, command, **arguments)
        assert caught.value.desc == complaint
        assert (caught.value.error_class == DEVICE_NOT_FOUND) == (arguments.get("protocol") == "spice")


def test_clients_that_speak_nonsense(machine: Machine, tmp_path: Path) -> None:
    path = _open(machine, tmp_path)
    chance = random.Random(7)
    for turn in range(40):
        client = Client(path)
        if turn % 4:
            client.join()
        client.sock.sendall(bytes(chance.choice((0, 1, 2, 3, 4, 5, 6, 255, chance.randrange(256))) for _ in range(80)))
        client.close()
    wait_until(lambda: _call(machine, "query-vnc")["clients"] == [])
    Client(path).join()


def test_what_people_see(machine: Machine, tmp_path: Path) -> None:
    def ask(line: str) -> str:
        text: str = _call(machine, "human-monitor-command", **{"command-line": line})
        return text.replace("\r", "")

    assert ask("info vnc") == "None\n"
    path = _open(machine, tmp_path, password=True)
    assert ask("info vnc") == f"default:\n  Server: :{path} (unix)\n    Auth: vnc (Sub: none)\n"
    assert ask("set_password vnc secret") == ask("expire_password vnc never") == ""
    Client(path).join(b"secret")
    assert ask("change vnc password other") == ""
    Client(path).join(b"other")
    assert ask("change vnc unix:x") == "Expected 'password' after 'vnc'\n"


def test_texts_are_chosen_by_keys(machine: Machine, tmp_path: Path) -> None:
    board = machine.board
    assert board is not None
    drawn = board.consoles.add(board)
    drawn.show(Surface.blank(640, 384))
    first = machine.chardevs.create("a", {"type": "vc", "data": {}})
    machine.chardevs.create("b", {"type": "vc", "data": {"width": 16, "height": 16}})
    got: list[bytes] = []

    class Port:
        hotswap = True

        def receive(self, data: bytes) -> None:
            got.append(data)

        def event(self, name: str) -> None:
            pass

        def can_receive(self) -> int:
            return 100

    keyboard = Mouse("key")
    board.input.add(keyboard)
    with machine.control:
        machine.run_state.start()
    first.attach(Port())
    client = Client(_open(machine, tmp_path))
    client.join()
    client.encodings(0, -223)
    client.ask()
    [(place, _, data)] = client.update()
    assert (place, any(data)) == ((0, 0, 640, 384), False)

    def press(keysym: int, down: bool = True) -> None:
        client.sock.sendall(struct.pack(">BBxxI", 4, down, keysym))

    def choose(digit: str) -> None:
        for down in (True, False):
            for keysym in (0xFFE3, 0xFFE9, ord(digit)):
                press(keysym, down)

    choose("2")
    client.ask(True)
    [(place, _, data)] = client.update()
    assert (place, data[:4]) == ((0, 0, 640, 384), b"\xaa\0\0\0")
    assert [each["data"]["down"] for each in keyboard.events] == [True, True, False, False]  # and no digit
    press(ord("x"))
    press(ord("x"), False)
    press(0xFF0D)
    wait_until(lambda: b"".join(got) == b"x\r")
    first.write(b"y")
    client.ask(True)
    [((_, y, _, height), _, data)] = client.update()
    assert (y, height, any(data)) == (16, 16, True)
    assert len(keyboard.events) == 4
    choose("3")
    client.ask(True)
    assert [rectangle[0] for rectangle in client.update() if rectangle[1] == -223] == [(0, 0, 16, 16)]
    choose("9")
    machine.chardevs.remove("b")
    client.ask(True)
    assert (0, 0, 640, 384) in [rectangle[0] for rectangle in client.update()]
    client.close()


def test_silent_clients_keep_nobody_out(machine: Machine, tmp_path: Path) -> None:
    path = _open(machine, tmp_path, connections=2)
    silent = [Client(path) for _ in range(2)]
    for each in silent:
        each.read(12)
    last = Client(path)
    last.join()
    assert silent[0].ends()
    wait_until(lambda: len(_call(machine, "query-vnc")["clients"]) == 2)
    silent[1].sock.sendall(b"RFB 003.008\n")
    assert silent[1].read(2) == b"\1\1"


def test_who_looks_on_is_one_of_so_many(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qobra.display.vnc.server._MOST_CLIENTS", 2)
    path = _open(machine, tmp_path)
    first = [Client(path) for _ in range(2)]
    for each in first:
        each.join()
    last = Client(path)
    with pytest.raises(EOFError):
        last.join()
    wait_until(lambda: len(_call(machine, "query-vnc")["clients"]) == 2)
    for each in first:
        each.close()


def test_who_leaves_lets_the_keys_go(machine: Machine, tmp_path: Path) -> None:
    board: Any = machine.board
    keyboard = Mouse("key")
    board.input.add(keyboard)
    with machine.control:
        machine.run_state.start()
    client = Client(_open(machine, tmp_path))
    client.join()
    for keysym, down in ((0xFFE3, True), (ord("a"), True), (ord("a"), False)):
        client.sock.sendall(struct.pack(">BBxxI", 4, down, keysym))
    client.sock.sendall(struct.pack(">BBHII", 255, 0, 1, 0, 0x9D))
    wait_until(lambda: len(keyboard.events) == 4)
    client.close()
    wait_until(lambda: len(keyboard.events) == 6)
    keys = [(each["data"]["key"]["data"], each["data"]["down"]) for each in keyboard.events[4:]]
    assert keys == [("ctrl", False), (0x9D, False)]


def test_sound_that_begins_and_ends_while_nobody_reads(machine: Machine) -> None:
    backend = machine.audiodevs.create({"id": "a", "driver": "none"})
    voice, sound = backend.open_voice(), Sound(backend, threading.Condition())
    sound._listen()
    for _ in range(40000):
        voice.play(bytes(16), Form(44100, 2, 16), (1.0, 1.0))
        voice.pause()
    waiting = sound.take()
    assert len(waiting) <= (1 << 18) + 8
    assert waiting.endswith(b"\xff\1\0\0")
    voice.play(bytes(400), Form(44100, 2, 16), (1.0, 1.0))
    voice.pause()
    assert sound.take() == b"\xff\1\0\1" + b"\xff\1\0\2\0\0\1\x90" + bytes(400) + b"\xff\1\0\0"
