"""Build the compiled forms in ``src/qobra/native`` where that is possible; everything else is in pyproject.toml.

Without Cython, a C compiler or Python's headers the package installs all the same, with its pure-Python forms.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.machinery
import os
import re
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from Cython import __version__ as cython_version
    from Cython.Build import cythonize
except ImportError:
    cythonize = None

NATIVE = "src/qobra/native"
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
"""How the names of forms end that this interpreter loads: those of other interpreters may lie beside them."""
DIRECTIVES = {"language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True}


def extensions() -> list[Extension]:
    if cythonize is None:
        return []
    found = [
        Extension(
            "qobra.native." + path.rsplit("/", 1)[1].removesuffix(".pyx"),
            [path],
            include_dirs=[NATIVE],
            extra_compile_args=["-O3"],
        )
        for path in sorted(glob.glob(f"{NATIVE}/*.pyx"))
    ]
    made = list(cythonize(found, build_dir="build/cython", compiler_directives=DIRECTIVES, quiet=True))
    for extension in made:  # cythonize makes new ones, without this
        extension.optional = True
    return made


class BuildForms(build_ext):
    """Builds the forms, and writes into each of which build it is (``native/build.pxd`` has room for that).

    In a source tree each form takes the place of its former at once, since a program may be starting, and what could
    not be built leaves none of an earlier build there. As many are compiled at once as there are processors.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or len(os.sched_getaffinity(0))

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except BaseException:  # it is optional: the build goes on without
            built = self.built(ext)
            if os.path.exists(built):
                os.remove(built)
            raise

    def run(self) -> None:
        in_place = self.inplace
        super().run()
        if not in_place:
            for extension in self.extensions:
                self.stamp(extension, self.built(extension))

    def copy_extensions_to_source(self) -> None:
        for extension in self.extensions:
            self.stamp(extension, os.path.join("src", self.get_ext_filename(extension.name)))
        wanted = {os.path.join("src", self.get_ext_filename(extension.name)) for extension in self.extensions}
        for path in glob.glob(f"{NATIVE}/*{SUFFIX}"):
            if path not in wanted:  # the source of it is gone, or Cython is
                os.remove(path)
        Path(NATIVE, ".built" + SUFFIX.removesuffix(".so")).touch()

    def built(self, ext: Extension) -> str:
        return os.path.join(self.build_lib, self.get_ext_filename(ext.name))

    def stamp(self, ext: Extension, target: str) -> None:
        """Put the form, of this build, at ``target``."""
        if not os.path.exists(self.built(ext)):
            if os.path.exists(target):
                os.remove(target)
            return
        with open(self.built(ext), "rb") as stream:
            data = re.sub(rb"qobra build [0-9a-f]{16}", b"qobra build " + digest().encode(), stream.read())
        with open(f"{target}.new", "wb") as stream:
            stream.write(data)
        os.chmod(f"{target}.new", 0o755)
        os.replace(f"{target}.new", target)


def digest() -> str:
    """16 hexadecimal digits that tell a build of all these sources from any other."""
    found = hashlib.sha256(f"{cython_version} {DIRECTIVES}".encode())
    for path in sorted(glob.glob(f"{NATIVE}/*.p[yx][xd]") + glob.glob(f"{NATIVE}/*.h")):
        with open(path, "rb") as stream:
            found.update(f"\n{os.path.basename(path)}\n".encode() + stream.read())
    return found.hexdigest()[:16]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildForms})
