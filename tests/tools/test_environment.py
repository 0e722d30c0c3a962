"""tools/environment.py: an environment that needs no package index."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parent.parent.parent / "tools" / "environment.py"


def test_a_bare_environment_runs_the_programs(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    for _ in range(2):  # the second time finds all as it should be
        subprocess.run([sys.executable, str(TOOL), str(venv)], check=True)
    shown = subprocess.run([venv / "bin" / "qobra", "--version"], stdout=subprocess.PIPE, text=True, check=True)
    assert shown.stdout.startswith("qobra ")
    assert subprocess.run([venv / "bin" / "python", "-c", "import pip"], stderr=subprocess.DEVNULL).returncode != 0


def test_an_interrupt_before_a_program_has_begun_ends_it_without_a_word(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(TOOL), str(tmp_path / "venv")], check=True)
    fake = tmp_path / "source" / "qobra" / "cli"
    fake.mkdir(parents=True)
    fake.joinpath("_start.py").write_text("import os; os.kill(os.getpid(), 2)\nrun = lambda *program: 7\n")
    script = (tmp_path / "venv" / "bin" / "qobra-img").read_text()
    program = tmp_path / "qobra-img"
    program.write_text(script.replace(repr(str(TOOL.parent.parent / "src")), repr(str(tmp_path / "source"))))
    program.chmod(0o755)
    ended = subprocess.run([program], stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")
    # Who is not to be interrupted is not.
    assert subprocess.run(["sh", "-c", 'trap "" INT; exec "$0"', program]).returncode == 7


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", TOOL)
    assert spec is not None and spec.loader is not None
    environment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(environment)
    return environment


@pytest.mark.parametrize(
    ("version", "has_headers", "is_best"),
    [("(3, 11)", True, True), ("(3, 10)", True, False), ("(3, 11)", False, False)],
)
def test_the_distributions_python_is_best_where_it_is_new_enough_and_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, has_headers: bool, is_best: bool
) -> None:
    environment = load_tool()
    system = tmp_path / "python3"
    if has_headers:
        (tmp_path / "Python.h").touch()
    setting = (
        f"import sys, sysconfig; sys.version_info = {version}; sysconfig.get_path = lambda name: {str(tmp_path)!r}"
    )
    system.write_text(f"#!{sys.executable}\n{setting}\nexec(sys.argv[2])\n")
    system.chmod(0o755)
    monkeypatch.setattr(environment, "SYSTEM_PYTHON", str(system))
    assert environment.best_python() == (str(system) if is_best else sys.executable)
    system.unlink()
    assert environment.best_python() == sys.executable


def test_compiled_forms_that_are_older_than_their_sources_go(tmp_path: Path) -> None:
    environment = load_tool()
    for name in ("loop.pyx", "loop.old.so", ".built.old", "loop.new.so", ".built.new", "__init__.py"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "loop.pyx", (1000, 1000))
    environment.remove_stale_forms(str(tmp_path))
    assert (tmp_path / "loop.old.so").exists() and (tmp_path / "loop.new.so").exists()
    os.utime(tmp_path / ".built.old", (999, 999))
    for _ in range(2):
        environment.remove_stale_forms(str(tmp_path))
        assert sorted(os.listdir(tmp_path)) == [".built.new", "__init__.py", "loop.new.so", "loop.pyx"]


def test_a_broken_environment_is_made_anew(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/nonexistent/python")
    subprocess.run([sys.executable, str(TOOL), str(tmp_path / "venv")], check=True)
    subprocess.run([python, "-c", "import qobra.cli.main"], check=True)
