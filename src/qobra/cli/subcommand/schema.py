"""``qobra schema ACTION``: look into the contract, check schemas, compare them with each other and with servers."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

HELP = "check, show, document and compare QAPI schemas and what servers offer"

if TYPE_CHECKING:
    from argparse import ArgumentParser

# Each is a module of _schema with HELP, add_arguments(parser) and run(options) -> exit status.
ACTIONS = ("check", "show", "doc", "introspect", "coverage", "diff")


def main(argv: list[str]) -> int:
    """Run one action."""
    options = _parser(argv[0] if argv else "").parse_args(argv)
    return int(options.run(options))


def _parser(wanted: str) -> ArgumentParser:
    from argparse import ArgumentParser

    parser = ArgumentParser(prog="qobra schema", description=__doc__.partition(": ")[2])
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name in ACTIONS:
        module = importlib.import_module(f"qobra.cli.subcommand._schema.{name}")
        action = actions.add_parser(name, help=module.HELP, description=module.HELP)
        if name == wanted:
            module.add_arguments(action)
            action.add_argument("--json", action="store_true", help="print JSON instead of text")
            action.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
