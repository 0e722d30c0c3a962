"""Import what a machine may need later, before the program loses sight of its files (``-chroot``, ``-runas``)."""

from __future__ import annotations

import dis
import importlib
import pkgutil
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

import qobra
from qobra import command
from qobra.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

_FOR_OTHER_PROGRAMS = ("cli", "client", "testing")
_BY_THE_LIBRARY = ("encodings.idna", "encodings.ascii", "encodings.latin_1", "traceback", "linecache", "warnings")
"""What the standard library imports when it is first needed."""


def preload() -> None:
    """Import every module of a machine, and all that their functions import when they run."""
    for module in _modules(qobra):
        for value in tuple(vars(module).values()):
            if isinstance(value, Registry):
                value.load_all()
        loader: Any = module.__spec__.loader if module.__spec__ else None
        code = loader.get_code(module.__name__) if hasattr(loader, "get_code") else None
        for name in _imports(code) if code is not None else ():
            _import(name)
    command.load_all()
    for name in _BY_THE_LIBRARY:
        _import(name)


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if package is qobra and info.name.rpartition(".")[2] in _FOR_OTHER_PROGRAMS:
            continue
        module = _import(info.name)
        if module is None:
            continue
        if info.ispkg:
            yield from _modules(module)
        else:
            yield module


def _imports(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            yield instruction.argval
        elif isinstance(instruction.argval, CodeType):
            yield from _imports(instruction.argval)


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None  # what is optional, and not there
