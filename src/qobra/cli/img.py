"""``qobra-img``: create, inspect, convert and repair disk images, with qemu-img's command lines and answers.

Called by a link or a path with another name (``qemu-img``), it goes by that name. Each subcommand is a module of
:mod:`qobra.cli._img`; only the one that is asked for is imported.
"""

from __future__ import annotations

import os
import sys

from qobra.cli._tool.report import Program, ToolError, usage
from qobra.errors import QobraError, strerror
from qobra.getopt import HelpWanted, UsageError, parse

HELP = "create, inspect, convert and repair disk images (qemu-img's command line)"

COMMANDS = (
    "amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create", "dd", "info", "map", "measure",
    "rebase", "resize", "snapshot",
)  # fmt: skip


def main(argv: list[str] | None = None, name: str | None = None) -> int:
    """Run a command line; returns the exit status."""
    if argv is not None:
        return run(Program(name or "qobra-img"), argv)
    from qobra.cli._tool.process import run_program

    return run_program(lambda: run(Program(name or os.path.basename(sys.argv[0])), sys.argv[1:]))


def run(program: Program, arguments: list[str], *, package: str = "qobra.cli._img", module: str = "") -> int:
    """Run the subcommand in ``arguments``, and turn what goes wrong into one line and an exit status.

    It is the module of its name in ``package``, or ``module`` of it.
    """
    try:
        return _run(program, arguments, package, module)
    except ToolError as error:
        return program.fail(error)
    except UsageError as error:
        return program.fail(usage(str(error)))
    except QobraError as error:
        return program.fail(ToolError(str(error)))
    except BrokenPipeError:
        raise
    except OSError as error:
        return program.fail(ToolError(strerror(error)))
    except MemoryError:
        return program.fail(ToolError("Cannot allocate memory"))
    except Exception as error:
        if os.environ.get("QOBRA_TRACEBACK"):
            raise
        return program.fail(ToolError(f"internal error: {type(error).__name__}: {error}"))


def _run(program: Program, arguments: list[str], package: str, module_name: str) -> int:
    options, rest = parse(arguments, "hVT:", ("help|h", "version|V", "trace=|T"), permute=False)
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
        raise usage("Not enough arguments")
    command, *rest = rest
    if command not in COMMANDS and not module_name:
        raise usage(f"Command not found: {command}")
    module = __import__(f"{package}.{module_name or command}", fromlist=["main"])
    try:
        return int(module.main(program, rest))
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
