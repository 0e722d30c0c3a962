"""``qobra schema introspect``: what query-qmp-schema returns."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from qobra.qapi.contract import contract
from qobra.qapi.introspect import introspect

from .served import add_storage_daemon_option, served
from .source import read_side

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "print what query-qmp-schema returns"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", help="a schema file or a server's address; else what Qobra serves")
    add_storage_daemon_option(parser)
    parser.add_argument("--all", action="store_true", help="the whole contract, not just what Qobra serves")


def run(options: Namespace) -> int:
    if options.source:
        entities = read_side(options.source)
    elif options.all:
        entities = introspect(contract().commands, contract().events)
    else:
        entities = introspect(*served(board=not options.storage_daemon))
    if options.json:
        print(json.dumps(entities))
    else:
        for entity in entities:
            print(json.dumps(entity))
    return 0
