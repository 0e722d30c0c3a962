"""What is installed: a wheel with all modules, the schema, and the programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
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
        ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so", ".built*")
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


SUFFIX = EXTENSION_SUFFIXES[0]
SOME = """from qobra.native.build cimport join_build
{}
join_build(__name__)
"""


def test_a_build_is_in_all_forms_and_leaves_none_of_another(tmp_path: Path) -> None:
    pytest.importorskip("Cython")
    if shutil.which("cc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no C compiler or no headers of Python")
    native = tmp_path / "src/qobra/native"
    native.mkdir(parents=True)
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copy(ROOT / "src/qobra/native/build.pxd", native)
    (tmp_path / "src/qobra/__init__.py").touch()
    (native / "__init__.py").touch()

    def build() -> dict[str, bytes]:
        """The builds that are in the forms, by name."""
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        environment = {**os.environ, "CFLAGS": "-O0"}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        assert (native / f".built{SUFFIX}".removesuffix(".so")).exists() and not list(native.glob("*.new"))
        found = {}
        for path in native.glob(f"*{SUFFIX}"):
            (found[path.name.partition(".")[0]],) = re.findall(rb"qobra build ([0-9a-f]{16})", path.read_bytes())
        return found

    for name in ("one", "two"):
        (native / f"{name}.pyx").write_text(SOME.format(""))
    (native / f"gone{SUFFIX}").touch()  # its source is not there any more
    (native / "one.of-another-interpreter.so").touch()
    first = build()
    assert first.keys() == {"one", "two"} and first["one"] == first["two"] != b"0" * 16
    (native / "two.pyx").write_text(SOME.format('cdef extern from "nowhere.h":\n    pass'))  # cannot be compiled
    second = build()
    assert second.keys() == {"one"} and second["one"] != first["one"]  # which was not compiled again
    assert (native / "one.of-another-interpreter.so").exists()


def test_the_programs_are_there() -> None:
    import importlib
    import tomllib

    with open(ROOT / "pyproject.toml", "rb") as stream:
        scripts = tomllib.load(stream)["project"]["scripts"]
    for target in scripts.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function)), target
