"""What makes a program start sooner: bytecode in one file, and no ``site`` where nothing asks for it.

Python looks every module up in directories, opens its file and reads it, a tenth of a millisecond for each of the
forty to eighty that a start needs. The *bundle* is one file with the bytecode of the modules that the usual starts
import, made by ``python -m qobra.cli._bundle`` when an environment is set up. As with ``.pyc`` files, the size and the
time of each source are compared first, and a module whose source is another is imported as ever; without a bundle
all are.

The modules lie in *sections*: those that the same of the usual starts import are in one, which is read and unmarshalled
together, so that what they share is read once.

The console programs of an environment run with ``-S``: :class:`SitePackages` finds what lies in ``site-packages``
when it is first imported.
"""

# Not `from __future__ import annotations`: a start imports no other module of that name.

import gc
import marshal
import os
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType, TracebackType
    from typing import Any

    Entry = tuple[str, bool, int, int, int]
    """(source, whether it is a package, its size, its time in nanoseconds, number of its section or EXTENSION)."""
    Index = tuple[tuple[str, str], dict[str, Entry], list[tuple[int, int]]]
    """(HOME, modules by name, (begin, length) of the sections in the file)."""

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HOME = PACKAGE, os.path.dirname(os.__file__)
"""What a bundle is of: this tree, and this standard library."""
PATH = os.path.join(PACKAGE, "__pycache__", f"start.{sys.implementation.cache_tag}.bundle")

_PYC = f".{sys.implementation.cache_tag}.pyc"

_ModuleType = type(sys)

EXTENSION = -1
"""In the place of a section: the module is compiled, and its source the file to be loaded."""

FIRST_READ = 32 << 10
"""Bytes that most likely hold the index."""


class Bundle:
    """A finder and loader of the modules in a bundle."""

    def __init__(self, path: str) -> None:
        """Read the index. Raises OSError, ValueError, EOFError or TypeError for what is no bundle."""
        self._path = path
        self._codes: dict[str, CodeType] = {}
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._file = _identity(fd)
            data = os.read(fd, FIRST_READ)
            end = 8 + int.from_bytes(data[:8], "little")
            if len(data) < end <= os.fstat(fd).st_size:
                data += os.read(fd, end - len(data))
        finally:
            os.close(fd)
        index: Index = marshal.loads(data[8:end])
        self.home, self._entries, self._sections = index

    def find_spec(self, name: str, path: "Sequence[str] | None" = None, target: "Any" = None) -> "ModuleSpec | None":
        entry = self._entries.get(name)
        if entry is None:
            return None
        source, is_package, size, time, section = entry
        try:
            found = os.stat(source)
            if found.st_size != size or found.st_mtime_ns != time:
                return None
            if section == EXTENSION:
                return _extension(name, source)
            if name not in self._codes and not self._read(section):
                return None
        except OSError:
            return None
        spec = ModuleSpec(name, self, origin=source, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location = True
        directory, _, file = source.rpartition("/")
        spec.cached = f"{directory}/__pycache__/{file[:-3]}{_PYC}"  # importlib would take longer to work it out
        if is_package:
            spec.submodule_search_locations = [os.path.dirname(source)]
        return spec

    def _read(self, number: int) -> bool:
        """Read a section; False if the file is another by now."""
        begin, length = self._sections[number]
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _identity(fd) != self._file:
                return False
            self._codes.update(marshal.loads(os.pread(fd, length, begin)))
        finally:
            os.close(fd)
        return True

    def create_module(self, spec: ModuleSpec) -> "ModuleType":
        module = _ModuleType(spec.name)
        # importlib would set these as well, but looks for them first, and makes an error of each that is not there.
        module.__loader__ = self  # type: ignore[assignment]
        module.__package__ = spec.parent
        module.__file__ = spec.origin
        module.__dict__["__cached__"] = spec.cached
        return module

    def exec_module(self, module: "ModuleType") -> None:
        exec(self._codes.pop(module.__name__), module.__dict__)

    def get_code(self, name: str) -> "CodeType | None":
        """The code object of a module, for ``python -m`` and ``inspect``."""
        if name not in self._codes and not self._read(self._entries[name][4]):
            return None
        return self._codes[name]

    def get_source(self, name: str) -> str:
        """The text of a module, for tracebacks."""
        with open(self._entries[name][0], encoding="utf-8") as stream:
            return stream.read()


def _extension(name: str, path: str) -> ModuleSpec:
    spec = ModuleSpec(name, ExtensionFileLoader(name, path), origin=path)
    spec.has_location = True
    return spec


def _identity(fd: int) -> tuple[int, int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, found.st_mtime_ns


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


def start() -> None:
    """Use the bundle, if there is one that fits, and do without ``site`` until it is needed."""
    # Modules are no garbage: with the usual threshold the collector would look through them dozens of times.
    gc.set_threshold(20_000)
    try:
        bundle = Bundle(PATH)
        if bundle.home == HOME:  # not of a tree that this one is a copy of
            sys.meta_path.insert(0, bundle)
    except (OSError, ValueError, EOFError, TypeError):
        pass
    if sys.flags.no_site:
        sys.meta_path.append(SitePackages())
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _excepthook


def _excepthook(kind: type[BaseException], error: BaseException, trace: "TracebackType | None") -> None:
    """Ctrl-C while a program is still being imported is nothing to show: Python dies of the signal."""
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, trace)
