"""``qobra schema check``: whether schema files can be read, make sense, and keep the language's rules."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from qobra.qapi.error import QapiError
from qobra.qapi.load import SCHEMA_FILE, load_file

from .source import add_reading_arguments

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "check schema files, today's language or that of QEMU 2.x"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", nargs="*", help="schema files; Qobra's own without any")
    add_reading_arguments(parser)


def run(options: Namespace) -> int:
    """Exit status 1 if any file is wrong."""
    reports = [_check(path, options) for path in options.file or [SCHEMA_FILE]]
    if options.json:
        print(json.dumps(reports, indent=2))
    else:
        for report in reports:
            _print(report)
    return 1 if any("error" in report for report in reports) else 0


def _check(path: str, options: Namespace) -> dict[str, Any]:
    try:
        schema = load_file(path, lenient=options.lenient, strict=True, stubs=options.stubs)
    except QapiError as error:
        place = error.position
        return {
            "file": path,
            "error": {"file": place.file, "line": place.line, "column": place.column, "problem": error.problem},
            "hint": "" if options.lenient else _hint(path),
        }
    return {
        "file": path,
        "commands": len(schema.commands()),
        "events": len(schema.events()),
        "types": len(schema.types()),
        "missing-types": schema.missing,
        "skipped": [str(error) for error in schema.skipped],
    }


def _hint(path: str) -> str:
    """The options with which a file that is no proper schema can be read all the same, if any."""
    try:
        return "--stubs --lenient" if len(load_file(path, lenient=True, stubs=True)) else ""
    except QapiError:
        return ""


def _print(report: dict[str, Any]) -> None:
    if "error" in report:
        error = report["error"]
        print(f"{error['file']}:{error['line']}:{error['column']}: {error['problem']}", file=sys.stderr)
        if report["hint"]:
            print(f"it can be read in part with {report['hint']}", file=sys.stderr)
        return
    counts = ", ".join(f"{report[kind]} {kind}" for kind in ("commands", "events", "types"))
    print(f"{report['file']}: {counts}")
    for line in report["skipped"]:
        print(f"  skipped {line}")
    if report["missing-types"]:
        print(f"  not defined: {', '.join(report['missing-types'])}")
