"""What the tools print where a person reads it: nothing in it controls the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qobra.cli import img
from qobra.report import visible

NAME = "a\x1b[31mred\x1b]0;title\x07\x08\r\udc9b1mé\tb\nfake"
SHOWN = "a\\x1b[31mred\\x1b]0;title\\x07\\x08\\r\\x9b1mé\tb\r\nfake"
"""The name on a terminal, which shows where a line ends in its own way."""
QOBRA = "import sys; from qobra.cli.main import main; sys.exit(main())"
IMG = "import sys; from qobra.cli.img import main; main()"


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    path = tmp_path / "overlay"
    assert img.main(["create", "-q", "-f", "qcow2", "-u", "-b", NAME, "-F", "raw", str(path), "1M"]) == 0
    return path


def on_terminal(program: str, *arguments: str) -> str:
    """What a person sees of a program on standard output and error."""
    terminal, side = os.openpty()
    environment = {**os.environ, "PYTHONUTF8": "1", "TERM": "xterm"}
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=side, stderr=side, env=environment) as process:
        os.close(side)
        seen = b""
        try:
            while part := os.read(terminal, 65536):
                seen += part
        except OSError:
            pass  # the other side is closed
        process.wait(30)
    os.close(terminal)
    return seen.decode("utf-8", "surrogateescape")


def test_names_in_images_do_not_control_a_terminal(overlay: Path) -> None:
    assert f"backing file: {SHOWN} (actual" in on_terminal(IMG, "info", str(overlay))
    seen = on_terminal(IMG, "check", str(overlay))
    assert seen.startswith("-c: Could not open") and SHOWN in seen
    assert not set(seen) & set("\x1b\x07\x08\udc9b")


@pytest.mark.parametrize("subcommand", [["img", "check"], ["img", "info"], ["img", "tree"], ["img", "inspect"]])
def test_nor_with_programs_for_people(subcommand: list[str], overlay: Path) -> None:
    seen = on_terminal(QOBRA, *subcommand, str(overlay))
    assert "\\x1b[31mred" in seen and not set(seen) & set("\x1b\x07\x08\udc9b")


def test_a_pipe_gets_the_octets(overlay: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IMG, "info", str(overlay)], stdout=subprocess.PIPE, timeout=60)
    assert f"backing file: {NAME} (actual".encode("utf-8", "surrogateescape") in done.stdout


def test_progress_is_drawn_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * 65536)
    convert = ["convert", "-p", "-O", "raw", str(tmp_path / "disk"), str(tmp_path / "copy")]
    assert on_terminal(IMG, *convert).endswith("    (100.00/100%)\r\r\n")
    pytest.importorskip("rich")
    seen = on_terminal(QOBRA, "img", *convert)
    assert "\x1b[" in seen and "\\x1b" not in seen


def test_visible() -> None:
    assert visible("a\x1b\n\x85\udcff\udc00\u202eé") == "a\\x1b\\n\\x85\\xff\\udc00\\u202eé"
    assert visible("a\n\x1b", "\n") == "a\n\\x1b"
