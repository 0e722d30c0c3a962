"""What the options say of the process: what precedes its messages, what its threads are called."""

from __future__ import annotations

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
