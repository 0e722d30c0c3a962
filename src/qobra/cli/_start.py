"""What makes a program start sooner: bytecode in one file, and no ``site`` where nothing asks for it.

Python looks every module up in directories, opens its file and reads it, a tenth of a millisecond for each of the
forty to eighty that a start needs. The *bundle* is one file with the bytecode of the modules that the usual starts
import, made by ``python -m qobra.cli._bundle`` when an environment is set up. As with ``.pyc`` files, the size and the
time of each source are compared first, and a module whose source is another is imported as ever; without a bundle
all are.

The console programs of an environment run with ``-S``: :class:`SitePackages` finds what lies in ``site-packages``
when it is first imported.
"""

from __future__ import annotations

import gc
import marshal
import os
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

    Entry = tuple[str, bool, int, int, int, int]
    """(source, whether it is a package, its size, its time in nanoseconds, begin and end of its bytecode)."""

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PATH = os.path.join(PACKAGE, "__pycache__", f"start.{sys.implementation.cache_tag}.bundle")


class Bundle:
    """A finder and loader of the modules in a bundle. ``entries`` is its index, ``code`` all bytecode."""

    def __init__(self, entries: dict[str, Entry], code: memoryview) -> None:
        self._entries = entries
        self._code = code

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        entry = self._entries.get(name)
        if entry is None:
            return None
        source, is_package, size, time, _begin, _end = entry
        try:
            found = os.stat(source)
        except OSError:
            return None
        if found.st_size != size or found.st_mtime_ns != time:
            return None
        spec = ModuleSpec(name, self, origin=source, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location = True
        if is_package:
            spec.submodule_search_locations = [os.path.dirname(source)]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(self.get_code(module.__name__), module.__dict__)

    def get_code(self, name: str) -> Any:
        """The code object of a module, for ``python -m`` and ``inspect``."""
        *_, begin, end = self._entries[name]
        return marshal.loads(self._code[begin:end])

    def get_source(self, name: str) -> str:
        """The text of a module, for tracebacks."""
        with open(self._entries[name][0], encoding="utf-8") as stream:
            return stream.read()


class SitePackages:
    """Puts ``site-packages`` on the path at the first import that nothing else finds, and goes."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
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
        with open(PATH, "rb") as stream:
            data = memoryview(stream.read())
        code = 8 + int.from_bytes(data[:8], "little")
        package, entries = marshal.loads(data[8:code])
        if package == PACKAGE:  # not of a tree that this one is a copy of
            sys.meta_path.insert(0, Bundle(entries, data[code:]))
    except (OSError, ValueError, EOFError, TypeError):
        pass
    if sys.flags.no_site:
        sys.meta_path.append(SitePackages())
