"""``qobra-img``: create, inspect, convert and repair disk images, with qemu-img's command lines and answers.

Called by a link or a path with another name (``qemu-img``), it goes by that name. Each subcommand is a module of
:mod:`qobra.cli._img`; only the one that is asked for is imported.
"""

from __future__ import annotations

import os
import sys

from qobra.cli._tool.report import Program, usage
from qobra.getopt import HelpWanted, UnknownGroup, parse

HELP = "create, inspect, convert and repair disk images (qemu-img's command line)"

COMMANDS = (
    "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info", "map", "measure",
    "rebase", "resize", "snapshot",
)  # fmt: skip


def main(argv: list[str] | None = None, name: str | None = None) -> int:
    """Run a command line; returns the exit status."""
    from qobra.cli._tool.process import run_tool

    return run_tool(lambda called, words: run(Program(os.path.basename(called)), words), "qobra-img", argv, name)


def run(program: Program, arguments: list[str], *, package: str = "qobra.cli._img", module: str = "") -> int:
    """Run the subcommand in ``arguments``, and turn what goes wrong into one line and an exit status.

    It is the module of its name in ``package``, or ``module`` of it.
    """
    return program.run(lambda: _run(program, arguments, package, module))


def _run(program: Program, arguments: list[str], package: str, module_name: str) -> int:
    if not arguments:
        raise usage("Not enough arguments")
    try:
        options, rest = parse(arguments, "hVT:", ("help|h", "version|V", "trace=|T"), permute=False)
    except UnknownGroup:
        raise UnknownGroup(program.name)
    for option, value in options:
        if option == "h":
            return _help(program)
        if option == "V":
            from qobra.cli._tool.report import version_text

            print(version_text(program))
            return 0
        if option == "T":
            from qobra.cli._tool.trace import take

            if not take(program, value):
                return 0
    if not rest:
        return 0
    command, *rest = rest
    if command not in COMMANDS and not module_name:
        raise usage(f"Command not found: {command}")
    module = __import__(f"{package}.{module_name or command}", fromlist=["main"])
    try:
        return int(module.main(program, rest))
    except UnknownGroup:
        raise UnknownGroup(command)
    except HelpWanted:
        if module_name:
            print(f"usage: {program.name} {module.HELP}", end="")
            return 0
        return _help(program, command)


def _help(program: Program, command: str = "") -> int:
    from qobra.cli._img._help import print_help

    print_help(program.name, command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
