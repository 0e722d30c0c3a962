"""Build the compiled forms in ``src/qobra/native`` where that is possible; everything else is in pyproject.toml.

Without Cython, a C compiler or Python's headers the package installs all the same, with its pure-Python forms.
"""

from __future__ import annotations

import glob

from setuptools import Extension, setup

try:
    from Cython.Build import cythonize
except ImportError:
    cythonize = None

DIRECTIVES = {"language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True}


def extensions() -> list[Extension]:
    if cythonize is None:
        return []
    found = [
        Extension(
            "qobra.native." + path.rsplit("/", 1)[1].removesuffix(".pyx"),
            [path],
            include_dirs=["src/qobra/native"],
            depends=glob.glob("src/qobra/native/*.h"),
            extra_compile_args=["-O3"],
        )
        for path in sorted(glob.glob("src/qobra/native/*.pyx"))
    ]
    made = list(cythonize(found, build_dir="build/cython", compiler_directives=DIRECTIVES, quiet=True))
    for extension in made:  # cythonize makes new ones, without this
        extension.optional = True
    return made


setup(ext_modules=extensions())
