"""``array`` without ``collections``, for what is imported at the start.

``array`` imports ``collections.abc`` to be registered there as a sequence: an abstract class, which takes much longer
to make, with all that are beside it, than to do without. Where this module comes first, that is done when somebody
imports them.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

if "array" in sys.modules or "_collections_abc" in sys.modules:
    from array import array
else:

    class MutableSequence:
        """In the place of the abstract class, while ``array`` looks for it."""

        @staticmethod
        def register(_type: type) -> None:
            """It is made up for."""

    class _Registering:
        """A finder that is there for the first import of the abstract classes."""

        @staticmethod
        def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
            if name != "_collections_abc":
                return None
            sys.meta_path.remove(_Registering)
            for finder in sys.meta_path:
                spec: Any = finder.find_spec(name, path, target)
                if spec is not None:
                    spec.loader = _Registrar(spec.loader)
                    return spec  # type: ignore[no-any-return]
            return None

    class _Registrar:
        """The loader of the abstract classes, which then registers the array."""

        def __init__(self, loader: Any) -> None:
            self._loader = loader

        def create_module(self, spec: ModuleSpec) -> ModuleType | None:
            created: ModuleType | None = self._loader.create_module(spec)
            return created

        def exec_module(self, module: ModuleType) -> None:
            module.__loader__ = self._loader
            if module.__spec__ is not None:
                module.__spec__.loader = self._loader
            self._loader.exec_module(module)
            module.MutableSequence.register(array)

    sys.modules["collections.abc"] = sys.modules["collections"] = sys.modules[__name__]
    try:
        from array import array
    finally:
        del sys.modules["collections.abc"], sys.modules["collections"]
    sys.meta_path.insert(0, _Registering)

__all__ = ["array"]
