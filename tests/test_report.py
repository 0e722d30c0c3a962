"""What is told on standard output and error, which may be full, gone or closed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qobra.report import print_error, report_line
from qobra.testing.storage_daemon import OURS, StorageDaemon

TIMEOUT = 60.0


@pytest.mark.parametrize("reader", ["full", "gone"])
def test_a_line_that_nobody_can_read_fails_nothing(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reader == "full":
        number = os.open("/dev/full", os.O_WRONLY)
    else:
        end, number = os.pipe()
        os.close(end)
    with open(number, "w", buffering=1, closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        for _ in range(2):
            report_line("x" * 10000)
            print_error("y")
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
    os.close(number)


def test_a_daemon_opens_nothing_in_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    shell = 'exec "$@" <&- >&- 2>&-'
    command = ["sh", "-c", shell, "sh", *OURS, "--pidfile", "pid"]
    process = subprocess.Popen(command, cwd=tmp_path)
    try:
        while not (tmp_path / "pid").exists():
            assert process.poll() is None
        found = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)]
        assert found == [os.devnull] * 3
    finally:
        process.terminate()
        process.wait(TIMEOUT)


_SYSTEM = [sys.executable, "-c", "import sys; from qobra.cli.system import main_x86_64 as main; sys.exit(main())"]


@pytest.mark.parametrize(
    "command",
    [
        [*OURS, "--version"],
        [*OURS, "--object", "help"],
        [*OURS, "--trace", "help"],
        [*_SYSTEM, "-version"],
        [*_SYSTEM, "-h"],
        [*_SYSTEM, "-machine", "help"],
        [*_SYSTEM, "-d", "help"],
    ],
)
def test_an_answer_that_cannot_be_given(command: list[str]) -> None:
    end, gone = os.pipe()
    os.close(end)
    done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
    os.close(gone)
    assert (done.returncode, done.stderr) == (1, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stderr) == (1, "-c: standard output: No space left on device\n")


def test_no_command_fails_because_nobody_reads_what_it_says(tmp_path: Path) -> None:
    daemon = StorageDaemon(["sh", "-c", 'exec "$@" >/dev/full', "sh", *OURS], tmp_path)
    try:
        daemon.execute("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 65536})
        for name in ("a", "b"):
            arguments = {"node-name": "n", "snapshot-file": name, "snapshot-node-name": name}
            daemon.execute("blockdev-snapshot-sync", arguments)
            assert (tmp_path / name).stat().st_size
    finally:
        daemon.quit()
