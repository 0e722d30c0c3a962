"""Compiled forms of the hottest loops, in Cython and without the GIL: optional, and never the only form.

Each ``NAME.pyx`` here has a pure-Python form elsewhere, which names it with :func:`compiled` and takes over where the
extension was not built (no C compiler, no headers of Python, no Cython at install). The same tests run on both forms.
``NAME.pyi`` holds the types. ``QOBRA_PURE=1`` in the environment leaves every compiled form out.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


def compiled(name: str) -> ModuleType | None:
    """The extension module ``qobra.native.NAME``, or None where it was not built or is not wanted."""
    if os.getenv("QOBRA_PURE"):
        return None
    try:
        return __import__(f"qobra.native.{name}", fromlist=[name])
    except ImportError:
        return None
