"""Make the bundle that :mod:`qobra.cli._start` uses: ``python -m qobra.cli._bundle``.

The bytecode of Qobra's own modules is *lean*: without what a start would unmarshal and make for nothing, which is the
annotations and docstrings of functions, what is only there for type checkers, and the import of ``__future__``. Classes
and modules keep theirs, which records and help texts are made of. Of compiled modules the bundle knows where they lie.
"""

from __future__ import annotations

import ast
import marshal
import os
import sys

from qobra.cli._start import HOME, PATH, Bundle

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from types import CodeType
    from typing import Any

_LATER = {"qobra.cli.storage_daemon": "threading"}
"""What a program imports when others may speak to it: that, with what it imports, and what follows is later."""

_PATIENCE = 30
"""Seconds until a program must have answered."""

# Every start imports these before it reads the bundle, or must find them in their own way.
_EARLY = ("__future__", "site", "sitecustomize", "usercustomize", "qobra.cli._start")
# And these as well, where it is not the file of the last that it begins with.
_AROUND = ("qobra", "qobra.cli")


def build(path: str = PATH) -> int:
    """Write the bundle of what the usual starts import; returns how many modules it holds."""
    # A bundle that is in use would hide where its modules lie.
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Bundle)]
    recorded = _recorded()
    names = sorted({name for start in recorded.values() for name in (*start.now, *start.later)})
    modules = {name: module for name in names if (module := _Module(name)).source}
    data: list[bytes] = []
    place = _Places(data)
    entries = {name: (*each.entry, place.of(each.code) if each.code else None) for name, each in modules.items()}
    starts = {}
    for key, start in recorded.items():
        now = [(name, *modules[name].entry, modules[name].code) for name in start.now if name in modules]
        now = [each for each in now if each[-1] is not None]
        for name in [name for name, _, _, _, is_package, _ in now if is_package]:
            inner = next(number for number, (each, *_) in enumerate(now) if f"{each}.".startswith(f"{name}."))
            if now[inner][0] != name:
                now.insert(inner, (name, *modules[name].entry, None))
        near = {
            name: entries[name] for name in {*start.now, *start.later} - {name for name, *_ in now} if name in entries
        }
        starts[key] = place.of((now, near))
    header = marshal.dumps((HOME, starts, place.of(entries)))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.writelines(data)
    os.replace(temporary, path)
    return len(entries)


class _Places:
    """Puts what is to be written behind the header, one behind the other, and tells where."""

    def __init__(self, data: list[bytes]) -> None:
        self._end, self._data = 0, data

    def of(self, value: Any) -> tuple[int, int]:
        data = marshal.dumps(value)
        place = self._end, len(data)
        self._data.append(data)
        self._end += len(data)
        return place


class _Module:
    """A module that may be in a bundle: ``source`` is empty for one that is not, ``code`` None for an extension."""

    def __init__(self, name: str) -> None:
        from importlib.machinery import ExtensionFileLoader, SourceFileLoader
        from importlib.util import find_spec

        self.source = ""
        self.code: CodeType | None = None
        spec = find_spec(name)
        if name in _EARLY or spec is None or not spec.has_location or spec.origin is None:
            return
        found = os.stat(spec.origin)  # before it is read: whatever is written meanwhile makes the bundle's form stale
        if type(spec.loader) is SourceFileLoader:
            to_lean = name.partition(".")[0] == "qobra"
            self.code = lean(spec.loader.get_source(name), spec.origin) if to_lean else spec.loader.get_code(name)
        elif type(spec.loader) is not ExtensionFileLoader:
            return
        self.source = spec.origin
        is_package = spec.submodule_search_locations is not None
        self.entry = (spec.origin, found.st_size, found.st_mtime_ns, is_package)


def lean(source: str | None, path: str) -> CodeType:
    """The bytecode of a module's text in ``path``, lean as the module's documentation says."""
    trimmer = _Trimmer()
    tree = ast.fix_missing_locations(trimmer.visit(ast.parse(source or "", path)))
    return compile(tree, path, "exec", trimmer.flags, dont_inherit=True)  # type: ignore[no-any-return]


class _Trimmer(ast.NodeTransformer):
    """Takes out what lean modules do without; ``flags`` are for the compiler in place of ``__future__``'s imports."""

    def __init__(self) -> None:
        self.flags = 0

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        if ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.copy_location(ast.Pass(), node.body[0])
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse or ast.copy_location(ast.Pass(), node)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.module != "__future__":
            return node
        import __future__

        for name in node.names:
            self.flags |= getattr(__future__, name.name).compiler_flag
        return ast.copy_location(ast.Pass(), node)


WITHOUT_BUNDLE = """
import sys
sys.path[:] = {path!r}
import qobra.cli
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "Bundle"]  # hides it
from {module} import main
sys.exit(main())
"""
"""A program that does what the ``main`` of ``module`` does, and imports it as if there were no bundle."""


class Recorded:
    """What a start of a program imported: ``now``, or ``later``, when it is there for others."""

    def __init__(self) -> None:
        self.now: list[str] = []
        self.later: list[str] = []

    def add_imports(self, report: list[str], first: str) -> None:
        """Take what ``-X importtime`` said. ``first`` is the program's module, to be executed at the end of ``now``."""
        lines = [line.rpartition("|")[2] for line in report if line.startswith("import time:")]
        names = [line.strip() for line in lines]
        early = names.index(_EARLY[-1]) + 1  # before a bundle is read
        lines, names = lines[early:], names[early:]
        # Each module stands behind those that it imported, which are further to the right.
        end = names.index(_LATER[first]) if _LATER.get(first) in names else len(names)
        depth = len(lines[end]) - len(lines[end].lstrip()) if end < len(lines) else 0
        while end < len(lines) and end and len(lines[end - 1]) - len(lines[end - 1].lstrip()) > depth:
            end -= 1
        self.now = [*dict.fromkeys(name for name in (*_AROUND, *names[:end]) if name != first), first]
        self.later = [name for name in dict.fromkeys(names[end:]) if name not in self.now]


def _recorded() -> dict[tuple[str, str], Recorded]:
    """What the usual starts import, by the program's module and its first argument that is no option."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        return {key: _record(directory, key[0], arguments) for key, arguments in _usual(directory).items()}


def _usual(directory: str) -> dict[tuple[str, str], list[str]]:
    """The usual starts, each a command line, by the program's module and the argument that tells it from others."""
    image, copy, qmp, nbd = (f"{directory}/{name}" for name in ("disk.qcow2", "copy.qcow2", "qmp", "nbd"))
    listening = ["--chardev", f"socket,id=s,path={qmp},server=on,wait=off", "--monitor", "s"]
    blockdev = ["--blockdev", f"qcow2,node-name=disk,file.driver=file,file.filename={image}"]
    tool = (
        ["create", "-q", "-f", "qcow2", image, "1M"],
        ["info", image],
        ["convert", "-f", "qcow2", "-O", "qcow2", image, copy],
        ["compare", "-q", image, copy],
        ["rebase", "-q", "-F", "qcow2", "-b", image, copy],
        ["commit", "-q", copy],
        ["map", image],
        ["measure", "-O", "qcow2", image],
        ["resize", "-q", "-f", "qcow2", image, "2M"],
        ["snapshot", "-c", "one", image],
        ["check", "-q", image],
    )
    return {
        **{("qobra.cli.img", arguments[0]): arguments for arguments in tool},
        ("qobra.cli.io", ""): ["-c", "read 0 64k", image],
        ("qobra.cli.nbd", ""): ["-k", nbd, "-f", "qcow2", image],
        ("qobra.cli.storage_daemon", ""): listening,
        ("qobra.cli.storage_daemon", "--blockdev"): [*blockdev, *listening],
    }


def _record(directory: str, module: str, arguments: list[str]) -> Recorded:
    """Run the command line of a usual start, and record what it imports."""
    import subprocess

    report = f"{directory}/report"
    program = WITHOUT_BUNDLE.format(path=sys.path, module=module)
    command = [sys.executable, "-S", "-X", "importtime", "-c", program, *arguments]
    with open(report, "wb") as stream:
        null = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=null, stdout=null, stderr=stream) as process:
            for path in (f"{directory}/qmp", f"{directory}/nbd"):
                if any(path in argument for argument in arguments):
                    try:
                        _visit(path, process, report)
                    finally:
                        process.terminate()
    result = Recorded()
    with open(report) as lines:
        result.add_imports(lines.read().splitlines(), module)
    return result


def _visit(path: str, process: subprocess.Popen[bytes], report: str) -> None:
    """Be the client that a start waits for: go through the greeting, and for QMP the first commands, in full.

    They are sent once ``report`` shows that the greeting's part of the start is over, however slow it is.
    Raises OSError if nobody listens in time.
    """
    import socket
    import time

    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_PATIENCE)
        deadline = time.monotonic() + _PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            try:
                client.connect(path)
                break
            except OSError:
                time.sleep(0.01)
        client.recv(1 << 16)
        if path.endswith("qmp"):
            with open(report, "rb") as stream:
                while b" threading\n" not in stream.read() and time.monotonic() < deadline:
                    stream.seek(0)
                    time.sleep(0.005)
            for command in (b"qmp_capabilities", b"query-version"):
                client.sendall(b'{"execute": "%s"}' % command)
                client.recv(1 << 16)
    os.unlink(path)


if __name__ == "__main__":
    build()
