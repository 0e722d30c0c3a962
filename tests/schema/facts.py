"""The facts of the reference manual that the schema is checked against: names, types, what is optional, since when.

``reference-5.2.json`` beside this file is what :func:`derive` makes of the manual's machine-readable form, without its
prose: ``{name: [kind, since, members, extra]}``. Members are ``{name: type}``, with ``?`` before an optional one's
type; extra has the values of an enum, the base, or tag and branches. Run this file with the manual's path to write it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

FACTS = Path(__file__).with_name("reference-5.2.json")

# Words of running text that the manual's conversion took for values.
_NO_VALUES = {
    "BlockExportRemoveMode": {"Potential", "hide:", "is.", "soft:", "ther"},
    "QKeyCode": {"'sysrq'", "driver", "was", "ther", "to"},
}


def derive(reference: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Facts from the manual's entities."""
    return {entity["name"]: _entity(entity) for entity in reference}


def _entity(entity: dict[str, Any]) -> list[Any]:
    since = re.match(r"\d+\.\d+(\.\d+)?", entity.get("since", ""))
    members: dict[str, str] = {}
    extra: dict[str, Any] = {}
    for member in [*entity.get("members", ()), *entity.get("arguments", ())]:
        if "name" in member:
            members[member["name"]] = ("?" if member["optional"] else "") + member["type"]
        elif "base" in member:
            extra["base"] = member["base"]
        elif "branch" in member:
            target = member["type"] if member.get("wrapped") else member["branch"]
            extra.setdefault("branches", {})[member["value"]] = target
            extra["tag"] = member["discriminator"]
    junk = _NO_VALUES.get(entity["name"], ())
    values = [value["value"] for value in entity.get("values", ()) if value["value"] not in junk]
    if values:
        extra["values"] = values
    return [entity["kind"], since.group() if since else "", members, extra]


def load_facts() -> dict[str, list[Any]]:
    return json.loads(FACTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    facts = derive(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    lines = ",\n".join(f"{json.dumps(name)}:{json.dumps(fact, separators=(',', ':'))}" for name, fact in facts.items())
    FACTS.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
