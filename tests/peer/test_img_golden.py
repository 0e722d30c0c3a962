"""qobra-img, qobra-io and qobra-nbd against QEMU's: the same command lines, texts, JSON and exit statuses.

Each line of ``golden/*.txt`` is a scenario: commands with ``;`` between them, run in a copy of the same directory, once
by QEMU's programs and once by ours. ``docs/tools.md`` lists the differences that are meant, which have no line here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
PROGRAMS = ("qemu-img", "qemu-io", "qemu-nbd")

pytestmark = pytest.mark.peer(*PROGRAMS)


def scenarios() -> list[str]:
    lines = []
    for path in sorted(GOLDEN.glob("*.txt")):
        lines += [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return lines


def split(line: str) -> list[list[str]]:
    commands: list[list[str]] = [[]]
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";")
    lexer.whitespace_split = True
    for word in lexer:
        if word == ";":
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


def normal(text: str) -> str:
    """What may differ: times, how much is taken for metadata, names that are made up."""
    text = re.sub(r"\d\d\.\d\d sec \([^)]*\)", "TIME", text)
    text = re.sub(r"\d+\.\d+ seconds", "TIME", text)
    text = re.sub(r"^(disk size: |    *\"actual-size\": ).*$", r"\1SIZE", text, flags=re.M)
    text = re.sub(r"^(Image end offset: |    *\"image-end-offset\": ).*$", r"\1OFFSET", text, flags=re.M)
    text = re.sub(r"^([a-z_]+ .*)-- .*$", r"\1", text, flags=re.M)  # how a command of qemu-io is written
    return re.sub(r"#block\w+", "#block", text)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that every scenario starts from."""
    path: Path = tmp_path_factory.mktemp("golden")
    subprocess.run(["sh", str(GOLDEN / "images.sh")], cwd=path, check=True, capture_output=True)
    return path


def run_theirs(command: list[str], cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=60
    )
    return done.returncode, normal(done.stdout), normal(done.stderr)


def run_ours(command: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    from qobra.cli import img, io, nbd

    capfd.readouterr()
    status = {"qemu-img": img.main, "qemu-io": io.main, "qemu-nbd": nbd.main}[command[0]](command[1:], command[0])
    out, err = capfd.readouterr()
    return status, normal(out), normal(err)


@pytest.mark.parametrize("line", scenarios())
def test_same_as_qemu(
    line: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    results = []
    for ours in (False, True):
        where = tmp_path / "w"
        shutil.rmtree(where, ignore_errors=True)
        subprocess.run(["cp", "-a", "--sparse=always", str(images), str(where)], check=True)
        monkeypatch.chdir(where)
        outcome = []
        for command in split(line):
            outcome.append(run_ours(command, capfd) if ours else run_theirs(command, where))
        results.append(outcome)
        monkeypatch.chdir(os.sep)
    assert results[1] == results[0]
