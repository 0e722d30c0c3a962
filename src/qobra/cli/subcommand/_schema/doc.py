"""``qobra schema doc``: the manual of the machine protocol, as Markdown pages or as text."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.qapi.docs import render_index, render_markdown, render_text, sections
from qobra.qapi.load import SCHEMA_FILE, load_file

from .show import describe

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "write the manual of the machine protocol"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("section", nargs="*", help="only these sections (names of schema files without .json)")
    parser.add_argument("--output", metavar="DIRECTORY", help="write Markdown, a page a section, and an index")
    parser.add_argument("--text", action="store_true", help="text for a terminal instead of Markdown")
    parser.add_argument("--schema", default=SCHEMA_FILE, metavar="FILE", help="another schema than Qobra's own")


def run(options: Namespace) -> int:
    schema = load_file(options.schema, stubs=True)
    wanted = options.section or sections(schema)
    for section in wanted:
        if section not in sections(schema):
            raise QobraError(f"there is no section '{section}'; there are {', '.join(sections(schema))}")
    chosen = [definition for definition in schema if definition.section in wanted]
    if options.output:
        os.makedirs(options.output, exist_ok=True)
        pages = {section: render_markdown(schema, section) for section in wanted} | {"index": render_index(schema)}
        for name, text in pages.items():
            with open(os.path.join(options.output, f"{name}.md"), "w", encoding="utf-8") as stream:
                stream.write(text)
        print(f"{len(pages)} pages in {options.output}")
    elif options.json:
        print(json.dumps([describe(schema, definition) for definition in chosen], indent=2))
    elif options.text:
        print("\n".join(render_text(schema, definition.name) for definition in chosen), end="")
    else:
        print("\n".join(render_markdown(schema, section) for section in wanted), end="")
    return 0
