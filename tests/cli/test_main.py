"""`qobra SUBCOMMAND`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qobra.cli.subcommand
from qobra.cli import main as program

DIRECTORY = Path(next(iter(qobra.cli.subcommand.__path__)))


def test_every_subcommand_has_help_and_main() -> None:
    for path in DIRECTORY.glob("[!_]*.py"):
        tree = ast.parse(path.read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert "main" in names, path
        assert any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HELP" for node in tree.body), path


def test_help_lists_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in program.subcommands():
        assert f"  {name} " in out
    assert "print shell completion" in out


def test_unknown_subcommand_suggests_a_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["completoin"]) == 2
    assert "did you mean 'completion'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["..main", "subcommand/demo", "__init__", ""])
def test_only_subcommands_are_found(name: str) -> None:
    assert program.module_of(name) is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_subcommand(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in program.subcommands())


def test_completion_is_valid_bash() -> None:
    script = subprocess.run(
        [sys.executable, "-m", "qobra.cli.main", "completion", "bash"], stdout=subprocess.PIPE, check=True
    ).stdout
    check = script + b'COMP_WORDS=(qobra compl); COMP_CWORD=1; _qobra; echo "${COMPREPLY[@]}"'
    result = subprocess.run(["bash"], input=check, stdout=subprocess.PIPE, check=True)
    assert result.stdout.split() == [b"completion"]
