"""The pytest plugin as users have it: named on pytest's command line, in a project of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TEST = """
def test_backup(qobra_server):
    with qobra_server.connect() as client:
        assert client.query_jobs() == []
"""


def test_fixture_in_a_foreign_project(tmp_path: Path) -> None:
    (tmp_path / "test_tool.py").write_text(TEST)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "qobra.testing.plugin",
        "-p",
        "no:cacheprovider",
        str(tmp_path),
    ]
    # Where Qobra is installed rather than in its tree, pytest finds the plugin by itself, and refuses it by two names.
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment)
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout
