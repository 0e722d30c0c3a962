"""What is installed: a wheel with all modules, the schema, and the programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_wheel_is_complete(tmp_path: Path) -> None:
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools is older than pyproject.toml asks for")
    tree = tmp_path / "tree"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        tree.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree)
    shutil.copytree(
        ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so", ".built")
    )
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    result = subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("qobra-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
        (scripts,) = [archive.read(name).decode() for name in packed if name.endswith("entry_points.txt")]
    wanted = {str(path.relative_to(tree / "src")) for path in (tree / "src" / "qobra").rglob("*") if path.is_file()}
    assert wanted - packed == set()
    assert "qobra-storage-daemon = qobra.cli.storage_daemon:main" in scripts


def test_the_source_distribution_holds_what_its_tests_need(tmp_path: Path) -> None:
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools is older than pyproject.toml asks for")
    tree = tmp_path / "tree"
    for name in ("bench", "docs", "tests", "tools"):  # the sources are the wheel's
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    (tree / "src").mkdir()
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, check=True)
    (archive,) = tmp_path.glob("qobra-*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    wanted = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    hidden = {name for name in wanted if name.startswith(".") or "egg-info" in name}
    assert wanted - names - hidden == set()


def test_without_a_compiler_the_pure_forms_are_built(tmp_path: Path) -> None:
    pytest.importorskip("Cython")
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "src/qobra/native").mkdir(parents=True)
    (tmp_path / "src/qobra/native/some.pyx").write_text("cdef int x = 1\n")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=tmp_path, env={**os.environ, "CC": "false"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.rglob("*.so"))


def test_the_programs_are_there() -> None:
    import importlib
    import tomllib

    with open(ROOT / "pyproject.toml", "rb") as stream:
        scripts = tomllib.load(stream)["project"]["scripts"]
    for target in scripts.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function)), target
