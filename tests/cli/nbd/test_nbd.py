"""qobra-nbd as a process, with Qobra's own NBD client; peers are in tests/peer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qobra.nbd
from qobra.cli import img, nbd

SCRIPT = "import sys; from qobra.cli.nbd import main; sys.argv[0] = 'qobra-nbd'; sys.exit(main())"


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, "--fork", *arguments], capture_output=True, text=True, timeout=60
    )


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return  # it has ended, and whoever has taken it in has yet to look
        time.sleep(0.02)
    raise AssertionError("the server has not ended")


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = str(tmp_path / "a.q")
    img.main(["create", "-q", "-f", "qcow2", path, "1M"])
    return path


def test_serves_until_the_last_client_has_left(disk: str, tmp_path: Path) -> None:
    sock, pid_file = str(tmp_path / "s"), tmp_path / "pid"
    done = start("--pid-file", str(pid_file), "-k", sock, "-f", "qcow2", "-x", "x", disk)
    assert (done.returncode, done.stderr) == (0, "")
    pid = int(pid_file.read_text())
    with qobra.nbd.connect(f"nbd+unix:///x?socket={sock}") as client:
        assert client.size == 1 << 20
        client.pwrite(b"hello", 100)
    wait_gone(pid)
    assert not os.path.exists(sock)
    with qobra.open(disk) as image:
        assert image.pread(5, 100) == b"hello"


def test_persistent_until_a_signal(disk: str, tmp_path: Path) -> None:
    sock, pid_file = str(tmp_path / "s"), tmp_path / "pid"
    assert start("-t", "-r", "-e", "2", "--pid-file", str(pid_file), "-k", sock, "-f", "qcow2", disk).returncode == 0
    pid = int(pid_file.read_text())
    for _ in range(2):
        with qobra.nbd.connect(f"nbd+unix:///?socket={sock}") as client:
            assert client.read_only
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    os.kill(pid, signal.SIGTERM)
    wait_gone(pid)


_SIGNALLED = """
import os, signal, sys
from qobra.cli import nbd
from qobra.cli._nbd import serve

def signalled(cls, name):
    method = getattr(cls, name)
    def run(*arguments, **options):
        result = method(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return result
    setattr(cls, name, run)

signalled(*{"accept": (serve.Server, "accept"), "open": (nbd.Images, "open")}[sys.argv.pop(1)])
nbd.main()
"""


@pytest.mark.parametrize(("when", "status"), [("accept", 0), ("open", -signal.SIGTERM)])
def test_a_signal_at_any_moment_closes_the_image(disk: str, tmp_path: Path, when: str, status: int) -> None:
    """A client that has what it wants at once may end the server before that has begun to wait."""
    assert img.main(["bitmap", "--add", disk, "b0"]) == 0
    arguments = ["-k", str(tmp_path / "s"), "-f", "qcow2", "-B", "b0", disk]
    done = subprocess.run(
        [sys.executable, "-c", _SIGNALLED, when, *arguments], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    with qobra.open(disk) as image:
        assert image.node.bitmaps["b0"].inconsistent is False


def test_a_failure_is_told_by_the_parent(tmp_path: Path) -> None:
    done = start("-k", str(tmp_path / "s"), str(tmp_path / "missing"))
    assert done.returncode == 1
    assert done.stderr.startswith("qobra-nbd: Failed to blk_new_open ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["-e", "99999999999"], "Invalid shared device number '99999999999'"),
        (["-o", "99999999999999999999"], "Invalid offset '99999999999999999999'"),
        (["-n", "-n"], "-n and --cache can only be specified once"),
        (["--aio=native", "--aio=threads"], "--aio can only be specified once"),
        (["--discard=on", "--discard=off"], "--discard can only be specified once"),
        (["--detect-zeroes=unmap", "--discard=unmap"], "setting detect-zeroes to unmap is not allowed without"),
        (["--tls-hostname", "x"], "--tls-hostname is not permitted without --tls-creds"),
        (["-L"], "List mode is incompatible with a file name"),
        (["--object", "x"], "Parameter 'qom-type' does not accept value 'x'"),
        (["-k", "s"], "socket path must be absolute"),
        (["-k", "/" + "a" * 107], f"UNIX socket path '/{'a' * 107}' is too long\nPath must be less than 108 bytes\n"),
    ],
)
def test_options_that_cannot_be(options: list[str], error: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert nbd.main([*options, "nofile"]) == 1
    assert capfd.readouterr().err.startswith(f"qobra-nbd: {error}")


def test_a_file_that_cannot_be_past_the_hosts_cache(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = "/proc/version"
    assert nbd.main(["-n", "-f", "raw", "-r", "-k", str(tmp_path / "s"), name], "qemu-nbd") == 1
    reason = f"Could not open '{name}': filesystem does not support O_DIRECT"
    assert capfd.readouterr().err == f"qemu-nbd: Failed to blk_new_open '{name}': {reason}\n"


@pytest.mark.parametrize(
    "option", ["-x=a", "-D=a", "-o=1", "-c=a", "-f=raw", "-l=a", "-B=a", "-A", "-n", "--aio=threads"]
)
def test_a_list_has_nothing_of_one_device(option: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert nbd.main(["-L", "-k", "/nosock", *option.split("=")]) == 1
    assert capfd.readouterr().err == "qobra-nbd: List mode is incompatible with per-device settings\n"


def test_an_image_that_cannot_be_served_is_closed(disk: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    img.main(["bitmap", "--add", disk, "b"])
    assert nbd.main(["-k", str(tmp_path / "s"), "-B", "nosuch", disk]) == 1
    capfd.readouterr()
    assert img.main(["info", disk]) == 0
    assert "in-use" not in capfd.readouterr().out


def test_a_pid_file_that_another_holds(disk: str, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    assert start("-t", "--pid-file", str(pid_file), "-k", str(tmp_path / "s"), disk).returncode == 0
    done = start("-t", "--pid-file", str(pid_file), "-k", str(tmp_path / "t"), "-r", "null-co://")
    os.kill(pid := int(pid_file.read_text()), signal.SIGTERM)
    wait_gone(pid)
    assert done.returncode == 1
    assert done.stderr == "qobra-nbd: Cannot lock pid file: Resource temporarily unavailable\n"


def test_what_is_wrong_first_is_told(disk: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "nodir" / "s")
    for arguments, error in (
        (["-o", "x", "--nosuch"], "Invalid offset 'x'"),
        (["--object", "secret,id=s", "--nosuch"], "Either 'file' or 'data' must be provided"),
        (["-k", nowhere, "nofile"], f"Failed to bind socket to {nowhere}: No such file or directory"),
        (["-o", "-1", disk, disk], "Invalid number of arguments"),
        (["--tls-creds", "x", "--tls-hostname", "y", disk], "TLS hostname is only supported with export list"),
        (["-o", "-1", "-k", str(tmp_path / "s"), disk], "Parameter 'offset' expects a non-negative number below 2^64"),
        (["--selinux-label", "x", disk], "--selinux-label is not permitted without --socket"),
    ):
        assert nbd.main(arguments, "qemu-nbd") == 1
        assert capfd.readouterr().err.startswith(f"qemu-nbd: {error}\n")


def test_a_socket_that_nothing_is_served_on_goes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert nbd.main(["-k", str(tmp_path / "s"), str(tmp_path / "nofile")], "qemu-nbd") == 1
    assert "No such file or directory" in capfd.readouterr().err
    assert not (tmp_path / "s").exists()
