"""The bundle of bytecode that programs start from."""

from __future__ import annotations

import builtins
import gc
import importlib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from qobra.cli import _bundle, _start
from qobra.cli._start import Bundle, SitePackages


class Recording(_bundle.Recorded):
    """A start that imports ``now`` and then ``later``."""

    def __init__(self, *now: str, later: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.now, self.later = list(now), list(later)


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bundle]]:
    """Makes a bundle of these starts, of modules in the test's folder, and puts it in use."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "argv", ["program"])

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("bundled")]:
            del sys.modules[name]

    def make(starts: dict[tuple[str, str], Recording]) -> Bundle:
        monkeypatch.setattr(_bundle, "_recorded", lambda: starts)
        path = str(tmp_path / "start.bundle")
        _bundle.build(path)
        forget()  # packages, which are imported to find what is in them
        monkeypatch.setattr(_start, "PATH", path)
        _start.start()
        return next(finder for finder in sys.meta_path if isinstance(finder, Bundle))

    yield make
    forget()


@pytest.fixture
def bundled(tmp_path: Path, use: Callable[..., Bundle]) -> Path:
    """A bundle in use that holds ``bundled_one`` and the package ``bundled_two``; the folder of their sources."""
    (tmp_path / "bundled_one.py").write_text("VALUE = 1\n\ndef fail():\n    raise ValueError('no')\n")
    (tmp_path / "bundled_two").mkdir()
    (tmp_path / "bundled_two" / "__init__.py").write_text("from bundled_one import VALUE\n")
    (tmp_path / "bundled_two" / "inner.py").write_text("VALUE = 2\n")
    use({("bundled_start", ""): Recording("bundled_one", "sys", "no_such_module", later=("bundled_two",))})
    return tmp_path


@pytest.fixture
def package(tmp_path: Path, use: Callable[..., Bundle]) -> Path:
    """A start with a package that imports what is in it, and a module that comes later."""
    (tmp_path / "bundled_package").mkdir()
    (tmp_path / "bundled_package" / "__init__.py").write_text("from bundled_package.inner import VALUE\n")
    (tmp_path / "bundled_package" / "inner.py").write_text("import bundled_base\nVALUE = bundled_base.VALUE + 1\n")
    (tmp_path / "bundled_base.py").write_text("VALUE = 1\n")
    (tmp_path / "bundled_late.py").write_text("from bundled_package import VALUE\n")
    (tmp_path / "bundled_start.py").write_text("from bundled_package import VALUE, inner\n")
    now = ("bundled_base", "bundled_package.inner", "bundled_package", "bundled_start")
    use({("bundled_start", ""): Recording(*now, later=("bundled_late",))})
    return tmp_path


def test_a_start_executes_its_modules_in_order(package: Path) -> None:
    bundle = next(finder for finder in sys.meta_path if isinstance(finder, Bundle))
    start = importlib.import_module("bundled_start")
    inner, outer = sys.modules["bundled_package.inner"], sys.modules["bundled_package"]
    assert outer.inner is inner and inner.VALUE == outer.VALUE == 2
    assert "bundled_late" not in sys.modules
    assert outer.__path__ == [str(package / "bundled_package")] == outer.__spec__.submodule_search_locations
    assert start.inner is inner and start.__loader__ is bundle
    assert importlib.import_module("bundled_late").__loader__ is bundle
    assert bundle._entries is None  # all was at hand


@pytest.mark.parametrize("changed", [False, True])
def test_a_program_runs_from_the_first_file_alone(
    tmp_path: Path, use: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    monkeypatch.setattr(_start, "_started", False)
    (tmp_path / "bundled_package").mkdir()
    (tmp_path / "bundled_package" / "__init__.py").write_text("from qobra.cli._start import start_once\nstart_once()\n")
    program = tmp_path / "bundled_package" / "program.py"
    program.write_text("def main():\n    return __loader__\n")
    use({("bundled_package.program", ""): Recording("bundled_package", "bundled_package.program")})
    if changed:
        program.write_text("def main():\n    return __file__\n")
    before = len(sys.meta_path)
    loader: object = _start.run("bundled_package.program", "main")
    assert loader == str(program) if changed else isinstance(loader, Bundle)
    assert isinstance(sys.modules["bundled_package"].__loader__, Bundle)
    assert len(sys.meta_path) == before + 1 + bool(sys.flags.no_site)  # started once


@pytest.mark.parametrize("name", ["bundled_base", "bundled_package/inner", "bundled_package/__init__", "bundled_start"])
def test_a_start_with_a_changed_source_takes_the_new_one(package: Path, name: str) -> None:
    path = package / f"{name}.py"
    path.write_text(path.read_text() + "NEW = 1\n")
    start = importlib.import_module("bundled_start")
    assert start.VALUE == 2 and start.inner is sys.modules["bundled_package"].inner
    assert sys.modules[name.removesuffix("/__init__").replace("/", ".")].NEW == 1


def test_an_error_in_a_start_is_told_to_whoever_imports(tmp_path: Path, use: Callable[..., Bundle]) -> None:
    (tmp_path / "bundled_bad.py").write_text(
        "import sys\nif sys.argv[0] == 'program':\n    raise ImportError('no luck')\n"
    )
    (tmp_path / "bundled_start.py").write_text("import bundled_bad\n")
    use({("bundled_start", ""): Recording("bundled_bad", "bundled_start")})
    with pytest.raises(ImportError, match="no luck"):
        importlib.import_module("bundled_start")
    assert "bundled_bad" not in sys.modules and gc.isenabled()


def test_a_start_leaves_imports_and_the_collector_as_they_were(package: Path) -> None:
    before = builtins.__import__
    start = importlib.import_module("bundled_start")
    assert builtins.__import__ is before and gc.isenabled()
    assert (
        start.inner is sys.modules["bundled_package.inner"]
    )  # a module in a package is imported where it is asked for


def test_an_argument_tells_starts_apart(
    tmp_path: Path, use: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bundled_start", "bundled_one", "bundled_two"):
        (tmp_path / f"{name}.py").write_text("")
    bundle = use(
        {
            ("bundled_start", ""): Recording("bundled_one", "bundled_start"),
            ("bundled_start", "two"): Recording("bundled_two", "bundled_start"),
        }
    )
    monkeypatch.setattr(sys, "argv", ["program", "-q", "two", "more"])
    assert bundle.find_spec("bundled_start") is not None
    assert "bundled_two" in sys.modules and "bundled_one" not in sys.modules


def test_imports_are_read_from_a_report_in_their_order() -> None:
    report = """\
import time: self [us] | cumulative | imported package
import time:       1 |          1 | site
import time:       1 |          1 |     qobra.cli._start
import time:       1 |          1 |   qobra.cli
import time:       1 |          1 |   one
import time:       1 |          1 |     two
import time:       1 |          1 |   threading
import time:       1 |          1 |   one
import time:       1 |          1 |   three
import time:       1 |          1 | qobra.cli.storage_daemon
""".splitlines()
    recorded = _bundle.Recorded()
    recorded.add_imports(report, "qobra.cli.storage_daemon")
    assert recorded.now == ["qobra", "qobra.cli", "one", "qobra.cli.storage_daemon"]
    assert recorded.later == ["two", "threading", "three"]
    recorded.add_imports(report, "qobra.cli.img")
    assert "three" in recorded.now and not recorded.later


LEAN_OS = """
import sys
sys.path.append({source!r})
import qobra.cli
import os
{code}
"""


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("print(os.getenv('ONE'), os.getenv('NONE', 2), os.fsencode('a'), os.fsdecode(b'b'), os.path.join('a', 'b'))",
         "Ä 2 b'a' b a/b"),
        ("print('abc' in sys.modules, '_collections_abc' in sys.modules, os.environ['ONE'])", "True False Ä"),
        ("from os import *; print(makedirs.__name__, os.__file__.endswith('os.py'), os.__spec__.name, os.path.sep)",
         "makedirs True os /"),
        ("before = os.stat; os.environ['TWO'] = '2'; print(os.getenv('TWO'), os.stat is before, hasattr(os, 'none'))",
         "2 True False"),
        ("import pathlib, tempfile; print(os.fspath(pathlib.Path('a')), isinstance(pathlib.Path(), os.PathLike))",
         "a True"),
        ("import os.path, importlib; print(importlib.import_module('os') is os, os.path.__name__)", "True posixpath"),
    ],
)  # fmt: skip
def test_os_is_there_as_far_as_it_is_used(code: str, answer: str) -> None:
    program = LEAN_OS.format(source=os.path.dirname(_start.PACKAGE), code=code)
    environment = {**os.environ, "ONE": "Ä", "PYTHONUTF8": "1"}
    result = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, encoding="utf-8", env=environment
    )
    assert result.stdout == answer + "\n", result.stderr


def test_threads_that_want_more_of_os_wait_for_it() -> None:
    code = """
import _thread, time
results = []
def look():
    results.append(os.environ is not None and os.walk.__name__)
for _ in range(8):
    _thread.start_new_thread(look, ())
while len(results) < 8:
    time.sleep(0.001)
print(set(results))
"""
    program = LEAN_OS.format(source=os.path.dirname(_start.PACKAGE), code=code)
    result = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout == "{'walk'}\n", result.stderr


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


def test_a_source_that_changes_while_it_is_bundled_is_read(
    tmp_path: Path, use: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "bundled_one.py"
    source.write_text("VALUE = 1\n")
    read = SourceFileLoader.get_data

    def change_afterwards(loader: SourceFileLoader, path: str) -> bytes:
        data = read(loader, path)
        if path == str(source):
            source.write_text("VALUE = 11\n")
        return data

    with monkeypatch.context() as patch:
        patch.setattr(SourceFileLoader, "get_data", change_afterwards)
        use({("bundled_start", ""): Recording("bundled_one")})
    assert importlib.import_module("bundled_one").VALUE == 11


def test_a_source_that_is_gone_is_not_imported(bundled: Path) -> None:
    (bundled / "bundled_one.py").unlink()
    with pytest.raises(ImportError):
        importlib.import_module("bundled_one")


def test_tracebacks_have_their_lines(bundled: Path) -> None:
    module = importlib.import_module("bundled_one")
    with pytest.raises(ValueError) as raised:
        module.fail()
    assert "raise ValueError('no')" in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x04" + bytes(7) + b"junk"])
def test_a_bad_bundle_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    path = tmp_path / "start.bundle"
    path.write_bytes(content)
    before = list(sys.meta_path)
    monkeypatch.setattr(_start, "PATH", str(path))
    monkeypatch.setattr(sys, "meta_path", list(before))
    _start.start()
    assert sys.meta_path == before


@pytest.mark.parametrize("home", [("/elsewhere/qobra", *_start.HOME[1:]), (_start.HOME[0], "/elsewhere/python", 2)])
def test_other_trees_and_libraries_do_not_use_it(
    bundled: Path, monkeypatch: pytest.MonkeyPatch, home: tuple[str, str, int]
) -> None:
    monkeypatch.setattr(_start, "HOME", home)
    before = list(sys.meta_path)
    _start.start()
    assert sys.meta_path == before


def test_it_tells_where_compiled_modules_lie(tmp_path: Path, use: Callable[..., Bundle]) -> None:
    file = tmp_path / ("bundled_three" + EXTENSION_SUFFIXES[0])
    file.write_bytes(b"not looked into yet")
    bundle = use({("bundled_start", ""): Recording("bundled_three")})
    found = bundle.find_spec("bundled_three")
    assert found is not None and found.origin == str(file) and type(found.loader) is ExtensionFileLoader
    os.utime(file, (1, 1))
    assert bundle.find_spec("bundled_three") is None  # it is another by now


def test_the_usual_starts_are_recorded(tmp_path: Path) -> None:
    usual = _bundle._usual(str(tmp_path))
    _bundle._record(str(tmp_path), "qobra.cli.img", usual["qobra.cli.img", "create"])
    info = _bundle._record(str(tmp_path), "qobra.cli.img", usual["qobra.cli.img", "info"])
    assert info.now[-1] == "qobra.cli.img" and "qobra.block.format.qcow2.node" in info.now and not info.later
    assert not {"typing", "re", "enum", "os", "_collections_abc", "threading"} & set(info.now)
    rarely = ("block.bitmap", "block.format.qcow2.bitmaps", "block.protocol._folios", "block.table", "qapi.contract")
    assert not {f"qobra.{name}" for name in rarely} & set(info.now)
    daemon = _bundle._record(str(tmp_path), "qobra.cli.storage_daemon", usual["qobra.cli.storage_daemon", ""])
    assert {"qobra.qmp.session", "qobra.chardev.backend.socket"} <= set(daemon.now)
    assert {"threading", "qobra.command.control"} <= {*daemon.later}
    assert not {"typing", "qobra.command.block", "qobra.block.node"} & {*daemon.later}
    assert not {"typing", "re", "enum", "os", "_collections_abc", "threading"} & {*daemon.now}
    assert not {"_json", "errno", "itertools"} & {*daemon.now}  # compiled, but slow to begin


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
    for traceback_too in False, True:
        environment = os.environ | {"QOBRA_TRACEBACK": "1" if traceback_too else ""}
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert (error in result.stderr) == shown
        assert ("Traceback" in result.stderr) == (shown and traceback_too)
        assert result.returncode == (1 if shown else -2)
