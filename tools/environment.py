"""Make or complete the project's virtual environment: ``environment.py [--choose] VENV [EXTRA...]``.

With no EXTRA it makes an environment that runs Qobra and nothing else: the core needs the standard library
alone, so neither pip nor a package index is asked. With extras of pyproject.toml (``test``, ``docs``) it
installs what they and the project list. The source tree is put on the path, and the console programs are
written, without a build.

A Debian or Ubuntu ``python3`` without ``python3-venv`` has no pip to put into an environment. There ``uv`` is
used if it is installed; or else, as root, ``python3-venv`` is installed.

With --choose a new environment gets the distribution's Python rather than the one that runs this, where that can do as
much: distributions build it with profile-guided optimization, which others often are without.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys

MINIMUM = (3, 11)
SYSTEM_PYTHON = "/usr/bin/python3"
# New enough, able to make an environment with pip, and with the headers that the compiled forms need.
COMPLETE = f"""import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(sys.version_info < {MINIMUM} or not os.path.exists(header))
"""
# Without `site` and the folder of the program on the path the start is shorter; qobra.cli brings `site` in where
# something of site-packages is imported. Ctrl-C ends a program that has not begun yet at once; Python would show where
# in its imports it was. And just one file is looked for in its folder: what is in the others is in the bundle.
PROGRAM = """#!{python} -SP
import _signal
import sys

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from _frozen_importlib import module_from_spec
from _frozen_importlib_external import spec_from_file_location

sys.path.insert(0, {source!r})
spec = spec_from_file_location("qobra.cli._start", {source!r} + "/qobra/cli/_start.py")
start = sys.modules[spec.name] = module_from_spec(spec)
spec.loader.exec_module(start)

sys.exit(start.run({module!r}, {function!r}))
"""
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main(argv: list[str]) -> int:
    if sys.version_info < MINIMUM:
        return use_newer_python(argv)
    chooses, (venv, *extras) = argv[1] == "--choose", [word for word in argv[1:] if word != "--choose"]
    venv = os.path.abspath(venv)
    python = os.path.join(venv, "bin", "python")
    if not works(python):
        run(best_python() if chooses else sys.executable, "-m", "venv", "--clear", "--without-pip", venv)
    link_source(python, venv)
    remove_stale_forms(os.path.join(ROOT, "src", "qobra", "native"))
    if extras:
        install(python, venv, extras)
    # Where PYTHONDONTWRITEBYTECODE is set, every start would compile what it imports, which takes longer than that.
    run(python, "-m", "compileall", "-q", os.path.join(ROOT, "src"))
    run(python, "-m", "qobra.cli._bundle")
    return 0


def best_python() -> str:
    """The distribution's Python where it can do as much as this one, else this."""
    return SYSTEM_PYTHON if works(SYSTEM_PYTHON, COMPLETE) else sys.executable


def use_newer_python(argv: list[str]) -> int:
    """Run again with a newer Python, where there is one beside this."""
    for minor in range(20, MINIMUM[1] - 1, -1):
        newer = shutil.which(f"python3.{minor}")
        if newer and works(newer):
            os.execv(newer, [newer, *argv])
    sys.exit(f"Qobra needs Python 3.{MINIMUM[1]} or newer; {sys.executable} is {platform.python_version()}")


def link_source(python: str, venv: str) -> None:
    """Make ``import qobra`` and the console programs work from the source tree."""
    import tomllib

    purelib = output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    source = os.path.join(ROOT, "src")
    write(os.path.join(purelib, "qobra.pth"), source + "\n")
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as stream:
        scripts = tomllib.load(stream)["project"]["scripts"]
    for name, target in scripts.items():
        module, function = target.split(":")
        text = PROGRAM.format(python=python, source=source, module=module, function=function)
        write(os.path.join(venv, "bin", name), text, 0o755)


def remove_stale_forms(native: str) -> None:
    """Remove compiled forms in the folder ``native`` that are older than their sources: they may not fit any more.

    The pure-Python forms serve then, until ``make compiled`` has made the others anew. The stamp of each interpreter's
    forms ends as their names do.
    """
    names = os.listdir(native)
    sources = [os.path.join(native, name) for name in names if name.endswith((".pyx", ".pxd", ".h"))]
    for stamp in [name for name in names if name.startswith(".built")]:
        built = os.path.getmtime(os.path.join(native, stamp))
        if all(os.path.getmtime(path) <= built for path in sources):
            continue
        suffix = stamp.removeprefix(".built") + ".so"
        for name in names:
            if name == stamp or name.endswith(suffix):
                os.remove(os.path.join(native, name))
        print("the compiled forms were older than their sources and are gone; 'make compiled' makes them", flush=True)


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Write a file unless it is there as it should be: a program that runs may be reading it."""
    if not os.path.exists(path) or open(path).read() != text:
        with open(path, "w") as stream:
            stream.write(text)
        os.chmod(path, mode)


def install(python: str, venv: str, extras: list[str]) -> None:
    """Install what the project and ``extras`` list into the environment."""
    import tomllib

    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as stream:
        project = tomllib.load(stream)["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    print(f"installing the packages for {', '.join(extras)} into {os.path.relpath(venv)} ...", flush=True)
    if has_pip(python):
        run(python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *wanted)
    elif shutil.which("uv"):
        run("uv", "pip", "install", "--quiet", "--python", python, *wanted)
    else:
        if importlib.util.find_spec("ensurepip") is None:
            install_ensurepip()
        run(python, "-m", "ensurepip", "--upgrade", quiet=True)
        run(python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *wanted)


def install_ensurepip() -> None:
    """Install the part of Python's standard library that Debian keeps in a package of its own."""
    versioned = f"python3.{sys.version_info.minor}-venv"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit(f"this Python has no ensurepip: install {versioned} or uv, then try again")
    print(f"installing {versioned} ...", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-qy", "--no-install-recommends", versioned]
    if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode != 0:
        run("apt-get", "update", "-q", quiet=True)
        run(*command, quiet=True)


def works(python: str, code: str = f"import sys; sys.exit(sys.version_info < {MINIMUM})") -> bool:
    """Whether ``python`` runs and is new enough, or whatever else ``code`` finds out."""
    try:
        return subprocess.run([python, "-c", code], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def has_pip(python: str) -> bool:
    return subprocess.run([python, "-c", "import pip"], stderr=subprocess.DEVNULL).returncode == 0


def run(*command: str, quiet: bool = False) -> None:
    """Run ``command``; end with its status if it fails."""
    status = subprocess.run(command, stdout=subprocess.DEVNULL if quiet else None).returncode
    if status != 0:
        sys.exit(f"failed with status {status}: {' '.join(command)}")


def output(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
