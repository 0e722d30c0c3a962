"""``--help``: the list of subcommands, or one in full."""

from __future__ import annotations

_OVERVIEW = """\
usage: {name} [-h] [-V] [-T TRACE] SUBCOMMAND [ARGUMENT...]

Create, inspect, convert and repair disk images. The command lines are those of qemu-img.

"""

_FOOTER = """
'{name} SUBCOMMAND --help' tells more of one.

  FMT      a format: {formats}
  CACHE    how the host's cache is used: none, writeback, writethrough, directsync, unsafe
  SIZE     bytes, or with a suffix: k, M, G, T, P, E (powers of 1024)
  DEF      an object as secret,id=NAME,data=TEXT

Supported formats: {drivers}
"""


def print_help(name: str, command: str = "") -> None:
    """Print the help of the program ``name``, or of its subcommand ``command``."""
    if command:
        print(f"usage: {name} {_help_of(command)}", end="")
        return
    from qobra.block.node import drivers
    from qobra.cli.img import COMMANDS

    print(_OVERVIEW.format(name=name), end="")
    for each in COMMANDS:
        print(f"  {each:10}{_summary_of(each)}")
    loaded = drivers.load_all()
    formats = ", ".join(driver for driver, kind in loaded.items() if kind.is_format)
    # Filters of jobs have names that nobody can ask for.
    named = " ".join(driver for driver in loaded if "_" not in driver or driver.startswith("host_"))
    print(_FOOTER.format(name=name, formats=formats, drivers=named), end="")


def _help_of(command: str) -> str:
    return str(__import__(f"qobra.cli._img.{command}", fromlist=["HELP"]).HELP)


def _summary_of(command: str) -> str:
    doc = __import__(f"qobra.cli._img.{command}", fromlist=["HELP"]).__doc__ or ""
    return str(doc.split("\n", 1)[0].partition(": ")[2].rstrip("."))
