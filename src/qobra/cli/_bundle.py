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

from qobra.cli._start import EXTENSION, HOME, PATH, Bundle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    from qobra.cli._start import Entry

# Every start imports these before it reads the bundle, or must find them in their own way.
_EARLY = ("qobra", "qobra.cli", "qobra.cli._start", "site", "sitecustomize", "usercustomize")


def build(path: str = PATH) -> int:
    """Write the bundle of what the usual starts import; returns how many modules it holds."""
    from importlib.machinery import ExtensionFileLoader, SourceFileLoader
    from importlib.util import find_spec

    # A bundle that is in use would hide where its modules lie.
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Bundle)]
    entries: dict[str, Entry] = {}
    codes: dict[str, CodeType | None] = {}
    sections: list[list[str]] = []
    for names in _sections(_imported()):
        held = []
        for name in names:
            spec = find_spec(name)
            if name in _EARLY or spec is None or spec.origin is None:
                continue
            if type(spec.loader) is ExtensionFileLoader:
                found = os.stat(spec.origin)
                entries[name] = (spec.origin, False, found.st_size, found.st_mtime_ns, EXTENSION)
                continue
            if type(spec.loader) is not SourceFileLoader:
                continue
            found = os.stat(spec.origin)
            is_package = spec.submodule_search_locations is not None
            entries[name] = (spec.origin, is_package, found.st_size, found.st_mtime_ns, len(sections))
            own = name.partition(".")[0] == "qobra"
            codes[name] = lean(spec.loader.get_source(name), spec.origin) if own else spec.loader.get_code(name)
            held.append(name)
        sections.append(held)
    data = [marshal.dumps({name: codes[name] for name in names}) for names in sections]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as stream:
        stream.write(_index(entries, data))
        stream.writelines(data)
    os.replace(temporary, path)
    return len(entries)


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


def _index(entries: dict[str, Entry], data: list[bytes]) -> bytes:
    """The beginning of a bundle up to its sections."""
    size = 0
    while True:  # where the sections begin depends on how long the index is
        begin, places = size, []
        for section in data:
            places.append((begin, len(section)))
            begin += len(section)
        index = marshal.dumps((HOME, entries, places))
        if 8 + len(index) == size:
            return len(index).to_bytes(8, "little") + index
        size = 8 + len(index)


def _sections(starts: list[set[str]]) -> list[list[str]]:
    """The modules that are imported by the same starts, together."""
    found: dict[tuple[bool, ...], list[str]] = {}
    for name in sorted(set().union(*starts)):
        found.setdefault(tuple(name in start for start in starts), []).append(name)
    return list(found.values())


def _imported() -> list[set[str]]:
    """The names of the modules that each of the usual starts imports."""
    import subprocess
    import tempfile

    starts: list[set[str]] = []
    with tempfile.TemporaryDirectory() as directory:
        image = os.path.join(directory, "disk.qcow2")
        listening = f"socket,id=s,path={directory}/s,server=on,wait=off"
        stdio = ("--chardev", "stdio,id=c", "--monitor", "c")
        copy, overlay = f"{image}.copy", f"{image}.overlay"
        backed = ("-F", "qcow2", "-b")
        usual = (
            ("img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, "1M"),
            ("img", "info", image),
            ("img", "convert", "-f", "qcow2", "-O", "qcow2", image, copy),
            ("img", "compare", "-q", image, copy),
            ("img", "create", "-q", "-f", "qcow2", *backed, image, overlay),
            ("img", "rebase", "-q", *backed, copy, overlay),
            ("img", "commit", "-q", overlay),
            ("img", "map", image),
            ("img", "measure", "-O", "qcow2", image),
            ("img", "resize", "-q", "-f", "qcow2", image, "2M"),
            ("img", "snapshot", "-c", "one", image),
            ("img", "check", "-q", image),
            ("storage_daemon", *stdio),
            ("storage_daemon", "--chardev", listening, "--monitor", "s", *stdio),
        )
        for module, *arguments in usual:
            program = f"import sys; sys.path = {sys.path}; from qobra.cli.{module} import main; sys.exit(main())"
            command = [sys.executable, "-S", "-X", "importtime", "-c", program, *arguments]
            with tempfile.TemporaryFile() as report:
                pipe = subprocess.PIPE
                with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=report) as process:
                    assert process.stdin is not None and process.stdout is not None
                    process.stdout.readline()  # it has started: the daemon has greeted
                    if "--monitor" in arguments:
                        process.stdin.write(b'{"execute": "qmp_capabilities"}')
                        process.stdin.flush()
                        process.stdout.readline()  # and imported what can wait for that
                    process.terminate()
                report.seek(0)
                lines = report.read().decode().splitlines()
                starts.append({line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")})
    return starts


if __name__ == "__main__":
    build()
