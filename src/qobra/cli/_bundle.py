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

from qobra.cli._start import HOME, OPTIMIZED, PATH, Bundle

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from types import CodeType
    from typing import Any

_ASYNCHRONOUS = 0x80 | 0x200  # flags of coroutines and asynchronous generators

_LATER = {"qobra.cli.storage_daemon": "threading"}
"""What a program imports when others may speak to it: that, with what it imports, and what follows is later."""

_MANY = 300

_PATIENCE = 30
"""Seconds until a program must have answered."""

_WORTH_A_STUB = 400
"""Bytes of bytecode from which a function is dearer than its stub."""

# Every start imports these before it reads the bundle, or must find them in their own way.
_EARLY = ("__future__", "site", "sitecustomize", "usercustomize", "qobra", "qobra.cli", "qobra.cli._start")


def build(path: str = PATH) -> int:
    """Write the bundle of what the usual starts import; returns how many modules it holds."""
    # A bundle that is in use would hide where its modules lie.
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Bundle)]
    recorded = _recorded()
    modules: dict[str, _Module] = {}
    for start in recorded.values():
        names = {name for name in (*start.now, *start.later) if name not in modules}
        # To make bytecode lean takes as long as to compile it: not for the hundreds of modules of a machine.
        modules |= {name: _Module(name, to_lean=len(names) < _MANY) for name in sorted(names)}
    modules = {name: module for name, module in modules.items() if module.source}
    data: list[bytes] = []
    place = _Places(data)
    entries = {name: (*each.entry, place.of(each.code) if each.code else None) for name, each in modules.items()}
    starts = {}
    for key, start in recorded.items():
        held = {name: each for name in (*start.now, *start.later) if (each := modules.get(name))}
        forms = {name: each.code and stubbed(each.code, start.functions(each.source)) for name, each in held.items()}
        later = place.of({name: form for name in start.later if (form := forms.get(name))})
        now = [(name, *held[name].entry, forms[name]) for name in start.now if forms.get(name)]
        for name in [name for name, _, _, _, is_package, _ in now if is_package]:
            inner = next(number for number, (each, *_) in enumerate(now) if f"{each}.".startswith(f"{name}."))
            if now[inner][0] != name:
                now.insert(inner, (name, *held[name].entry, None))
        near = {name: entries[name] for name, form in forms.items() if form is None or name in start.later}
        starts[key] = place.of((now, near, later))
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

    def __init__(self, name: str, *, to_lean: bool) -> None:
        from importlib.machinery import ExtensionFileLoader, SourceFileLoader
        from importlib.util import find_spec

        self.source = ""
        self.code: CodeType | None = None
        spec = find_spec(name)
        if name in _EARLY or spec is None or spec.origin is None:
            return
        if type(spec.loader) is SourceFileLoader:
            to_lean = to_lean and name.partition(".")[0] == "qobra"
            self.code = lean(spec.loader.get_source(name), spec.origin) if to_lean else spec.loader.get_code(name)
        elif type(spec.loader) is not ExtensionFileLoader:
            return
        self.source = spec.origin
        found = os.stat(spec.origin)
        is_package = spec.submodule_search_locations is not None
        self.entry = (spec.origin, found.st_size, found.st_mtime_ns, is_package)


def _stub(*args: object, **kwargs: object) -> object:
    from qobra.cli._start import thaw

    return thaw()(*args, **kwargs)


def stubbed(code: CodeType, whole: set[tuple[str, int]]) -> CodeType:
    """A module's bytecode with stubs in place of its functions and methods, but for those that are to be ``whole``.

    Functions in functions stay, as do those that are small or have no name, and coroutines, which tell what they are by
    their code.
    """
    constants = []
    for constant in code.co_consts:
        if type(constant) is type(code):
            if not constant.co_flags & OPTIMIZED:
                constant = stubbed(constant, whole)
            elif (
                (constant.co_qualname, constant.co_firstlineno) not in whole
                and constant.co_name[0] != "<"
                and len(marshal.dumps(constant)) > _WORTH_A_STUB
                and not constant.co_flags & (_ASYNCHRONOUS)
            ):
                constant = _stub.__code__.replace(
                    co_name=constant.co_name,
                    co_qualname=constant.co_qualname,
                    co_filename=constant.co_filename,
                    co_firstlineno=constant.co_firstlineno,
                )
        constants.append(constant)
    return code.replace(co_consts=tuple(constants))


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


_RECORD = """
import posix, sys, _thread
sys.path[:] = {path!r}
import qobra.cli
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "Bundle"]  # hides it
log = posix.open({log!r}, posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT | posix.O_CLOEXEC)
seen = set()

def record(frame, event, _argument):
    code = frame.f_code
    if event == "call" and code not in seen:
        seen.add(code)
        line = repr((code.co_filename, code.co_qualname, code.co_firstlineno))
        posix.write(log, line.encode("utf-8", "surrogateescape") + b"\\n")

def start_new_thread(function, args, *more):
    def recorded(*args, **kwargs):
        sys.setprofile(record)
        return function(*args, **kwargs)
    return start(recorded, args, *more)

start, _thread.start_new_thread = _thread.start_new_thread, start_new_thread
sys.setprofile(record)
from qobra.cli.{module} import {main} as main
sys.exit(main())
"""


class Recorded:
    """What a start of a program imported (``now``, or ``later``, when it is there for others) and called."""

    def __init__(self) -> None:
        self.now: list[str] = []
        self.later: list[str] = []
        self._functions: dict[str, set[tuple[str, int]]] = {}

    def functions(self, source: str) -> set[tuple[str, int]]:
        """The qualified names and first lines of the functions in ``source`` that were called."""
        return self._functions.get(source, set())

    def add_calls(self, log: list[str]) -> None:
        import ast

        for line in log:
            source, name, number = ast.literal_eval(line)
            self._functions.setdefault(source, set()).add((name, number))

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
        self.now = [*dict.fromkeys(name for name in names[:end] if name != first), first]
        self.later = [name for name in dict.fromkeys(names[end:]) if name not in self.now]


def _recorded() -> dict[tuple[str, str], Recorded]:
    """What the usual starts import and call, by the program's module and its first argument that is no option."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        return {key: _record(directory, key[0], runs) for key, runs in _usual(directory).items()}


def _usual(directory: str) -> dict[tuple[str, str], list[list[str]]]:
    """The usual starts: the program's module and the argument that tells them apart, and command lines.

    What the first of them imports is executed at once; what any of them calls is whole.
    """
    image, raw, qmp, nbd = (f"{directory}/{name}" for name in ("disk.qcow2", "disk.raw", "qmp", "nbd"))
    copy, overlay = f"{image}.copy", f"{image}.overlay"
    backed = ["-F", "qcow2", "-b"]
    listening = ["--chardev", f"socket,id=s,path={qmp},server=on,wait=off", "--monitor", "s"]
    blockdev = ["--blockdev", f"qcow2,node-name=disk,file.driver=file,file.filename={image}"]
    qcow2 = ["create", "-q", "-f", "qcow2"]
    machine = ["-nodefaults", "-display", "none", "-accel", "qtest", "-qmp", f"unix:{qmp},server=on,wait=off"]
    tool: dict[str, list[list[str]]] = {
        "create": [
            [*qcow2, image, "1M"],
            ["create", raw, "1M"],
            [*qcow2, "-o", "preallocation=metadata", image, "1M"],
            [*qcow2, *backed, image, overlay],
        ],
        "info": [["info", image], ["info", "--output=json", image], ["info", raw]],
        "convert": [["convert", "-f", "qcow2", "-O", "qcow2", image, copy], ["convert", "-O", "raw", image, raw]],
        "compare": [["compare", "-q", image, copy]],
        "rebase": [["rebase", "-q", *backed, copy, overlay]],
        "commit": [["commit", "-q", overlay]],
        "map": [["map", image], ["map", "--output=json", image]],
        "measure": [["measure", "-O", "qcow2", image]],
        "resize": [["resize", "-q", "-f", "qcow2", image, "2M"], ["resize", "-q", "-f", "raw", raw, "2M"]],
        "snapshot": [["snapshot", option, "one", image] for option in ("-c", "-a", "-d")] + [["snapshot", "-l", image]],
        "check": [["check", "-q", image]],
    }
    return {
        **{("qobra.cli.img", word): runs for word, runs in tool.items()},
        ("qobra.cli.io", ""): [["-c", "read 0 64k", image], ["-c", "write 0 64k", image]],
        ("qobra.cli.nbd", ""): [["-k", nbd, "-f", "qcow2", image]],
        ("qobra.cli.storage_daemon", ""): [listening],
        ("qobra.cli.storage_daemon", "--blockdev"): [
            [*blockdev, *listening],
            [
                *blockdev,
                *listening,
                "--nbd-server",
                f"addr.type=unix,addr.path={nbd}",
                "--export",
                "nbd,id=e,node-name=disk",
            ],
        ],
        ("qobra.cli.system", ""): [[*machine, "-drive", f"if=virtio,file={image},format=qcow2"]],
    }


def _record(directory: str, module: str, runs: list[list[str]]) -> Recorded:
    """Run the command lines of a usual start, and record what they call and the first of them imports."""
    import subprocess

    result = Recorded()
    main = "main_x86_64" if module.endswith("system") else "main"
    for arguments in runs:
        log, report = f"{directory}/log", f"{directory}/report"
        program = _RECORD.format(path=sys.path, log=log, module=module.rpartition(".")[2], main=main)
        command = [sys.executable, "-S", "-X", "importtime", "-c", program, *arguments]
        with open(report, "wb") as stream:
            null = subprocess.DEVNULL
            with subprocess.Popen(command, stdin=null, stdout=null, stderr=stream) as process:
                for path in (f"{directory}/qmp", f"{directory}/nbd"):
                    if any(path in argument for argument in arguments):
                        _visit(path, process)
                        process.terminate()
        with open(log) as lines:
            result.add_calls(lines.read().splitlines())
        with open(report) as lines:
            if not result.now:
                result.add_imports(lines.read().splitlines(), module)
        os.remove(log)
    return result


def _visit(path: str, process: subprocess.Popen[bytes]) -> None:
    """Be the client that a start waits for: go through the greeting, and for QMP the capabilities, in full."""
    import socket
    import time

    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_PATIENCE)
        while process.poll() is None:
            try:
                client.connect(path)
                break
            except OSError:
                time.sleep(0.01)
        client.recv(1 << 16)
        if path.endswith("qmp"):
            client.sendall(b'{"execute": "qmp_capabilities"}')
            client.recv(1 << 16)
    os.unlink(path)


if __name__ == "__main__":
    build()
