from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

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
