from __future__ import annotations

import os
import pathlib
import shutil
import sysconfig

import pytest

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
