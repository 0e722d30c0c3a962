"""``qobra img``: qemu-img's subcommands with progress that tells how long it takes, and some of its own.

``inspect``, ``tree`` and ``map --plot`` are only here; everything else is :mod:`qobra.cli.img`.
"""

from __future__ import annotations

import sys

from qobra.cli._tool.process import guard_terminal
from qobra.cli._tool.report import Program
from qobra.cli.img import COMMANDS, run

HELP = "create, inspect, convert and repair disk images"

OWN = {
    "inspect": "whether an image from a stranger may be used",
    "tree": "an image's chain, with what each layer holds",
    "map --plot": "a picture of where the data lies",
}


def main(argv: list[str]) -> int:
    """Run a subcommand; returns its exit status."""
    guard_terminal()
    program = Program("qobra img", people=True)
    if argv[:1] == ["help"] and len(argv) > 1:
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        _print_help()
        return 0 if argv else 1
    if argv[0] == "map" and {"-h", "--help"} & set(argv):
        run(program, ["map", "--help"])
        print()
        return run(program, ["map", "--help"], package="qobra.cli._img_people", module="plot")
    module = _own_module(argv)
    if module is None:
        return run(program, argv)
    return run(program, argv, package="qobra.cli._img_people", module=module)


def _own_module(argv: list[str]) -> str | None:
    if argv[0] in ("inspect", "tree"):
        return argv[0]
    if argv[0] == "map" and any(word == "--plot" or word.startswith("--plot=") for word in argv):
        return "plot"
    return None


def _print_help() -> None:
    print("usage: qobra img SUBCOMMAND [ARGUMENT...]\n")
    for name, text in OWN.items():
        print(f"  {name:12}{text}")
    for name in COMMANDS:
        doc = __import__(f"qobra.cli._img.{name}", fromlist=["HELP"]).__doc__ or ""
        print(f"  {name:12}{doc.splitlines()[0].partition(': ')[2].rstrip('.')}")
    print("\n'qobra img SUBCOMMAND --help' tells more of one.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
