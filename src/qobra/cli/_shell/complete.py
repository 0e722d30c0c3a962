"""Completion of a line, from the live schema and from what the server has now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from qobra.cli._shell.line import put, split
from qobra.cli._shell.live import LiveSchema
from qobra.errors import QobraError

BUILTINS = {
    "help": "what a command does and takes: help COMMAND [MEMBER] [key=value]",
    "exec-oob": "execute a command out of band: exec-oob COMMAND ...",
    "hmp": "a command of the human monitor: hmp info block",
    "events": "show events: events on|off|NAME ...",
    "wait": "wait until a job is over: wait JOB",
    "wait-event": "wait for an event: wait-event NAME [key=value ...]",
    "exit": "leave the shell",
}

# Members that name something that exists: the query that lists it, and the member of an entry that has the name.
_NAMES = {
    "node-name": ("query-named-block-nodes", "node-name"),
    "node": ("query-named-block-nodes", "node-name"),
    "device": ("query-named-block-nodes", "node-name"),
    "target": ("query-named-block-nodes", "node-name"),
    "file": ("query-named-block-nodes", "node-name"),
    "backing": ("query-named-block-nodes", "node-name"),
    "base-node": ("query-named-block-nodes", "node-name"),
    "top-node": ("query-named-block-nodes", "node-name"),
    "overlay": ("query-named-block-nodes", "node-name"),
}
_IDS = {
    "job-": ("query-jobs", "id"),
    "block-job-": ("query-block-jobs", "device"),
    "block-export-del": ("query-block-exports", "id"),
    "chardev-": ("query-chardev", "label"),
    "wait": ("query-jobs", "id"),
}

Query = Callable[[str], list[dict[str, Any]]]


class Candidate(NamedTuple):
    """What may stand in place of the last ``replaces`` characters before the cursor."""

    text: str
    replaces: int
    note: str = ""


def candidates(before: str, schema: LiveSchema, query: Query, describe: Callable[[str], str]) -> list[Candidate]:
    """What may follow ``before``. ``query`` asks the server for a list; ``describe`` tells what a command is for."""
    try:
        words = split(before)
    except QobraError:
        return []
    if not before or before[-1].isspace():
        words.append("")
    while words[0] == "exec-oob" and len(words) > 1:
        words.pop(0)
    word = words[-1]
    if len(words) == 1:
        names = dict.fromkeys(schema.commands, "") | BUILTINS
        found = sorted(name for name in names if name.startswith(word))
        return [Candidate(name + " ", len(word), names[name] or describe(name)) for name in found]
    command = words[0]
    if command == "help" and len(words) == 2:
        return [Candidate(name, len(word), describe(name)) for name in sorted(schema.commands) if name.startswith(word)]
    if command in ("events", "wait-event"):
        names = dict.fromkeys([*(["on", "off"] if command == "events" else []), *sorted(schema.events)], "")
        return [Candidate(name, len(word), describe(name)) for name in names if name.startswith(word)]
    if command == "wait":
        return _existing("wait", "id", word, query)
    return _argument(words[1] if command == "help" else command, word, given_in(words[1:-1]), schema, query)


def given_in(words: list[str]) -> dict[str, Any]:
    """The arguments in words ``key=value`` as far as they make sense, values as text."""
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            if equals:
                put(given, key, value)
        except QobraError:
            continue
    return given


def _argument(command: str, word: str, given: Mapping[str, Any], schema: LiveSchema, query: Query) -> list[Candidate]:
    key, equals, value = word.partition("=")
    *path, last = key.split(".")
    type_name, inner = schema.at(command, path, given)
    if type_name is None:
        return []
    fields = schema.fields(type_name, inner)
    if equals:
        field = fields.get(last)
        if field is None:
            return []
        fixed = [name for name in schema.values(field.type) if name.startswith(value)]
        if fixed:
            return [Candidate(name + " ", len(value)) for name in fixed]
        return _existing(command, last, value, query)
    prefix = ".".join([*path, ""])
    found: list[Candidate] = []
    for name, field in sorted(fields.items(), key=lambda item: item[1].optional):
        if name in inner or not name.startswith(last):
            continue
        note = schema.describe(field.type) + (" (optional)" if field.optional else "")
        # What can only be an object is gone into; what may be one too offers both ways.
        if schema.kind(field.type) != "object":
            found.append(Candidate(f"{prefix}{name}=", len(word), note))
        if schema.object_of(field.type) is not None:
            found.append(Candidate(f"{prefix}{name}.", len(word), note))
    return found


def _existing(command: str, member: str, value: str, query: Query) -> list[Candidate]:
    """The names of what is there, for members that name such things."""
    source = next((source for prefix, source in _IDS.items() if command.startswith(prefix)), None)
    if source is None or member not in ("id", "device"):
        source = _NAMES.get(member)
    if source is None:
        return []
    entries = query(source[0])
    names = [str(entry[source[1]]) for entry in entries if entry.get(source[1])]
    return [Candidate(name + " ", len(value)) for name in names if name.startswith(value)]
