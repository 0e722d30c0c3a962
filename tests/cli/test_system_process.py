"""What the options say of the process: what precedes its messages, what its threads are called."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qobra import report

_MAIN = "import sys; from qobra.cli.system import main; sys.exit(main('x86_64', sys.argv[1:]))"


def _run(*arguments: str) -> str:
    command = [sys.executable, "-c", _MAIN, "-display", "none", "-machine", "none", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr


@pytest.mark.parametrize(
    ("arguments", "before"),
    [
        (["-msg", "timestamp=on"], r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z "),
        (["-msg", "guest-name=on", "-name", "vm"], "vm "),
        (["-name", "vm", "-msg", "timestamp=on,guest-name=on"], r"\d{4}-\S+Z vm "),
        (["-msg", "guest-name=on"], ""),
        (["-msg", "timestamp=off", "-name", "vm"], ""),
    ],
)
def test_what_precedes_messages(arguments: list[str], before: str) -> None:
    assert re.fullmatch(
        before + r"-c: -device nope: 'nope' is not a valid device model name\n", _run(*arguments, "-device", "nope")
    )


def test_trace_events_that_do_not_exist_are_named(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("# of mine\nnope\n")
    text = _run("-trace", "bdrv_*", "-trace", f"events={tmp_path}/events", "-trace", "bogus=1")
    assert "warning: trace event 'nope' does not exist" in text
    assert "bdrv_" not in text
    assert text.endswith("-trace bogus=1: Invalid parameter 'bogus'\n")


def _serve(*arguments: str, commands: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    lines = "".join(f'{{"execute": "{each}"}}\n' for each in ("qmp_capabilities", *commands))
    command = [sys.executable, "-c", _MAIN, "-nodefaults", "-display", "none", "-qmp", "stdio", *arguments]
    return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60, check=False)


def test_a_board_that_cannot_be_made_ends_the_program() -> None:
    done = _serve("-preconfig", "-device", "nope", commands=("x-exit-preconfig", "query-status"))
    assert done.returncode == 1
    assert "'nope' is not a valid device model name" in done.stderr
    assert "prelaunch" not in done.stdout


def test_nobody_is_answered_by_a_machine_that_fails_to_start() -> None:
    done = _serve("-device", "nope", commands=("query-status", "quit"))
    assert done.returncode == 1 and '"return"' not in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")
@pytest.mark.parametrize("option", ["chroot", "runas"])
def test_a_machine_without_its_files_goes_on(option: str, tmp_path: Path) -> None:
    asked = (
        "query-block",
        "query-machines",
        "qom-list-types",
        "query-qmp-schema",
        "query-pci",
        "query-cpus-fast",
        "quit",
    )
    done = _serve(f"-{option}", str(tmp_path) if option == "chroot" else "65534:65534", commands=asked)
    assert done.returncode == 0 and done.stdout.count('{"return": ') == len(asked) + 1, done.stdout[-500:]


def test_threads_have_names() -> None:
    script = (
        "import threading, sys; from pathlib import Path; from qobra.cli._system import process\n"
        "process.set_up({'process': 'machine', 'debug-threads': True}, lock_memory=False)\n"
        "found = []\n"
        "def look(): found.append(Path(f'/proc/self/task/{threading.get_native_id()}/comm').read_text().strip())\n"
        "look(); thread = threading.Thread(target=look, name='IO of mine'); thread.start(); thread.join()\n"
        "print(found)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "['machine', 'IO of mine']\n"


def test_lines_are_plain_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    report.report_warning("odd")
    assert capsys.readouterr().err == f"{report.program()}: warning: odd\n"


def test_people_are_told_which_terminal_a_port_is_on() -> None:
    done = _serve("-serial", "pty", "-chardev", "pty,id=mine", commands=("quit",))
    assert re.search(r"^char device redirected to /dev/pts/\d+ \(label serial0\)$", done.stdout, re.MULTILINE)
    assert re.search(r"^char device redirected to /dev/pts/\d+ \(label mine\)$", done.stdout, re.MULTILINE)
