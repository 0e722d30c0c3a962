"""The bundle of bytecode that programs start from."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import traceback
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from pathlib import Path
from typing import Any

import pytest

from qobra.cli import _bundle, _start
from qobra.cli._start import Bundle, SitePackages


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle in use that holds ``bundled_one`` and the package ``bundled_two``; the folder of their sources."""
    (tmp_path / "bundled_one.py").write_text("VALUE = 1\n\ndef fail():\n    raise ValueError('no')\n")
    (tmp_path / "bundled_two").mkdir()
    (tmp_path / "bundled_two" / "__init__.py").write_text("from bundled_one import VALUE\n")
    (tmp_path / "bundled_two" / "inner.py").write_text("VALUE = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        _bundle, "_imported", lambda: [{"bundled_one", "sys", "no_such_module"}, {"bundled_one", "bundled_two"}]
    )
    path = str(tmp_path / "start.bundle")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    assert _bundle.build(path) == 2
    monkeypatch.setattr(_start, "PATH", path)
    _start.start()
    yield tmp_path
    for name in ("bundled_one", "bundled_two", "bundled_two.inner"):
        sys.modules.pop(name, None)


def test_modules_come_from_the_bundle(bundled: Path) -> None:
    module = importlib.import_module("bundled_two")
    assert module.VALUE == 1
    assert isinstance(module.__spec__.loader, Bundle)
    assert module.__file__ == str(bundled / "bundled_two" / "__init__.py")
    assert importlib.import_module("bundled_two.inner").VALUE == 2  # it is not in the bundle


def test_its_modules_look_like_others(bundled: Path) -> None:
    names = ("__name__", "__package__", "__file__", "__cached__", "__path__", "__spec__", "__loader__", "__builtins__")
    bundled_form = vars(importlib.import_module("bundled_two")).copy()
    sys.modules.pop("bundled_two")
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Bundle)]
    plain_form = vars(importlib.import_module("bundled_two"))
    assert [bundled_form[name] for name in names[:5]] == [plain_form[name] for name in names[:5]]
    assert bundled_form.keys() == plain_form.keys() >= set(names)
    assert bundled_form["__spec__"].loader is bundled_form["__loader__"]


LEAN = """\
'''Of the module.'''

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nowhere import Missing
else:
    Missing = int


class Record:
    '''Of the class.'''

    field: Missing[str] = 1

    def method(self, one: Missing, *rest: Missing, two: Missing = 2, **more: Missing) -> Missing:
        '''Of the method.'''
        return one, rest, two, more

    async def empty(self) -> Missing:
        '''Of the coroutine.'''


if TYPE_CHECKING:
    import nowhere


def fail():
    '''Of the function.'''
    raise ValueError
"""


def test_lean_bytecode_does_the_same() -> None:
    namespace: dict[str, object] = {"__name__": "lean"}
    code = _bundle.lean(LEAN, "lean.py")
    exec(code, namespace)
    assert "__future__" not in code.co_names and "annotations" not in namespace and "nowhere" not in code.co_names
    assert namespace["__doc__"] == "Of the module." and namespace["Missing"] is int
    record: Any = namespace["Record"]
    assert record.__doc__ == "Of the class." and record.__annotations__ == {"field": "Missing[str]"}
    assert record().method(1, 3, two=4, five=6) == (1, (3,), 4, {"five": 6})
    for function in (record.method, record.empty, namespace["fail"]):
        assert function.__doc__ is None and not function.__annotations__
    with pytest.raises(ValueError) as raised:
        namespace["fail"]()  # type: ignore[operator]
    assert (
        traceback.extract_tb(raised.value.__traceback__)[-1].lineno
        == LEAN.splitlines().index("    raise ValueError") + 1
    )


def test_a_changed_source_is_read(bundled: Path) -> None:
    (bundled / "bundled_one.py").write_text("VALUE = 11\n")
    module = importlib.import_module("bundled_one")
    assert module.VALUE == 11
    assert not isinstance(module.__spec__.loader, Bundle)


def test_a_source_that_is_gone_is_not_imported(bundled: Path) -> None:
    (bundled / "bundled_one.py").unlink()
    with pytest.raises(ImportError):
        importlib.import_module("bundled_one")


def test_tracebacks_have_their_lines(bundled: Path) -> None:
    module = importlib.import_module("bundled_one")
    with pytest.raises(ValueError) as raised:
        module.fail()
    assert "raise ValueError('no')" in "".join(traceback.format_exception(raised.value))


def test_a_bundle_that_was_replaced_is_not_read(bundled: Path) -> None:
    for path in (bundled / "other.bundle", bundled / "start.bundle"):
        path.write_bytes(b"\xff" * 64)
    os.replace(bundled / "other.bundle", bundled / "start.bundle")
    assert not isinstance(importlib.import_module("bundled_two").__spec__.loader, Bundle)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x04" + bytes(7) + b"junk"])
def test_a_bad_bundle_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    path = tmp_path / "start.bundle"
    path.write_bytes(content)
    before = list(sys.meta_path)
    monkeypatch.setattr(_start, "PATH", str(path))
    monkeypatch.setattr(sys, "meta_path", list(before))
    _start.start()
    assert sys.meta_path == before


@pytest.mark.parametrize("home", [("/elsewhere/qobra", _start.HOME[1]), (_start.HOME[0], "/elsewhere/python")])
def test_other_trees_and_libraries_do_not_use_it(
    bundled: Path, monkeypatch: pytest.MonkeyPatch, home: tuple[str, str]
) -> None:
    monkeypatch.setattr(_start, "HOME", home)
    before = list(sys.meta_path)
    _start.start()
    assert sys.meta_path == before


def test_it_tells_where_compiled_modules_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ("bundled_three" + EXTENSION_SUFFIXES[0])
    file.write_bytes(b"not looked into yet")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(_bundle, "_imported", lambda: [{"bundled_three"}])
    path = str(tmp_path / "start.bundle")
    assert _bundle.build(path) == 1
    bundle = Bundle(path)
    found = bundle.find_spec("bundled_three")
    assert found is not None and found.origin == str(file) and type(found.loader) is ExtensionFileLoader
    os.utime(file, (1, 1))
    assert bundle.find_spec("bundled_three") is None  # it is another by now


def test_the_usual_starts_are_in_it() -> None:
    starts = _bundle._imported()
    assert all({"qobra.cli.img", "qobra.block.format.qcow2.node"} <= start for start in starts[:-2])
    assert {"qobra.qmp.session", "qobra.chardev.backend.socket", "threading"} <= starts[-1]
    assert not {"typing", "re", "enum"} & starts[-1]


def test_a_start_does_without_future() -> None:
    source = os.path.dirname(_start.PACKAGE)
    program = f"import sys; sys.path.append({source!r}); import qobra.cli; print('__future__' in sys.modules)"
    result = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_without_site_packages_are_found_when_asked_for(tmp_path: Path) -> None:
    source = os.path.dirname(_start.PACKAGE)
    program = (
        f"import sys; sys.path.append({source!r}); import qobra.cli; before = 'site' in sys.modules;"
        "import prompt_toolkit; print(before, 'site' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True)
    assert result.stdout == "False True\n", result.stderr
    missing = program.replace("prompt_toolkit", "no_such_module")
    result = subprocess.run([sys.executable, "-S", "-c", missing], capture_output=True, text=True)
    assert result.stderr.endswith("ModuleNotFoundError: No module named 'no_such_module'\n")


def test_site_packages_leaves_submodules_alone() -> None:
    assert SitePackages().find_spec("a.b", ["/"]) is None


@pytest.mark.parametrize(("error", "shown"), [("KeyboardInterrupt", False), ("ValueError", True)])
def test_an_interrupt_at_the_start_is_no_traceback(error: str, shown: bool) -> None:
    code = f"import qobra.cli; raise {error}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (error in result.stderr) == shown
    assert result.returncode == (1 if shown else -2)
