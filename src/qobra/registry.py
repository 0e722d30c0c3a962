"""Find the module that implements a schema name, and load it when it is first asked for.

A driver, job, export, object, device, chardev or netdev is one module that registers itself. The module has the
schema name with underscores for hyphens (``null-co`` is ``null_co.py``), so a lookup imports exactly one file, and
listing the names reads a directory and imports nothing.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Generic, TypeVar

    T = TypeVar("T")
else:
    T = None

    class Generic:
        """Stands in for typing's, which is dear to import at the start."""

        def __class_getitem__(cls, _item: object) -> type:
            return cls


class Registry(Generic[T]):
    """Schema name to implementation, over the modules of some packages.

    A module whose name begins with an underscore is private to its package and no implementation.
    """

    def __init__(self, kind: str, packages: list[str]) -> None:
        self.kind = kind
        self._packages = packages
        self._items: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        """Class decorator: the decorated thing is what ``names`` stand for."""

        def decorate(item: T) -> T:
            for name in names:
                self._items[name] = item
            return item

        return decorate

    def find(self, name: str) -> T | None:
        """The implementation of ``name``, or None where there is none."""
        if name in self._items:
            return self._items[name]
        module = name.replace("-", "_").replace(".", "_").lower()
        if not module.isidentifier() or module.startswith("_"):
            return None
        for package in self._packages:
            if _has_module(package, module):
                __import__(f"{package}.{module}")
                if name in self._items:
                    return self._items[name]
        return None

    def loaded(self) -> dict[str, T]:
        """What has registered so far."""
        return self._items

    def load_all(self) -> dict[str, T]:
        """Import every module and return all that has registered, by name."""
        for package in self._packages:
            for module in modules(package):
                __import__(f"{package}.{module}")
        return dict(sorted(self._items.items()))

    def names(self) -> list[str]:
        """Every name that :meth:`find` answers, sorted."""
        return sorted(self.load_all())


def _directories(package: str) -> list[str]:
    """Where the modules of ``package`` are; nowhere if there is no such package."""
    try:
        __import__(package)  # importlib, for all that it is called, would have to be imported first
        return list(sys.modules[package].__path__)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{package}.".startswith(f"{error.name}."):
            return []
        raise


def _has_module(package: str, module: str) -> bool:
    # importlib.util would tell as well, but takes longer to import than most of what is found.
    return any(
        os.path.exists(f"{directory}/{module}.py") or os.path.exists(f"{directory}/{module}/__init__.py")
        for directory in _directories(package)
    )


_listed: dict[str, tuple[str, ...]] = {}


def modules(package: str) -> tuple[str, ...]:
    """The modules of ``package`` that are not private. It is looked once: a program may lose sight of its files."""
    if package not in _listed:
        _listed[package] = tuple(_list(package))
    return _listed[package]


def _list(package: str) -> Iterator[str]:
    for directory in _directories(package):
        for entry in sorted(os.listdir(directory)):
            if entry.startswith("_"):
                continue
            if entry.endswith(".py"):
                yield entry[:-3]
            elif os.path.exists(os.path.join(directory, entry, "__init__.py")):
                yield entry
