"""qobra-nbd against qemu-nbd: what they tell a client, each listed by the other."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["-e", "x", "plain.raw"], ["-k", "relative", "plain.raw"], ["-o", "x", "plain.raw"],
        ["--cache=bogus", "plain.raw"],
        ["--aio=bogus", "plain.raw"], ["--discard=bogus", "plain.raw"], ["--detect-zeroes=unmap", "plain.raw"],
        ["--tls-authz", "x", "plain.raw"], ["-L", "plain.raw"], ["-n", "--cache=none", "plain.raw"], ["missing"],
        ["-f", "bogus", "plain.raw"], ["-d", "/dev/missing"], ["--image-opts", "-f", "raw", "plain.raw"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_errors_alike(arguments: list[str], images: Path) -> None:
    results = []
    for program in (THEIRS, OURS):
        done = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=60)
        results.append((done.returncode, done.stdout, done.stderr))
    assert results[0] == results[1]
