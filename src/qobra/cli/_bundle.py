"""Make the bundle that :mod:`qobra.cli._start` uses: ``python -m qobra.cli._bundle``."""

from __future__ import annotations

import marshal
import os
import sys

from qobra.cli._start import PACKAGE, PATH, Bundle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.cli._start import Entry

# Every start imports these before it reads the bundle, or must find them in their own way.
_EARLY = ("qobra", "qobra.cli", "qobra.cli._start", "site", "sitecustomize", "usercustomize")


def build(path: str = PATH) -> int:
    """Write the bundle of what the usual starts import; returns how many modules it holds."""
    from importlib.machinery import SourceFileLoader
    from importlib.util import find_spec

    # A bundle that is in use would hide where its modules lie.
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Bundle)]
    entries: dict[str, Entry] = {}
    code = bytearray()
    for name in _imported():
        spec = find_spec(name)
        if name in _EARLY or spec is None or spec.origin is None or type(spec.loader) is not SourceFileLoader:
            continue
        bytecode = marshal.dumps(spec.loader.get_code(name))
        found = os.stat(spec.origin)
        is_package = spec.submodule_search_locations is not None
        begin = len(code)
        code += bytecode
        entries[name] = (spec.origin, is_package, found.st_size, found.st_mtime_ns, begin, len(code))
    index = marshal.dumps((PACKAGE, entries))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as stream:
        stream.write(len(index).to_bytes(8, "little") + index + code)
    os.replace(temporary, path)
    return len(entries)


def _imported() -> list[str]:
    """The names of the modules that the usual starts import, in no particular order."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        image = os.path.join(directory, "disk.qcow2")
        usual = (
            ("img", "create", "-q", "-f", "qcow2", image, "1M"),
            ("img", "info", image),
            ("img", "convert", "-f", "qcow2", "-O", "qcow2", image, f"{image}.copy"),
            ("img", "resize", "-q", "-f", "qcow2", image, "2M"),
            ("img", "snapshot", "-c", "one", image),
            ("img", "check", "-q", image),
            ("storage_daemon", "--chardev", "stdio,id=c", "--monitor", "c"),
        )
        names: set[str] = set()
        for module, *arguments in usual:
            program = f"import sys; sys.path = {sys.path}; from qobra.cli.{module} import main; sys.exit(main())"
            command = [sys.executable, "-S", "-X", "importtime", "-c", program, *arguments]
            with tempfile.TemporaryFile() as report:
                pipe = subprocess.PIPE
                with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=report) as process:
                    assert process.stdout is not None
                    process.stdout.readline()  # it has started: the daemon has greeted
                    process.terminate()
                report.seek(0)
                for line in report.read().decode().splitlines():
                    if line.startswith("import time:"):
                        names.add(line.rpartition("|")[2].strip())
    return sorted(names - {"imported package"})


if __name__ == "__main__":
    build()
