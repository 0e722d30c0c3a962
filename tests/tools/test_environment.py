"""tools/environment.py: an environment that needs no package index."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parent.parent.parent / "tools" / "environment.py"


def test_a_bare_environment_runs_the_programs(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    for _ in range(2):  # the second time finds all as it should be
        subprocess.run([sys.executable, str(TOOL), str(venv)], check=True)
    shown = subprocess.run([venv / "bin" / "qobra", "--version"], stdout=subprocess.PIPE, text=True, check=True)
    assert shown.stdout.startswith("qobra ")
    assert subprocess.run([venv / "bin" / "python", "-c", "import pip"], stderr=subprocess.DEVNULL).returncode != 0


def test_a_broken_environment_is_made_anew(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/nonexistent/python")
    subprocess.run([sys.executable, str(TOOL), str(tmp_path / "venv")], check=True)
    subprocess.run([python, "-c", "import qobra.cli.main"], check=True)
