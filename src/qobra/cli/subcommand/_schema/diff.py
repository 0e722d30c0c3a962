"""``qobra schema diff``: which changes break clients."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from qobra.qapi.diff import diff

from .source import add_reading_arguments, read_side

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "say in words what changed between two schemas, and what of it breaks clients"


def add_arguments(parser: ArgumentParser) -> None:
    sides = "a schema file, a saved query-qmp-schema, unix:PATH or HOST:PORT of a server, or 'qobra'"
    parser.add_argument("old", help=sides)
    parser.add_argument("new", help="the same")
    parser.add_argument("--breaking", action="store_true", help="only what breaks clients")
    add_reading_arguments(parser)


def run(options: Namespace) -> int:
    """Exit status 1 if a change breaks clients, 0 otherwise."""
    old, new = (read_side(side, stubs=options.stubs, lenient=options.lenient) for side in (options.old, options.new))
    changes = diff(old, new)
    breaking = sum(change.breaking for change in changes)
    shown = [change for change in changes if change.breaking or not options.breaking]
    if options.json:
        print(json.dumps([change._asdict() for change in shown], indent=2))
    else:
        for change in shown:
            print(change)
        print(f"{len(changes)} changes, {breaking} of them break clients")
    return 1 if breaking else 0
