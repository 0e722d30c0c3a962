"""qobra-nbd against qemu-nbd: what they tell a client, each listed by the other."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qobra.cli import img

pytestmark = pytest.mark.peer("qemu-nbd", "qemu-img")

OURS = [sys.executable, "-c", "import sys; from qobra.cli.nbd import main; sys.argv[0] = 'qemu-nbd'; sys.exit(main())"]
THEIRS = ["qemu-nbd"]

SETTINGS = [
    ["-f", "raw", "plain.raw"],
    ["-f", "raw", "-o", "65536", "plain.raw"],
    ["-f", "qcow2", "-r", "-e", "5", "-x", "disk", "-D", "a disk", "a.q"],
    ["-f", "qcow2", "-A", "-B", "b0", "a.q"],
    ["-f", "qcow2", "-s", "a.q"],
    ["-f", "qcow2", "-l", "one", "a.q"],
]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.raw").write_bytes(b"x" * (1 << 20))
    assert img.main(["create", "-q", "-f", "qcow2", "a.q", "1M"]) == 0
    assert img.main(["snapshot", "-c", "one", "a.q"]) == 0
    assert img.main(["bitmap", "--add", "a.q", "b0"]) == 0
    return tmp_path


@pytest.mark.parametrize("setting", SETTINGS, ids=" ".join)
def test_listed_alike(setting: list[str], images: Path) -> None:
    seen = []
    for server in (THEIRS, OURS):
        sock, pid_file = images / "sock", images / "pid"
        command = [*server, "--fork", "-t", "--pid-file", str(pid_file), "-k", str(sock), *setting]
        started = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (started.returncode, started.stderr) == (0, "")
        try:
            for client in (THEIRS, OURS):
                listed = subprocess.run(
                    [*client, "-L", "-k", str(sock)], capture_output=True, text=True, timeout=60, check=True
                )
                seen.append(listed.stdout)
        finally:
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
    assert len(set(seen)) == 1, "\n".join(seen)


@pytest.mark.peer("nbdinfo")
@pytest.mark.parametrize(
    "setting", [["-f", "raw", "plain.raw"], ["-f", "qcow2", "-A", "-B", "b1", "-B", "b0", "top.q"]], ids=" ".join
)
def test_seen_alike_on_a_passed_socket(setting: list[str], images: Path) -> None:
    """nbdinfo starts the server itself and passes it the socket."""
    subprocess.run(["qemu-io", "-c", "write -P 1 100k 100k", "-c", "write -z 512k 64k", "a.q"], check=True)
    assert img.main(["create", "-q", "-f", "qcow2", "-b", "a.q", "-F", "qcow2", "top.q"]) == 0
    assert img.main(["bitmap", "--add", "-g", "4k", "top.q", "b0"]) == 0
    subprocess.run(["qemu-io", "-c", "write -P 2 300k 9k", "top.q"], check=True)
    assert img.main(["bitmap", "--add", "--disable", "top.q", "b1"]) == 0
    seen = []
    for server in (THEIRS, OURS):
        for question in (
            ["--map"], ["--map=qemu:allocation-depth"], ["--map=qemu:dirty-bitmap:b0"], ["--json", "--no-content"],
        ):  # fmt: skip
            done = subprocess.run(
                ["nbdinfo", *question, "--", "[", *server, *setting, "]"], capture_output=True, text=True, timeout=60
            )
            seen.append((done.returncode, re.sub(r"socket=\S+", "socket=X", done.stdout), done.stderr))
    assert seen[4:] == seen[:4]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-e", "x", "plain.raw"], ["-k", "relative", "plain.raw"], ["-o", "x", "plain.raw"],
        ["-f", "raw", "-o", "-5", "plain.raw"], ["-f", "qcow2", "-l", "snapshot.x=1", "a.q"],
        ["--cache=bogus", "plain.raw"],
        ["--aio=bogus", "plain.raw"], ["--discard=bogus", "plain.raw"], ["--detect-zeroes=unmap", "plain.raw"],
        ["--tls-authz", "x", "plain.raw"], ["-L", "plain.raw"], ["-n", "--cache=none", "plain.raw"], ["missing"],
        ["-f", "bogus", "plain.raw"], ["-d", "/dev/missing"], ["--image-opts", "-f", "raw", "plain.raw"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_errors_alike(arguments: list[str], images: Path) -> None:
    results = []
    where = [] if {"-k", "-L", "-d"} & set(arguments) else ["-k", str(images / "sock")]
    for program in (THEIRS, OURS):
        done = subprocess.run([*program, *where, *arguments], capture_output=True, text=True, timeout=60)
        results.append((done.returncode, done.stdout, done.stderr))
    assert results[0] == results[1]
