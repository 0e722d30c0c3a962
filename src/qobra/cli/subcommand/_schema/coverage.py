"""``qobra schema coverage``: what the reference names, and what of it Qobra serves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qobra.qapi.load import load_qobra
from qobra.qapi.schema import Command, Definition, Event

from .served import add_storage_daemon_option, served

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "count what the reference names and what of it is served"

REFERENCE = (5, 2)
"""The version of the reference manual; what came later is counted apart."""


def add_arguments(parser: ArgumentParser) -> None:
    add_storage_daemon_option(parser)
    parser.add_argument("--missing", action="store_true", help="list what is not served")


def run(options: Namespace) -> int:
    report = coverage(storage_daemon=options.storage_daemon)
    if options.json:
        print(json.dumps(report, indent=2))
        return 0
    print(f"{'':24}{'commands':>14}{'events':>14}")
    for section, row in report["sections"].items():
        print(f"{section:24}{_of(row['commands']):>14}{_of(row['events']):>14}")
    for kind in ("commands", "events"):
        row = report[kind]
        print(f"{kind}: {len(row['served'])} of {len(row['served']) + len(row['missing'])} of the reference", end="")
        print(f", and {len(row['later'])} that came later" if row["later"] else "")
        if options.missing:
            print("".join(f"  {name}\n" for name in row["missing"]), end="")
    return 0


def coverage(*, storage_daemon: bool = False) -> dict[str, Any]:
    """Names by kind (``served``, ``missing``, ``later``: served though the reference lacks it), and by section."""
    commands, events = served(board=not storage_daemon)
    schema = load_qobra()
    have = {"commands": commands, "events": events}
    report: dict[str, Any] = {kind: {"served": [], "missing": [], "later": []} for kind in have}
    report["sections"] = {}
    for definition in schema:
        if not isinstance(definition, (Command, Event)):
            continue
        kind = "commands" if isinstance(definition, Command) else "events"
        is_served = definition.name in have[kind]
        if in_reference(definition):
            report[kind]["served" if is_served else "missing"].append(definition.name)
            empty = {"commands": [0, 0], "events": [0, 0]}
            counts = report["sections"].setdefault(definition.section, empty)[kind]
            counts[0] += is_served
            counts[1] += 1
        elif is_served:
            report[kind]["later"].append(definition.name)
    return report


def in_reference(definition: Definition) -> bool:
    """Whether the reference manual (or one before it) has the definition."""
    since = definition.doc.since
    return not since or tuple(int(part) for part in since.split(".")[:2]) <= REFERENCE


def _of(counts: list[int]) -> str:
    return f"{counts[0]} of {counts[1]}" if counts[1] else ""
