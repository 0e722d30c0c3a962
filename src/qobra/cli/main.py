"""``qobra SUBCOMMAND``: the program that has the others in it.

A subcommand is a module of :mod:`qobra.cli.subcommand` with ``HELP``, one line that says what it is for, and
``main(argv) -> int``. It is found by its name, with hyphens for underscores, and only the one asked for is imported:
to add one, add a file.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

from qobra.cli._tool.process import Terminated, buffer_output, catch_interrupts, finish_output
from qobra.errors import QobraError

_DIRECTORY = os.path.join(os.path.dirname(__file__), "subcommand")

# Subcommands that are programs of their own as well, named as with QEMU's tools.
PROGRAMS = {
    "io": "qobra.cli.io",
    "nbd": "qobra.cli.nbd",
    "shell": "qobra.cli.shell",
    "storage-daemon": "qobra.cli.storage_daemon",
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns its exit status."""
    if argv is None:
        buffer_output()
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print_help()
        return 0 if arguments else 1
    if arguments[0] in ("-V", "--version", "version"):
        from qobra import __version__

        print(f"qobra {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    module_name = module_of(name)
    if module_name is None:
        print(f"qobra: '{name}' is not a subcommand{_suggestion(name)}; see 'qobra --help'", file=sys.stderr)
        return 2
    if name in PROGRAMS and argv is None:
        sys.argv = [f"qobra-{name}", *rest]  # by which it calls itself
    return run(module_name, rest)


def run(module_name: str, arguments: list[str]) -> int:
    """Run the ``main`` of a module, with errors as one line on standard error."""
    catch_interrupts()
    try:
        return finish_output(int(importlib.import_module(module_name).main(arguments) or 0))
    except QobraError as error:
        print(f"qobra: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output has gone; let the interpreter's last flush not complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Terminated as signalled:
        return 128 + signalled.number


def module_of(name: str) -> str | None:
    """The module of a subcommand, None if there is none of the name."""
    if name in PROGRAMS:
        return PROGRAMS[name] if importlib.util.find_spec(PROGRAMS[name]) is not None else None
    return f"qobra.cli.subcommand.{name.replace('-', '_')}" if name in subcommands() else None


def subcommands() -> list[str]:
    """The names of all subcommands but the programs, sorted. Nothing is imported."""
    files = [entry[:-3] for entry in os.listdir(_DIRECTORY) if entry.endswith(".py") and not entry.startswith("_")]
    return sorted(name.replace("_", "-") for name in files)


def print_help() -> None:
    """Print each subcommand with its HELP line."""
    print("usage: qobra SUBCOMMAND [ARGUMENT...]\n")
    print("The virtual machine and block layer that QEMU's QMP manual describes.\n")
    lines = {name: _help_line(os.path.join(_DIRECTORY, name.replace("-", "_") + ".py")) for name in subcommands()}
    for name, module in PROGRAMS.items():
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            lines[name] = _help_line(spec.origin)
    width = max(len(name) for name in lines)
    for name, line in sorted(lines.items()):
        print(f"  {name:{width}}  {line}")
    print("\n'qobra SUBCOMMAND --help' tells more; 'qobra completion bash|zsh|fish' prints completion for a shell.")


def _help_line(path: str) -> str:
    """A module's HELP, or the first line of its docstring, read without running the module."""
    import ast

    with open(path) as stream:
        tree = ast.parse(stream.read(), path)
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            if any(isinstance(target, ast.Name) and target.id == "HELP" for target in node.targets):
                return str(node.value.value)
    return (ast.get_docstring(tree) or "").split("\n", 1)[0].rstrip(".")


def _suggestion(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, [*subcommands(), *PROGRAMS], 1)
    return f" (did you mean '{close[0]}'?)" if close else ""


if __name__ == "__main__":
    sys.exit(main())
