"""What makes a program start sooner: bytecode in one file, of just what it runs, and no ``site`` or ``os`` unasked.

Python looks every module up in directories, opens its file and reads it. The *bundle* is one file with bytecode, made
by ``python -m qobra.cli._bundle`` when an environment is set up. It holds

- *starts*, one for each usual way to start a program: the modules that it imports, in the order in which they were
  complete. They are executed in that order, one after the other, so that the import statements in them find
  everything there; importlib would take twice as long for each as most of them do.
- *modules*, each by itself, for what is imported otherwise.

As with ``.pyc`` files, the size and the time of each source are compared first, and a module whose source is another is
imported as ever; without a bundle all are.

The console programs of an environment run with ``-S``: :class:`SitePackages` finds what lies in ``site-packages``
when it is first imported, and ``os`` is a :func:`lean one <_lean_os>` until something asks for more of it.
"""

# Not `from __future__ import annotations`: a start imports no other module of that name. Nor `os`, see _lean_os.

import builtins
import gc
import marshal
import posix
import sys
from _frozen_importlib import FrozenImporter, ModuleSpec, module_from_spec
from _frozen_importlib_external import ExtensionFileLoader, PathFinder
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType, TracebackType
    from typing import Any

    Place = tuple[int, int]
    """(begin, length) behind the header."""
    Entry = tuple[str, int, int, bool, Place | None]
    """(source, its size, its time in nanoseconds, whether it is a package, its bytecode or None for an extension)."""
    Executed = list[tuple[str, str, int, int, bool, CodeType | None]]
    Start = tuple[Executed, dict[str, Entry]]
    """(what is executed at once, entries of what is imported besides).

    The first are names with what entries hold, but the bytecode itself: in one piece it is read sooner. A package that
    is executed after what is in it comes before that too, without bytecode.
    """

PACKAGE = __file__.rpartition("/")[0].rpartition("/")[0]
HOME = PACKAGE, getattr(sys, "_stdlib_dir", None), 3
"""What a bundle is of: this tree, this standard library, and this form of bundles."""
PATH = f"{PACKAGE}/__pycache__/start.{sys.implementation.cache_tag}.bundle"

_PYC = f".{sys.implementation.cache_tag}.pyc"

_ModuleType = type(sys)

FIRST_READ = 4 << 10
"""Bytes that most likely hold the header."""


class Bundle:
    """A finder and loader of the modules in a bundle. Its file stays open: it may be replaced by another any time."""

    def __init__(self, path: str) -> None:
        """Read the header. Raises OSError, ValueError, EOFError or TypeError for what is no bundle."""
        self._fd = _open_past_standard_streams(path)
        try:
            data = posix.pread(self._fd, FIRST_READ, 0)
            self._data = end = 8 + int.from_bytes(data[:8], "little")
            if len(data) < end <= posix.fstat(self._fd).st_size:
                data += posix.pread(self._fd, end - len(data), len(data))
            self.home: tuple[str, str | None, int]
            self._starts: dict[tuple[str, str], Place]
            self.home, self._starts, self._modules = marshal.loads(data[8:end])
        except BaseException:
            posix.close(self._fd)
            raise
        self._codes: dict[str, CodeType] = {}
        self._entries: dict[str, Entry] | None = None
        self._near: dict[str, Entry] = {}

    def close(self) -> None:
        posix.close(self._fd)

    def _load(self, place: "Place") -> "Any":
        return marshal.loads(posix.pread(self._fd, place[1], self._data + place[0]))

    def find_spec(self, name: str, path: "Sequence[str] | None" = None, target: "Any" = None) -> "ModuleSpec | None":
        if self._starts:
            found = self.begin(name)
            if found is not None:
                return found
        entry = self._near.get(name)
        if entry is None:
            if self._entries is None:
                self._entries = self._load(self._modules)
            entry = self._entries.get(name)
        if entry is None or not _is_as_it_was(*entry[:3]):
            return None
        source, _size, _time, is_package, place = entry
        if place is None:
            return _extension(name, source)
        self._codes[name] = self._load(place)
        return self._spec(name, source, is_package)

    def begin(self, first: str, *, whole: bool = False) -> "ModuleSpec | None":
        """If a usual start begins with the module ``first``, execute what it imports, and return the spec of that.

        ``whole``: execute ``first`` too.
        """
        word = next((word for word in sys.argv[1:] if (first, word) in self._starts), "")
        place = self._starts.get((first, word))
        if place is None:
            return None
        self._starts = {}
        gc.disable()  # modules are no garbage
        usual = builtins.__import__
        builtins.__import__ = _lean_import
        try:
            now, self._near = self._load(place)
            return self._execute(now, "" if whole else first)
        finally:
            builtins.__import__ = usual
            gc.freeze()
            gc.enable()

    def _execute(self, now: "Executed", first: str) -> "ModuleSpec | None":
        """Execute the modules of a start; but not the last, if that is ``first``: return its spec."""
        modules = sys.modules
        opened: dict[str, ModuleType] = {}
        for name, source, size, time, is_package, code in now:
            parent, _, child = name.rpartition(".")
            module = opened.get(name)
            if module is None:
                if name in modules or (parent and parent not in modules) or not _is_as_it_was(source, size, time):
                    continue  # whoever imports it first finds what there is
                spec = self._spec(name, source, is_package)
                if name == first and code is not None:
                    self._codes[name] = code
                    return spec
                module = modules[name] = opened[name] = self.create_module(spec)
                namespace = module.__dict__
                namespace["__spec__"] = spec
                if is_package:
                    namespace["__path__"] = spec.submodule_search_locations
            if code is None:
                continue  # modules in it come first
            try:
                exec(code, module.__dict__)
            except Exception:
                del modules[name]  # whoever imports it is told
                continue
            if parent:
                setattr(modules[parent], child, module)
        return None

    def _spec(self, name: str, source: str, is_package: bool) -> ModuleSpec:
        spec = ModuleSpec(name, self, origin=source, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location = True
        spec.__dict__["_initializing"] = False  # each import looks for it, and makes an error of what is not there
        directory, _, file = source.rpartition("/")
        spec.cached = f"{directory}/__pycache__/{file[:-3]}{_PYC}"  # importlib would take longer to work it out
        if is_package:
            spec.submodule_search_locations = [directory]
        return spec

    def create_module(self, spec: ModuleSpec) -> "ModuleType":
        module = _ModuleType(spec.name)
        # importlib would set these as well, but looks for them first, and makes an error of each that is not there.
        namespace = module.__dict__
        namespace["__loader__"] = self
        namespace["__package__"] = spec.parent
        namespace["__file__"] = spec.origin
        namespace["__cached__"] = spec.cached
        return module

    def exec_module(self, module: "ModuleType") -> None:
        exec(self._codes.pop(module.__name__), module.__dict__)

    def get_code(self, name: str) -> "CodeType | None":
        """The code object of a module, for ``python -m`` and ``inspect``."""
        return self._codes.get(name) or self._module(name)

    def get_source(self, name: str) -> str:
        """The text of a module, for tracebacks."""
        if self._entries is None:
            self._entries = self._load(self._modules)
        with open(self._entries[name][0], encoding="utf-8") as stream:
            return stream.read()

    def _module(self, name: str) -> "CodeType":
        if self._entries is None:
            self._entries = self._load(self._modules)
        place = self._entries[name][4]
        assert place is not None
        code: CodeType = self._load(place)
        return code


def _lean_import(
    name: str,
    globals: "Any" = None,
    locals: "Any" = None,
    fromlist: "Sequence[str] | None" = (),
    level: int = 0,
    whole: "Any" = builtins.__import__,
) -> "Any":
    """What an import statement calls while a start is executed: most modules are there.

    The interpreter's own looks for a ``__path__`` in each, and makes an error of each that is not there.
    """
    if fromlist and not level:
        module = sys.modules.get(name)
        if module is not None and "__path__" not in module.__dict__:
            return module
    return whole(name, globals, locals, fromlist, level)


def _open_past_standard_streams(path: str) -> int:
    """Open a file to be read, as none of the numbers 0 to 2: a stream that was closed takes its own again."""
    low = []
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        while fd <= 2:
            low.append(fd)
            fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
        return fd
    finally:
        for number in low:
            posix.close(number)


def _is_as_it_was(source: str, size: int, time: int) -> bool:
    try:
        found = posix.stat(source)
    except OSError:
        return False
    return found.st_size == size and found.st_mtime_ns == time


def _extension(name: str, path: str) -> ModuleSpec:
    spec = ModuleSpec(name, ExtensionFileLoader(name, path), origin=path)
    spec.has_location = True
    return spec


class SitePackages:
    """Puts ``site-packages`` on the path at the first import that nothing else finds, and goes."""

    def find_spec(self, name: str, path: "Sequence[str] | None" = None, target: "Any" = None) -> "ModuleSpec | None":
        if path is not None:
            return None  # a submodule: its package knows where to look
        sys.meta_path.remove(self)
        import site
        from importlib.util import find_spec

        site.main()
        return find_spec(name)


def _lean_os() -> None:
    """Put an ``os`` in place that has what ``posix`` has, and becomes the whole at the first look for anything else.

    Most of ``os`` is ``posix`` under another name; for the rest it makes abstract classes, which takes an eighth of the
    time of a start.
    """
    module = _ModuleType("os")
    namespace = module.__dict__
    for name, value in posix.__dict__.items():
        if (name[0] != "_" or name == "_exit") and name != "environ":  # posix's is of bytes
            namespace[name] = value
    encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()

    def fsencode(path: "Any") -> bytes:
        path = posix.fspath(path)
        return path.encode(encoding, errors) if isinstance(path, str) else path

    def fsdecode(path: "Any") -> str:
        path = posix.fspath(path)
        return path.decode(encoding, errors) if isinstance(path, bytes) else path

    def getenv(key: str, default: "Any" = None) -> "Any":
        value = posix.environ.get(fsencode(key))
        return default if value is None else fsdecode(value)

    lock = RLock()
    state = ""

    def complete(name: str) -> "Any":
        nonlocal state
        with lock:
            if not state:
                state = "begun"
                spec = FrozenImporter.find_spec("os") or PathFinder.find_spec("os")
                assert spec is not None and spec.loader is not None
                namespace.update(module_from_spec(spec).__dict__)
                spec.loader.exec_module(module)
                namespace.pop("__getattr__")
        if name in namespace:
            return namespace[name]
        raise AttributeError(f"module 'os' has no attribute {name!r}")

    sys.modules["os"] = module
    import posixpath

    sys.modules["os.path"] = posixpath
    namespace.update(
        path=posixpath, name="posix", devnull="/dev/null", SEEK_SET=0, SEEK_CUR=1, SEEK_END=2,
        fsencode=fsencode, fsdecode=fsdecode, getenv=getenv, __getattr__=complete,
    )  # fmt: skip


def start() -> "Bundle | None":
    """Use the bundle, if there is one that fits, and do without ``site`` and ``os`` until they are needed."""
    # Modules are no garbage: with the usual threshold the collector would look through them dozens of times.
    gc.set_threshold(20_000)
    if "os" not in sys.modules:
        _lean_os()
    bundle: Bundle | None = None
    try:
        bundle = Bundle(PATH)
        if bundle.home == HOME:  # not of a tree that this one is a copy of
            sys.meta_path.insert(sys.meta_path.index(PathFinder), bundle)
        else:
            bundle.close()
            bundle = None
    except (OSError, ValueError, EOFError, TypeError):
        pass
    if sys.flags.no_site:
        sys.meta_path.append(SitePackages())
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _excepthook
    return bundle


def run(program: str, function: str) -> int:
    """Start, and call a function of the module ``program``: what it returns is the program's exit status.

    For a script that imports nothing but this file, without the packages around it: the bundle has them.
    """
    global _started
    _started = True
    bundle = start()
    if bundle is not None:
        bundle.begin(program, whole=True)
    __import__(program)
    status: int = getattr(sys.modules[program], function)()
    return status


_started = False


def start_once() -> None:
    """Start, unless :func:`run` does."""
    if not _started:
        start()


def _excepthook(kind: type[BaseException], error: BaseException, trace: "TracebackType | None") -> None:
    """Ctrl-C while a program is still being imported is nothing to show: Python dies of the signal.

    What else nobody expected is one line, as every error; ``QOBRA_TRACEBACK`` in the environment
    shows where it is from.
    """
    if kind is KeyboardInterrupt:
        return
    import os

    if os.getenv("QOBRA_TRACEBACK"):
        sys.__excepthook__(kind, error, trace)
    else:
        from qobra.errors import NUL_IN_NAME, is_nul_in_name
        from qobra.report import report_error

        report_error(NUL_IN_NAME if is_nul_in_name(error) else f"internal error: {kind.__name__}: {error}")
