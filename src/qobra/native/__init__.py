"""Compiled forms of the hottest loops, in Cython and without the GIL: optional, and never the only form.

Each ``NAME.pyx`` here has a pure-Python form elsewhere, which names it with :func:`compiled` and takes over where the
extension was not built (no C compiler, no headers of Python, no Cython at install). The same tests run on both forms.
``NAME.pyi`` holds the types. ``QOBRA_PURE=1`` in the environment leaves every compiled form out.

Compiled forms share memory and call each other, so those of two builds must not meet: a daemon may be running while the
forms are built anew, and ask for one more afterwards. That one is refused, with what builds on it, and so are all where
the sources are newer than the forms, as after ``git pull``. A line on standard error says so; the pure forms serve.
"""

from __future__ import annotations

import os
from _imp import extension_suffixes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

_DIRECTORY = __file__.rpartition("/")[0]

_build: bytes | None = None
"""The build whose forms are in use; empty where none is to be used."""
_said: set[str] = set()


def compiled(name: str) -> ModuleType | None:
    """The extension module ``qobra.native.NAME``, or None where it was not built, does not fit or is not wanted."""
    global _build
    if os.getenv("QOBRA_PURE") or _build == b"":
        return None
    if _build is None and _are_older(_DIRECTORY):
        _build = b""
        _say("the compiled forms are older than their sources and left out: 'make compiled' makes them anew")
        return None
    try:
        return __import__(f"qobra.native.{name}", fromlist=[name])
    except ImportError:
        return None
    except (TypeError, ValueError) as error:  # a type or a function of another form is not as it was
        _say(f"the compiled form {name!r} does not fit the others and is left out: {error}")
        return None


def join_build(name: str, build: bytes) -> None:
    """Called by each form while it is imported: the first says which build is in use.

    Raises ImportError for one of another build.
    """
    global _build
    if not _build:
        _build = build
    if build != _build:
        _say(f"the compiled form {name.rpartition('.')[2]!r} is of another build than those in use and left out")
        raise ImportError(f"{name} is of another build", name=name)


def _are_older(directory: str) -> bool:
    """Whether a source came into a ``directory`` of a source tree after this interpreter's forms were built there."""
    stamp = ".built" + extension_suffixes()[0].removesuffix(".so")
    try:
        built = os.stat(f"{directory}/{stamp}").st_mtime_ns
    except OSError:
        return False  # forms that were installed
    if os.stat(directory).st_mtime_ns <= built:
        return False  # whoever replaces a file changes its directory
    sources = [name for name in os.listdir(directory) if name.endswith((".pyx", ".pxd", ".h"))]
    return any(os.stat(f"{directory}/{name}").st_mtime_ns > built for name in sources)


def _say(what: str) -> None:
    import sys

    if what not in _said:
        _said.add(what)
        sys.stderr.write(f"qobra: {what}\n")
