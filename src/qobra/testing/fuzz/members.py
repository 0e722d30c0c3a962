"""Every member of a command's arguments in turn: each value that its type has, edges, and wrong ones.

Random scripts come to a member that is rarely given once in a thousand steps. Here a command that makes sense
(:mod:`.cases`) is given with one member changed at a time, so that each is seen by itself.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

from qobra.qapi.contract import contract
from qobra.qapi.spec import ALTERNATE, ENUM, OBJECT, MemberSpec

DEEPEST = 3
_INTS: tuple[Any, ...] = (
    0,
    1,
    -1,
    3,
    4096,
    65536,
    1 << 20,
    (1 << 31) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    1 << 64,
    "1",
)
_TEXTS: tuple[Any, ...] = ("", "nope", "n0", "#x", "1a", "x" * 40, "x" * 1100, 1, "a,b", "é")
_NO_OBJECTS: tuple[Any, ...] = (1, "x", [], None, {})
_NOT_SHOWN = (
    "force-share",  # with which QEMU can reopen a node no more
    "writeback",  # of older references
    "take-child-perms",
    "unshare-child-perms",  # refused by QEMU as lists without members
)
_NO_DRIVERS = {"cow", "tftp", "host_floppy", "archipelago", "sheepdog"}
"""Of older references."""


_NO_FORMATS = {"bochs", "cloop", "dmg", "parallels", "qcow", "qed", "vdi", "vhdx", "vmdk", "vpc"}
"""Formats that Qobra has no driver for."""
_SLOW = re.compile(r'"speed": (?:3|4096|65536|1048576|1\b)')
"""How far a job is that waits for its speed limit depends on the moment."""


_OTHERWISE = re.compile(
    r'"(?:size|write-threshold)": -1|"prealloc-align": 0\b'
    r'|"vote-threshold": \d{10,}'
    r'|"(?:cache|set-state|inject-error)": (?:\{\}|\[\])'  # no option of the driver without members
    rf'|"buf-size": {(1 << 63) - 1}\b'  # is more memory than there is
    rf'|"driver": "(?:{"|".join(sorted(_NO_FORMATS))})"'
)


def tries(command: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """``arguments`` as they are, and with each member otherwise, each form once."""
    spec = contract().commands["x-blockdev-reopen" if command == "blockdev-reopen" else command]
    if command == "blockdev-reopen":
        options = arguments["options"][0]
        found = [arguments, *({"options": [each]} for each in changes(options, "BlockdevOptions"))]
    else:
        found = [arguments, *(changes(arguments, spec.arg_type) if spec.arg_type else ())]
    forms = {json.dumps(each, sort_keys=True): each for each in found}
    return [form for text, form in forms.items() if not _is_known(command, form, text)]


def _is_known(command: str, arguments: dict[str, Any], text: str) -> bool:
    """Whether this is answered otherwise, as the manual of 5.2 has it or time decides."""
    if command in ("block_resize", "blockdev-snapshot-sync") and {"device", "node-name"} <= arguments.keys():
        return True
    if command == "transaction" and _is_known_action(arguments.get("actions")):
        return True
    if command in ("change-backing-file", "blockdev-snapshot-internal-sync") and "x" * 1100 in text:
        return True  # says why; is not cut off
    if arguments.get("driver") == "copy-before-write" and arguments.get("bitmap", {}) and '"node": "x"' in text:
        return True  # a new node that is named within itself
    if command in ("block-commit", "block-stream") and arguments.get("auto-dismiss") is False:
        return True  # QEMU's job keeps what it has taken out of the chain
    if command == "blockdev-create" and '"encrypt": {"format": "qcow"' in text:
        return True  # QEMU makes an image before it refuses
    if command == "blockdev-reopen" and '"driver": "raw"' in text and re.search(r'"size": \d{10,}', text):
        return True  # is wrong in two ways
    return bool(_SLOW.search(text) or _OTHERWISE.search(text))


def _is_known_action(actions: Any) -> bool:
    """Whether one of ``actions`` is given both a device and a node, or a name that QEMU cuts off."""
    return any(
        isinstance(each, dict) and isinstance(each.get("data"), dict) and _is_known(each["type"], each["data"], "")
        for each in (actions if isinstance(actions, list) else ())
        if isinstance(each, dict) and isinstance(each.get("type"), str)
    )


def changes(value: dict[str, Any], type_name: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    """``value``, an object of this type, with one member missing, with another value, or that is not there."""
    for member in _members(type_name, value):
        if member.name in _NOT_SHOWN:
            continue
        if member.name in value:
            yield {name: each for name, each in value.items() if name != member.name}
        for each in _instead(value.get(member.name), member.type, depth):
            if member.name not in value or json.dumps(each) != json.dumps(value[member.name]):
                yield {**copy.deepcopy(value), member.name: each}
    yield {**value, "zz": 1}


def _members(type_name: str, value: dict[str, Any]) -> list[MemberSpec]:
    types = contract().types
    spec = types[type_name]
    branch = spec.branches.get(value.get(spec.tag, "")) if spec.tag else None
    return [*spec.members, *(types[branch].members if branch else ())]


def _instead(value: Any, type_name: str, depth: int) -> Iterator[Any]:
    """What a member of this type may be given instead of ``value`` (None: it was not there)."""
    if isinstance(value, dict) and (inner := _object_of(type_name)):
        yield from _NO_OBJECTS
        if depth < DEEPEST:
            yield from changes(value, inner, depth + 1)
    elif isinstance(value, list) and value and isinstance(value[0], dict) and (inner := _object_of(type_name[1:-1])):
        yield []
        for first in changes(value[0], inner, depth + 1) if depth < DEEPEST else ():
            yield [first, *value[1:]]
    else:
        yield from _values(type_name, depth)


def _object_of(type_name: str) -> str | None:
    """The object type that a value of this type is, if it is one: that of an alternate's objects."""
    types = contract().types
    if type_name not in types and not type_name.endswith(("Kind", "-wrapper")):
        return None
    spec = types[type_name]
    if spec.kind == ALTERNATE:
        return next((each.type for each in spec.members if _object_of(each.type)), None)
    return type_name if spec.kind == OBJECT else None


def _values(type_name: str, depth: int) -> Iterator[Any]:
    types = contract().types
    if type_name.startswith("["):
        yield from ([], 1)
        yield from ([each] for each in _values(type_name[1:-1], depth + 1))
    elif type_name == "bool":
        yield from (True, False, "on")
    elif type_name == "str":
        yield from _TEXTS if depth < 2 else _TEXTS[:3]
    elif type_name in ("null", "any"):
        yield None
    elif type_name not in types and not type_name.endswith(("Kind", "-wrapper")):
        yield from _INTS if depth < 2 else _INTS[:7]
    elif types[type_name].kind == ENUM:
        # Names with a dot are the older ones of events.
        yield from (each for each in types[type_name].values if each not in _NO_DRIVERS and "." not in each)
        yield from ("", "nope", 1)
    elif types[type_name].kind == ALTERNATE:
        yield from _NO_OBJECTS
        for each in types[type_name].members:
            if _object_of(each.type) is None:
                yield from _values(each.type, depth + 1)
    else:
        yield from _NO_OBJECTS
        if depth < DEEPEST:
            least = _least(type_name)
            yield least
            yield from changes(least, type_name, depth + 1)


def _least(type_name: str) -> Any:
    """A value that has just what it has to have."""
    types = contract().types
    if type_name.startswith("["):
        return []
    if type_name not in types and not type_name.endswith(("Kind", "-wrapper")):
        return {"bool": True, "str": "x", "null": None}.get(type_name, 1)
    spec = types[type_name]
    if spec.kind == ENUM:
        return spec.values[0]
    if spec.kind == ALTERNATE:
        return _least(spec.members[0].type)
    result: dict[str, Any] = {}
    for each in spec.members:
        if not each.optional:
            result[each.name] = _least(each.type)
    for each in _members(type_name, result):
        if not each.optional:
            result.setdefault(each.name, _least(each.type))
    return result
