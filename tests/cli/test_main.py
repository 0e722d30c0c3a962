"""`qobra SUBCOMMAND`."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import qobra.cli.subcommand
from qobra.cli import main as program
from qobra.cli.subcommand import completion

DIRECTORY = Path(next(iter(qobra.cli.subcommand.__path__)))


def test_every_subcommand_has_help_and_main() -> None:
    for path in DIRECTORY.glob("[!_]*.py"):
        tree = ast.parse(path.read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert "main" in names, path
        assert any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HELP" for node in tree.body), path


def test_the_package_runs_as_the_program_does() -> None:
    for arguments, code in ((["--version"], 0), (["no-such"], 2)):
        ran = subprocess.run([sys.executable, "-m", "qobra", *arguments], capture_output=True, text=True, timeout=60)
        told = ran.stdout + ran.stderr
        assert ran.returncode == code and told.startswith("qobra") and told.count("\n") == 1, told


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


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["qobra"], {"img", "schema", "storage-daemon", "--help"}),
        (["qobra", "img"], {"convert", "inspect", "snapshot"}),
        (["qobra-img"], {"convert", "snapshot"}),
        (["qobra", "img", "convert", "-p"], {"-O", "-W", "--target-is-zero", "--salvage"}),
        (["qobra", "schema"], {"check", "diff", "coverage"}),
        (["/usr/bin/qobra-nbd"], {"--socket", "--persistent", "-k"}),
        (["qobra-system-x86_64"], {"-device", "-blockdev"}),
        (["qobra", "img", "convert", "-O"], {"qcow2", "raw"}),
        (["qobra-io", "-f"], {"qcow2", "raw"}),
        (["qobra", "schema", "show"], {"--json", "blockdev-add", "BLOCK_JOB_READY", "BlockdevOptions"}),
        (["qobra", "completion"], {"bash", "zsh", "fish"}),
        (["qobra", "img", "map"], {"--plot", "--output"}),
    ],
)
def test_completion_knows_what_the_help_tells(words: list[str], expected: set[str]) -> None:
    assert expected <= set(completion.candidates(words))


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["qobra-img", "convert", "-t"], ["none", "off", "writeback", "writethrough", "directsync", "unsafe"]),
        (["qobra-img", "resize", "--preallocation"], ["off", "metadata", "falloc", "full"]),
        (["qobra-img", "resize", "--preallocation", "="], ["off", "metadata", "falloc", "full"]),
        (["qobra-img", "map", "--output"], ["human", "json"]),
        (["qobra-nbd", "--discard"], ["ignore", "unmap"]),
        (["qobra-io", "-t"], ["none", "writeback", "writethrough", "directsync", "unsafe"]),
        (["qobra-io", "-i"], ["threads", "native", "io_uring"]),
        (["qobra-io", "-c"], []),  # any words
        (["qobra-img", "create", "-b"], []),  # the names of files
        (["qobra", "img", "map", "--plot"], []),
    ],
)
def test_completion_knows_values_that_the_help_tells(words: list[str], values: list[str]) -> None:
    assert completion.candidates(words) == values


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("--preallocation=", ["off", "metadata", "falloc", "full"]),
        ("--preallocation=fu", ["off", "metadata", "falloc", "full"]),  # which of them begin so, the shell knows
        ("--shrink=", []),  # has no value
    ],
)
def test_completion_of_an_option_with_its_value_in_one_word(at: str, words: list[str]) -> None:
    option = at.partition("=")[0]
    assert completion.candidates(["qobra-img", "resize"], at) == [f"{option}={word}" for word in words]


def test_the_help_of_map_tells_of_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["--plot", "--help"]):
        assert program.main(["img", "map", *arguments]) == 0
        assert "--plot FILE.svg" in capsys.readouterr().out


def test_completion_offers_what_the_program_itself_has() -> None:
    assert not {"inspect", "tree", "--plot"} & set(completion.candidates(["qobra-img"]))


def test_help_of_a_subcommand_and_its_completion(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["help", "completion"]) == 0
    assert capsys.readouterr().out == "usage: qobra completion bash|zsh|fish\n"
    assert "demo" in completion.candidates(["qobra", "help"])
    assert "convert" in completion.candidates(["qobra", "help", "img"])


def test_completion_offers_no_actions_after_one() -> None:
    found = completion.candidates(["qobra", "img", "info", "disk.qcow2"])
    assert "--backing-chain" in found
    assert all(word.startswith("-") for word in found)
    assert not [word for word in completion.candidates(["qobra-img", "create", "-f"]) if word.startswith("-")]


def in_shell(shell: str, check: str, tmp_path: Path, script: str | None = None) -> list[str]:
    """What ``shell`` prints with the completion that it is given loaded, or ``script`` in its place."""
    program_path = tmp_path / "qobra"
    program_path.write_text(f'#!/bin/sh\nexec {sys.executable} -m qobra.cli.main "$@"\n')
    program_path.chmod(0o755)
    if script is None:
        script = subprocess.run([program_path, "completion", shell], stdout=subprocess.PIPE, check=True).stdout.decode()
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    result = subprocess.run(
        [shell], input=script + check, stdout=subprocess.PIPE, env=environment, check=True, text=True, cwd=tmp_path
    )
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("qobra img conv", ["convert"]),
        ("qobra-img resize --preallocation = fu", ["full"]),
        ("qobra-img info --output =", ["human", "json"]),
    ],
)
def test_completion_in_bash(words: str, completed: list[str], tmp_path: Path) -> None:
    check = f'COMP_WORDS=({words}); COMP_CWORD={words.count(" ")}; _qobra; echo "${{COMPREPLY[@]}}"'
    assert in_shell("bash", check, tmp_path) == completed


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
@pytest.mark.parametrize("load", ['eval "$(qobra completion zsh)"', "qobra completion zsh > _qobra; compinit -u -D"])
def test_completion_in_zsh(load: str, tmp_path: Path) -> None:
    check = (
        f"fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; {load}; print ${{_comps[qobra-img]}}\n"
        "compadd() { print -r -- $@[2,-1] }; _files() { }\n"
        "words=(qobra-img info --output j) CURRENT=4 PREFIX=j; _qobra\n"
    )
    assert in_shell("zsh", check, tmp_path, script="") == ["_qobra", "human", "json"]


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("qobra img conv", ["convert"]),
        ("qobra-img info --output j", ["json"]),
        ("qobra-img info --output=j", ["--output=json"]),
        ("qobra-img map --max-length=", ["--max-length=qobra"]),  # the names of files
    ],
)
def test_completion_in_fish(line: str, completed: list[str], tmp_path: Path) -> None:
    assert in_shell("fish", f"complete -C '{line}'", tmp_path) == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_of_every_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["completion", shell]) == 0
    assert "qobra-storage-daemon" in capsys.readouterr().out
