"""Each kind of character device, both ways."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from qobra.errors import QobraError
from qobra.machine.machine import Machine


def make(machine: Machine, id: str, kind: str, **data: Any) -> Any:
    options = {key.replace("_", "-"): value for key, value in data.items()}
    return machine.chardevs.create(id, {"type": kind, "data": options})


def test_null_takes_everything(machine: Machine, recorder: Any) -> None:
    device = make(machine, "n", "null")
    device.attach(recorder())
    assert device.write(b"x" * 100000) == 100000
    assert (device.filename(), device.frontend_open) == ("null", True)


def test_ring_buffer_keeps_the_latest(machine: Machine) -> None:
    ring = make(machine, "r", "ringbuf", size=8)
    ring.write(b"abcdef")
    assert ring.read(2) == b"ab"
    ring.write(b"ghijkl")
    assert ring.read(100) == b"efghijkl"
    ring.write(b"0123456789" * 10)
    assert ring.read(3) == b"234"
    with pytest.raises(QobraError, match=r"^Failed to add chardev 'q': size of ringbuf chardev must be power of two$"):
        make(machine, "q", "ringbuf", size=12)
    assert make(machine, "m", "memory").filename() == "memory"


def test_file(machine: Machine, recorder: Any, eventually: Any, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"input")
    (tmp_path / "out").write_bytes(b"old")
    device = make(machine, "f", "file", out=str(tmp_path / "out"), **{"in": str(tmp_path / "in")}, append=True)
    front = recorder()
    device.attach(front)
    device.write_all(b"new" * 50000)
    eventually(lambda: front.data == b"input" and "closed" in front.events)
    machine.chardevs.close()
    assert (tmp_path / "out").read_bytes() == b"old" + b"new" * 50000
    plain = make(machine, "g", "file", out=str(tmp_path / "out"))
    plain.close()
    assert (tmp_path / "out").read_bytes() == b""


def test_file_of_an_fd_set(machine: Machine, tmp_path: Path) -> None:
    machine.fdsets.add(os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT), 3)
    make(machine, "f", "file", out="/dev/fdset/3").write_all(b"through")
    assert (tmp_path / "out").read_bytes() == b"through"
    with pytest.raises(QobraError, match="Could not open '/dev/fdset/4': No such file or directory"):
        make(machine, "g", "file", out="/dev/fdset/4")


def test_log_file(machine: Machine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before ")
    device = make(machine, "n", "null", logfile=str(log), logappend=True)
    device.write(b"out")
    assert log.read_bytes() == b"before out"
    make(machine, "m", "null", logfile=str(log)).write(b"x")
    assert log.read_bytes() == b"x"


def test_pipe(machine: Machine, recorder: Any, eventually: Any, tmp_path: Path) -> None:
    base = str(tmp_path / "p")
    os.mkfifo(base + ".in")
    os.mkfifo(base + ".out")
    device = make(machine, "p", "pipe", device=base)
    front = recorder()
    device.attach(front)
    device.write_all(b"hello")
    with open(base + ".out", "rb", buffering=0) as out:
        assert out.read(5) == b"hello"
    for _ in range(2):  # a writer that leaves does not end the device
        with open(base + ".in", "wb", buffering=0) as into:
            into.write(b"x")
    eventually(lambda: front.data == b"xx")
    # A peer that does not read holds the writer back, not the machine.
    total = sent = device.write(b"y" * 100)
    while sent:
        sent = device.write(b"y" * 4096)
        total += sent
    assert total < 1 << 22
    assert not device.wait_writable(0.01)


def test_pty(machine: Machine, recorder: Any, eventually: Any) -> None:
    device = make(machine, "p", "pty")
    name = device.return_info()["pty"]
    assert device.filename() == f"pty:{name}"
    front = recorder()
    device.attach(front)
    assert device.write(b"to nobody") == 9
    slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
    eventually(lambda: front.events == ["opened"])
    os.write(slave, b"a\x03\n")
    eventually(lambda: front.data == b"a\x03\n")
    device.write_all(b"reply\n")
    assert os.read(slave, 100) == b"reply\n"
    os.close(slave)
    eventually(lambda: front.events == ["opened", "closed"])


def test_serial(machine: Machine, recorder: Any, eventually: Any) -> None:
    master, slave = os.openpty()
    device = make(machine, "s", "serial", device=os.ttyname(slave))
    os.close(slave)
    front = recorder()
    device.attach(front)
    device.set_parameters(9600, "E", 8, 2)
    os.write(master, b"\x00in\r")
    eventually(lambda: front.data == b"\x00in\r")
    device.write_all(b"out\n")
    assert os.read(master, 100) == b"out\n"
    device.send_break()
    os.close(master)


def test_a_serial_port_that_is_no_terminal_is_used_as_it_is(machine: Machine) -> None:
    device = make(machine, "t", "serial", device="/dev/null")
    device.set_parameters(9600, "N", 8, 1)
    device.send_break()
    device.write_all(b"gone")


def test_udp(machine: Machine, recorder: Any, eventually: Any) -> None:
    peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    peer.bind(("127.0.0.1", 0))
    peer.settimeout(30)
    host, port = peer.getsockname()
    remote = {"type": "inet", "data": {"host": host, "port": str(port)}}
    local = {"type": "inet", "data": {"host": host, "port": "0"}}
    device = make(machine, "u", "udp", remote=remote, local=local)
    front = recorder(limit=2)
    device.attach(front)
    device.write_all(b"datagram")
    data, address = peer.recvfrom(100)
    assert data == b"datagram"
    peer.sendto(b"answer", address)
    eventually(lambda: front.data == b"answer")
    assert front.longest == 2
    peer.close()
    assert device.write(b"lost") == 4


class TestMux:
    def test_input_goes_to_the_one_in_focus(self, machine: Machine, recorder: Any) -> None:
        base = make(machine, "b", "null")
        mux = make(machine, "m", "mux", chardev="b")
        first, second = recorder(), recorder()
        mux.attach(first)
        mux.attach(second)
        base.set_open(True)
        base.deliver(b"one\x01cto first\x01\x01\x01ctwo")
        assert (first.data, second.data) == (b"to first\x01", b"onetwo")
        assert first.events == second.events == ["opened"]
        base.deliver(b"\x01")
        base.deliver(b"b")
        assert second.events == ["opened", "break"]

    def test_limits_and_names(self, machine: Machine, recorder: Any) -> None:
        make(machine, "b", "null")
        mux = make(machine, "m", "mux", chardev="b")
        for _ in range(4):
            mux.attach(recorder())
        with pytest.raises(QobraError, match="too many uses"):
            mux.attach(recorder())
        with pytest.raises(QobraError, match="mux: base chardev zz not found"):
            make(machine, "n", "mux", chardev="zz")
        with pytest.raises(QobraError, match="Device 'b' is in use"):
            make(machine, "n", "mux", chardev="b")
        with pytest.raises(QobraError, match="Chardev 'b' is busy"):
            machine.chardevs.remove("b")

    def test_help_and_time_stamps(self, machine: Machine, recorder: Any) -> None:
        ring = make(machine, "b", "ringbuf")
        mux = make(machine, "m", "mux", chardev="b")
        mux.attach(recorder())
        ring.deliver(b"\x01h")
        assert b"switch between" in ring.read(1000)
        machine.chardevs.escape = 0x14  # Ctrl-T
        ring.deliver(b"\x14h")
        assert b"C-t c    switch" in ring.read(1000)
        machine.chardevs.escape = 0x01
        ring.deliver(b"\x01t")
        mux.write(b"line\nnext")
        assert ring.read(100).count(b"[00:00:0") == 2
        ring.deliver(b"\x01t")
        mux.write(b"plain")
        assert ring.read(100) == b"plain"

    def test_x_ends_the_program(self, machine: Machine, recorder: Any) -> None:
        base = make(machine, "b", "null")
        make(machine, "m", "mux", chardev="b").attach(recorder())
        base.deliver(b"\x01x")
        assert machine.wait_for_exit(30)


def test_input_waits_for_room(machine: Machine, recorder: Any, eventually: Any, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"0123456789")
    device = make(machine, "f", "file", out="/dev/null", **{"in": str(tmp_path / "in")})
    front = recorder(limit=0)
    device.attach(front)
    threading.Event().wait(0.01)
    assert front.data == b""
    front.limit = 3
    device.accept_input()
    eventually(lambda: front.data == b"0123456789")
    assert front.longest == 3


def test_change_keeps_the_front_end(machine: Machine, recorder: Any) -> None:
    make(machine, "a", "null")
    front = recorder()
    machine.chardevs.get("a").attach(front)
    new = machine.chardevs.change("a", {"type": "ringbuf", "data": {}})
    assert machine.chardevs.get("a") is new
    new.deliver(b"x")
    assert front.data == b"x"
    with pytest.raises(QobraError, match="Chardev 'zz' does not exist"):
        machine.chardevs.change("zz", {"type": "null", "data": {}})
    front.hotswap = False
    with pytest.raises(QobraError, match="Chardev user does not support chardev hotswap"):
        machine.chardevs.change("a", {"type": "null", "data": {}})
    with pytest.raises(QobraError, match="already exists"):
        make(machine, "a", "null")


@pytest.mark.parametrize(
    ("text", "status"), [("3q", 7), ("q", 1), ("12 q", 25), ("x5q", 11), ("300q", 89), ("4x5q", 11)]
)
def test_testdev_ends_the_machine(machine: Machine, text: str, status: int) -> None:
    device = machine.chardevs.create("t", {"type": "testdev", "data": {}})
    for character in text:
        assert not machine.is_ending
        device.write_all(character.encode())
    assert machine.is_ending and machine.run_state.exit_status == status
