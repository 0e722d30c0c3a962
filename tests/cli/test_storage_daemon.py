"""qobra-storage-daemon: options in order, errors in one line, readiness, signals, the background."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = [
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'qobra-storage-daemon'; from qobra.cli.storage_daemon import main; sys.exit(main())",
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


class Daemon:
    def __init__(self, *arguments: str, **options: Any) -> None:
        self.process = subprocess.Popen([*PROGRAM, *arguments], stdin=subprocess.DEVNULL, **options)

    def connect(self, path: Path) -> Any:
        deadline = time.monotonic() + 60
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(path))
                break
            except OSError:
                sock.close()
                assert self.process.poll() is None and time.monotonic() < deadline
                threading.Event().wait(0.005)
        sock.settimeout(60)
        stream = sock.makefile("rwb", buffering=0)
        assert b"QMP" in stream.readline()
        sock.close()
        self.call(stream, "qmp_capabilities")
        return stream

    def call(self, stream: Any, command: str, **arguments: Any) -> Any:
        stream.write(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            reply = json.loads(stream.readline())
            if "event" not in reply:
                return reply.get("return", reply.get("error", {}).get("desc"))


@pytest.fixture
def daemon() -> Iterator[Callable[..., Daemon]]:
    started: list[Daemon] = []

    def start(*arguments: str, **options: Any) -> Daemon:
        started.append(Daemon(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def monitor(path: Path) -> tuple[str, ...]:
    return ("--chardev", f"socket,id=qmp,path={path},server=on,wait=off", "--monitor", "chardev=qmp")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--foo"], "unrecognized option '--foo'"),
        (["-x"], "invalid option -- 'x'"),
        (["extra"], "extra: Unexpected argument"),
        (["--blockdev"], "option '--blockdev' requires an argument"),
        (["--daemonize=1"], "option '--daemonize' doesn't allow an argument"),
        (
            ["--blockdev", "driver=null-co"],
            "--blockdev driver=null-co: 'node-name' must be specified for the root node",
        ),
        (
            ["--blockdev", '{"driver":"null-co"}'],
            '--blockdev {"driver":"null-co"}: \'node-name\' must be specified for the root node',
        ),
        (["--blockdev", '{"driver":'], '--blockdev {"driver":: JSON parse error, premature EOI'),
        (["--blockdev", "{bad}"], "--blockdev {bad}: JSON parse error, invalid keyword 'bad'"),
        (["--blockdev", "{}x"], "--blockdev {}x: Expecting at most one JSON value"),
        (
            ["--blockdev", "null-co,node-name=a,size=x"],
            "--blockdev null-co,node-name=a,size=x: Parameter 'size' expects integer",
        ),
        (["--blockdev", "help"], "--blockdev help: Help is not available for this option"),
        (["--export", "nbd,id=e"], "--export nbd,id=e: Parameter 'node-name' is missing"),
        (
            ["--blockdev", "null-co,node-name=a", "--export", "nbd,id=e,node-name=a"],
            "--export nbd,id=e,node-name=a: NBD server not running",
        ),
        (["--nbd-server", "addr.type=unix"], "--nbd-server addr.type=unix: Parameter 'addr.path' is missing"),
        (
            ["--nbd-server", "addr.type=fd,addr.str=a"],
            "--nbd-server addr.type=fd,addr.str=a: Unable to parse FD number a",
        ),
        (
            ["--nbd-server", "addr.type=fd,addr.str=-1"],
            "--nbd-server addr.type=fd,addr.str=-1: File descriptor '-1' is not a socket",
        ),
        (
            ["--nbd-server", "addr.type=unix,addr.path=/proc/none/x"],
            "--nbd-server addr.type=unix,addr.path=/proc/none/x: "
            "Failed to bind socket to /proc/none/x: No such file or directory",
        ),
        (["--object", "secret"], "--object secret: Parameter 'id' is missing"),
        (["--ob=secret"], "--ob=secret: Parameter 'id' is missing"),
        (["--blockdev", "null-co,,node-name=a"], "--blockdev null-co,,node-name=a: Invalid parameter ''"),
        (["--trace", "foo=bar"], "--trace foo=bar: Invalid parameter 'foo'"),
        (
            ["--object", "secret,id=1,data=x"],
            "--object secret,id=1,data=x: Parameter 'id' expects an identifier\n"
            "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
        ),
        (["--object", "id=x"], "--object id=x: Parameter 'qom-type' is missing"),
        (["--object", "secret,id=s"], "--object secret,id=s: Either 'file' or 'data' must be provided"),
        (["--chardev", "null"], "--chardev null: chardev: no id specified"),
        (["--object", "nope,id=s"], "--object nope,id=s: Parameter 'qom-type' does not accept value 'nope'"),
        (
            ["--chardev", "null,id=a", "--chardev", "memory,id=a"],
            "--chardev memory,id=a: attempt to add duplicate property 'a' to object (type 'container')",
        ),
        (["--chardev", "socket,id=a,fd=x"], "--chardev socket,id=a,fd=x: Unable to parse FD number x"),
        (
            ["--chardev", "ringbuf,id=r,size=1000"],
            "--chardev ringbuf,id=r,size=1000: size of ringbuf chardev must be power of two",
        ),
        (["--daemonize", "--chardev", "stdio,id=s"], "--chardev stdio,id=s: cannot use stdio with -daemonize"),
        (
            ["--daemonize", "--chardev", "id=s,backend=stdio"],
            "--chardev id=s,backend=stdio: cannot use stdio with -daemonize",
        ),
        (["--blockdev", "null-co,'a'"], "--blockdev null-co,'a': Invalid parameter ''a''"),
        (["--monitor", "foo"], '--monitor foo: chardev "foo" not found'),
        (["--monitor", "pretty=on"], "--monitor pretty=on: Parameter 'chardev' is missing"),
        (
            ["--chardev", "null,id=a", "--monitor", "chardev=a,pretty=foo"],
            "--monitor chardev=a,pretty=foo: Parameter 'pretty' expects 'on' or 'off'",
        ),
        (
            ["--chardev", "null,id=a", "--monitor", "a", "--monitor", '{"chardev":"a"}'],
            '--monitor {"chardev":"a"}: Device \'a\' is in use',
        ),
        (
            ["--pidfile", "/proc/none/p"],
            "cannot create PID file: Could not create '/proc/none/p': No such file or directory",
        ),
    ],
)
def test_errors_are_one_line(arguments: list[str], text: str) -> None:
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"qobra-storage-daemon: {text}\n")


def test_a_file_of_trace_events_is_named_without_the_option() -> None:
    ended = run("--trace", "events=/proc/none")
    assert (ended.returncode, ended.stderr) == (1, "qobra-storage-daemon:/proc/none: No such file or directory\n")


def test_information() -> None:
    for option in ("-h", "--help", "--hel"):
        assert "--blockdev" in run(option).stdout
    assert run("-V").stdout.startswith("qobra-storage-daemon version 5.2.0 (qobra-")
    assert "  secret\n" in run("--object", "help").stdout
    assert "  data=<string>\n" in run("--object", "secret,help").stdout
    assert "  socket\n" in run("--chardev", "help").stdout
    assert run("--chardev", "socket,id=a,help").stdout.startswith("chardev options:\n  abstract=<bool (on/off)>\n")


def test_options_and_monitors(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    running = daemon(
        *("--trace", "anything"),
        *("--object", '{"qom-type":"secret","id":"s","data":"x"}'),
        *("--object", "throttle-group,id=tg,limits.iops-total=10"),
        *("--blockdev", "null-co,node-name=n,size=1048576,read-zeroes=on"),
        *("--blockdev", '{"driver":"raw","node-name":"r","file":"n"}'),
        *("--nbd-server", f"addr.type=unix,addr.path={tmp_path}/nbd"),
        *("--export", "nbd,id=e,node-name=r,writable=on"),
        *monitor(tmp_path / "one"),
        *("--chardev", f"socket,id=second,path={tmp_path}/two,server=on,wait=off"),
        *("--monitor", "second,pretty=off"),
    )
    one, two = running.connect(tmp_path / "one"), running.connect(tmp_path / "two")
    assert {node["node-name"] for node in running.call(two, "query-named-block-nodes")} == {"n", "r"}
    assert [export["id"] for export in running.call(one, "query-block-exports")] == ["e"]
    assert (tmp_path / "nbd").is_socket()
    assert running.call(one, "quit") == {}
    assert running.process.wait(60) == 0
    # Monitors take their sockets with them; the NBD server's stays unless the server is stopped, as with QEMU.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nbd"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_cleanly(daemon: Callable[..., Daemon], tmp_path: Path, number: int) -> None:
    image, pidfile = tmp_path / "image", tmp_path / "pid"
    image.write_bytes(bytes(1 << 20))
    running = daemon(
        *monitor(tmp_path / "qmp"),
        *("--pidfile", str(pidfile)),
        *("--blockdev", f"file,node-name=f,filename={image}"),
        *("--nbd-server", f"addr.type=unix,addr.path={tmp_path}/nbd"),
        *("--export", "nbd,id=e,node-name=f,writable=on"),
        stderr=subprocess.PIPE,
    )
    running.connect(tmp_path / "qmp")
    deadline = time.monotonic() + 60
    while not pidfile.exists() or not pidfile.read_text():
        assert running.process.poll() is None and time.monotonic() < deadline
        threading.Event().wait(0.005)
    assert int(pidfile.read_text()) == running.process.pid
    running.process.send_signal(number)
    _, errors = running.process.communicate(timeout=60)
    assert (running.process.returncode, errors) == (0, b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image", "nbd"]


def test_in_the_background(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    ended = run("--daemonize", "--pidfile", str(pidfile), *monitor(tmp_path / "qmp"))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    # The parent has ended, so everything is up.
    pid = int(pidfile.read_text())
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(tmp_path / "qmp"))
            assert b"QMP" in sock.recv(4096)
            assert os.readlink(f"/proc/{pid}/cwd") == "/"
            assert os.getsid(pid) != os.getsid(0)
            sock.sendall(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
            while sock.recv(4096):
                pass
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    deadline = time.monotonic() + 60
    while pidfile.exists():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_a_daemon_finds_its_sockets_again_at_the_end(tmp_path: Path) -> None:
    other = tmp_path / f"other{os.getpid()}"
    other.touch()  # like a socket that is none of the file system's
    options = [
        *("--daemonize", "--pidfile", "pid", "--blockdev", "null-co,node-name=n"),
        *("--export", f"vhost-user-blk,id=a,node-name=n,addr.type=unix,addr.path={other.name},addr.abstract=on"),
        *("--chardev", "socket,id=q,path=qmp,server=on,wait=off", "--nbd-server", "addr.type=unix,addr.path=nbd"),
        *("--export", "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=vhost"),
    ]
    subprocess.run([*PROGRAM, *options], cwd=tmp_path, stdin=subprocess.DEVNULL, check=True, timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nbd", other.name, "pid", "qmp", "vhost"]
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    deadline = time.monotonic() + 60
    while sorted(path.name for path in tmp_path.iterdir()) != ["nbd", other.name]:  # which QEMU leaves, too
        assert time.monotonic() < deadline, sorted(tmp_path.iterdir())
        threading.Event().wait(0.005)


def test_the_terminal_that_was_made_is_told() -> None:
    ended = run("--chardev", "pty,id=p", "--chardev", "tty,id=t,path=/dev/null", "--monitor", "none")
    assert re.fullmatch(r"char device redirected to /dev/pts/\d+ \(label p\)\n", ended.stdout)
    assert ended.stderr == (
        "qobra-storage-daemon: --chardev tty,id=t,path=/dev/null: warning: "
        "The alias 'tty' is deprecated, use 'serial' instead\n"
        'qobra-storage-daemon: --monitor none: chardev "none" not found\n'
    )


def test_failing_in_the_background_is_the_parents_failure() -> None:
    ended = run("--daemonize", "--monitor", "foo")
    assert ended.returncode == 1
    assert ended.stderr == 'qobra-storage-daemon: --monitor foo: chardev "foo" not found\n'


def test_stdio(tmp_path: Path) -> None:
    talk = b'{"execute":"qmp_capabilities"}\n{"execute":"query-version","id":1}\n{"execute":"quit","id":2}\n'
    ended = subprocess.run(
        [*PROGRAM, "--chardev", "stdio,id=s", "--monitor", "s"], input=talk, capture_output=True, timeout=60
    )
    assert ended.returncode == 0
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line.get("id") for line in lines] == [None, None, 1, 2]


def test_nobody_is_answered_before_all_options_are_done() -> None:
    export = b'{"execute": "block-export-add", "arguments": {"type": "nbd", "id": "e", "node-name": "late"}}'
    asked = b'{"execute": "qmp_capabilities"}{"execute": "query-named-block-nodes"}' + export + b'{"execute": "quit"}'
    options = ["--chardev", "stdio,id=c", "--monitor", "c", "--blockdev", "null-co,node-name=late",
               "--nbd-server", "addr.type=inet,addr.host=127.0.0.1,addr.port=0"]  # fmt: skip
    ended = subprocess.run([*PROGRAM, *options], input=asked, capture_output=True, timeout=60)
    assert ended.returncode == 0
    assert b'"node-name": "late"' in ended.stdout
    assert b"BLOCK_EXPORT_DELETED" in ended.stdout  # at the end, which its input has come to before


def test_an_inherited_descriptor(daemon: Callable[..., Daemon]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        running = daemon(
            *("--chardev", f"socket,id=c,fd={theirs.fileno()}", "--monitor", "c"), pass_fds=[theirs.fileno()]
        )
        theirs.close()
        ours.settimeout(60)
        assert b"QMP" in ours.recv(4096)
        ours.sendall(b'{"execute":"qmp_capabilities"}{"execute":"quit"}')
        assert running.process.wait(60) == 0
