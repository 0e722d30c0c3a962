from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

import qobra
import qobra.native
from qobra.native import compiled

NAMES = sorted(path.stem for path in pathlib.Path(qobra.native.__file__).parent.glob("*.pyx"))


@pytest.mark.parametrize("name", NAMES)
def test_is_built_where_it_can_be(name: str) -> None:
    if shutil.which("cc") is None or not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("no C compiler or no headers of Python")
    if os.environ.get("QOBRA_PURE"):
        pytest.skip("the pure forms were asked for")
    assert compiled(name) is not None


def test_pure_forms_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QOBRA_PURE", "1")
    assert NAMES
    assert compiled(NAMES[0]) is None


def test_bring_no_large_modules_with_them() -> None:
    names = [name for name in NAMES if compiled(name) is not None]
    if not names:
        pytest.skip("there are no compiled forms")
    source = str(pathlib.Path(qobra.__file__).parent.parent)
    text = f"import sys; sys.path.append({source!r})\n"
    text += "".join(f"import qobra.native.{name}\n" for name in names) + "print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-SP", "-c", text], capture_output=True, text=True, check=True).stdout
    assert not set(loaded.split()) & {"collections", "enum", "functools", "re", "threading", "typing"}


def test_all_are_of_one_build() -> None:
    """Each asks to belong to the build in use: none does here."""
    names = [name for name in NAMES if compiled(name) is not None]
    text = f"""import sys; sys.path[:] = {sys.path!r}
from qobra import native
builds = set()
native.join_build = lambda name, build: builds.add((name, build))
for name in {names!r}:
    native.compiled(name)
print(len(builds), *{{build.decode() for _, build in builds}})
"""
    told = subprocess.run(
        [sys.executable, "-SP", "-c", text], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(told[0]) == len(names)
    assert not names or (told[1:3] == ["qobra", "build"] and len(told) == 4 and told[3] != "0" * 16)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """As in a program that has asked for no form, of forms that were installed in this folder."""
    monkeypatch.delenv("QOBRA_PURE", raising=False)
    monkeypatch.setattr(qobra.native, "_build", None)
    monkeypatch.setattr(qobra.native, "_said", set())
    monkeypatch.setattr(qobra.native, "_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(qobra.native, "__path__", [str(tmp_path)])
    for name in [name for name in sys.modules if name.startswith("qobra.native.")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def provide(folder: pathlib.Path, name: str, build: str, before: str = "") -> None:
    """Put a module into the folder that does what a compiled form does when it is imported."""
    text = f"{before}\nfrom qobra.native import join_build\njoin_build(__name__, {build.encode()!r})\n"
    (folder / f"{name}.py").write_text(text)


def test_one_of_another_build_is_left_out(fresh: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    provide(fresh, "first", "one")
    provide(fresh, "second", "two")
    provide(fresh, "third", "one")
    provide(fresh, "fourth", "one", "import qobra.native.second")
    assert compiled("first") is not None and compiled("third") is not None
    assert capsys.readouterr().err == ""
    assert compiled("second") is None and compiled("second") is None
    assert compiled("fourth") is None  # it builds on another
    told = "qobra: the compiled form 'second' is of another build than those in use and left out\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("error", [TypeError, ValueError])
def test_one_that_does_not_fit_the_others_is_left_out(
    fresh: pathlib.Path, capsys: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    provide(fresh, "first", "one", f"raise {error.__name__}('Slot size changed')")
    assert compiled("first") is None
    told = "qobra: the compiled form 'first' does not fit the others and is left out: Slot size changed\n"
    assert capsys.readouterr().err == told


def test_none_is_used_where_sources_are_newer(
    fresh: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    provide(fresh, "first", "one")
    source, built = fresh / "first.pyx", fresh / f".built{EXTENSION_SUFFIXES[0]}".removesuffix(".so")
    for path, time in ((source, 1000), (built, 1001), (fresh / ".built.of-another-interpreter", 9999)):
        path.touch()
        os.utime(path, (time, time))
    assert compiled("first") is not None  # the directory is newer, but no source in it
    monkeypatch.setattr(qobra.native, "_build", None)
    os.utime(source, (1002, 1002))
    assert compiled("first") is None and compiled("first") is None
    assert capsys.readouterr().err.count("older than their sources") == 1
    monkeypatch.setattr(qobra.native, "_build", None)
    os.utime(fresh, (1001, 1001))  # nothing came into the directory since
    assert compiled("first") is not None
