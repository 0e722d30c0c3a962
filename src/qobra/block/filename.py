"""Names of images: plain paths, protocol prefixes, ``json:`` objects, and paths relative to another image."""

from __future__ import annotations

import os
import stat

from qobra.block import permissions
from qobra.block.vertex import GENERIC_OPTIONS, TEXTS
from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from qobra.block.node import BlockNode
    from qobra.block.vertex import Options, Vertex

MAX_FILENAME = 1 << 20
"""Longest name that is looked at, in characters (a json: name may hold a whole chain)."""
AMBIGUOUS_REFERENCE = "Cannot reference an existing block device with additional options or a new filename"
PATH_MAX = 4096
"""Room for a name that is told, in bytes with an end mark."""


def protocol_of(filename: str) -> str:
    """The protocol prefix of ``filename`` without the colon, or "" for a path."""
    head = filename.split("/", 1)[0]
    return head.split(":", 1)[0] if ":" in head else ""


def parse_filename(filename: str) -> Options:
    """The options (with a ``driver``) that open the protocol or ``json:`` node that ``filename`` names.

    Raises QobraError for a prefix that no driver knows and for bad JSON.
    """
    if len(filename) > MAX_FILENAME:
        raise QobraError("File name too long")
    if filename.startswith("json:"):
        return _parse_json(filename[5:])
    protocol = protocol_of(filename)
    if not protocol:
        return {"driver": driver_of_path(filename), "filename": filename}
    options = protocol_driver(protocol).parse_filename(filename)
    if options is None:
        raise QobraError(f"Unknown protocol '{protocol}'")
    return options


def protocol_driver(protocol: str) -> type[BlockNode]:
    """The driver whose names begin with ``protocol`` and a colon. Raises QobraError where there is none."""
    from qobra.block.node import drivers

    driver = drivers.find(protocol.split("+", 1)[0])
    if driver is None or protocol not in driver.protocols:
        raise QobraError(f"Unknown protocol '{protocol}'")
    return driver


def driver_of_path(path: str) -> str:
    """The driver of the file or device at ``path``."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return "file"
    return "host_device" if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else "file"


def _parse_json(text: str) -> Options:
    from qobra.json_reader import parse_text

    try:
        value = parse_text(text)
    except QobraError as error:
        raise error.prefixed("Could not parse the JSON options: ")
    if not isinstance(value, dict):
        raise QobraError("Invalid JSON object given")
    from qobra.block.typed_options import typed

    return typed(unflatten(value))


_OVERLAPS, _TEMPLATE = "overlap-check", "template"
"""The option of qcow2 that may be a text beside its members, one of which the text is then."""


def unflatten(options: Options) -> Options:
    """Dotted keys (``file.filename``) turned into nested objects.

    What a nested object or a list says counts before a dotted key that says the same.
    """
    result: Options = {}
    for key, value in options.items():
        *path, last = key.split(".")
        place = result
        for part in path:
            inner = place.setdefault(part, {})
            if part == _OVERLAPS and isinstance(inner, str):
                inner = place[part] = {_TEMPLATE: inner}
            elif isinstance(inner, list):
                inner = place[part] = _by_index(inner)
            elif not isinstance(inner, dict):
                raise QobraError(AMBIGUOUS_REFERENCE)
            place = inner
        value = _unflattened(value)
        if path and (path[-1], last) == (_OVERLAPS, _TEMPLATE):
            _check_templates(place.get(last, value), value)
        if last == _OVERLAPS and isinstance(place.get(last), dict) and not isinstance(value, dict):
            _check_templates(value, place[last].setdefault(_TEMPLATE, value))
        elif last not in place:
            place[last] = value
        elif isinstance(value, dict | list):
            place[last] = _merged(place[last], value)
        elif isinstance(place[last], dict | list):
            raise QobraError(AMBIGUOUS_REFERENCE)
    return result


def _unflattened(value: Any) -> Any:
    if isinstance(value, dict):
        return unflatten(value)
    return [_unflattened(each) for each in value] if isinstance(value, list) else value


def _by_index(values: list[Any]) -> Options:
    """A list as the object of its members that dotted keys make."""
    return {str(index): value for index, value in enumerate(values)}


def _merged(old: Any, new: Any) -> Any:
    """``new``, with what only ``old`` has; both are values of one option."""
    if not isinstance(new, dict | list):
        return new
    if not isinstance(old, dict | list):
        raise QobraError(AMBIGUOUS_REFERENCE)
    first, second = (_by_index(each) if isinstance(each, list) else each for each in (old, new))
    return {**first, **{key: _merged(first[key], value) if key in first else value for key, value in second.items()}}


def _check_templates(short: object, template: object) -> None:
    if short != template:
        names = f"'{_OVERLAPS}' ('{short}') and '{_OVERLAPS}.{_TEMPLATE}' ('{template}')"
        raise QobraError(f"Conflicting values for qcow2 options {names}")


def flat_name(name: str, value: object) -> str:
    """What the first of the options in ``value``, which is that of ``name``, was called before :func:`unflatten`."""
    while isinstance(value, dict | list) and value:
        members = _by_index(value) if isinstance(value, list) else value
        key = next(iter(members))
        name, value = f"{name}.{key}", members[key]
    return name


def names(node: Vertex) -> tuple[str, Options]:
    """``exact_filename`` and ``full_options`` of ``node``, from its options and its children's names."""
    shown = node.filtered
    if node.implicit and shown is not None:
        return shown.exact_filename, shown.full_options
    children = node.child_options()
    if node.supports_backing:
        if not backing_overridden(node):
            children.pop("backing", None)  # what the image itself says
        elif node.backing is None:
            children["backing"] = None
    options = {"driver": node.driver, **_strong_options(node), **children}
    plain = node.plain_filename(options)
    given: Options = node.options.get(TEXTS, {})
    return plain, {name: given.get(name, value) for name, value in options.items()}


def format_filename(node: Vertex) -> str:
    """The name of the file of a format, if opening that as this format would give the node as it is."""
    if node.is_filter or _strong_options(node) or backing_overridden(node):
        return ""
    file = primary_child(node)
    return file.exact_filename if file is not None and file.is_protocol() else ""


def backing_overridden(node: Vertex) -> bool:
    """Whether another backing file was put under ``node`` than the one that its header names."""
    if not node.supports_backing:
        return False
    named: str = node.backing_filename
    if node.backing is None:
        # Left out by whoever does not read data is not the same as said to be none.
        return bool(named) and not node.options.get("_no-backing")
    if node.auto_backing is not None and node.auto_backing[0] == named:
        named = node.auto_backing[1]
    return node.backing.filename != named


def _strong_options(node: Vertex) -> Options:
    """The options that a ``json:`` name has to tell, with dotted keys for what is inside of them."""
    chosen = node.strong_options
    if chosen is None:
        own = {
            name: value
            for name, value in node.options.items()
            if name not in GENERIC_OPTIONS and name != "driver" and not name.startswith("_")
        }
        return flatten({name: value for name, value in own.items() if name not in node.child_options()})
    tops = {name.partition(".")[0] for name in ("filename", *chosen)}
    flat = flatten({name: node.options[name] for name in tops if name in node.options})
    return {
        key: value
        for name in ("filename", *chosen)
        for key, value in flat.items()
        if key == name or (name.endswith(".") and key.startswith(name))
    }


def flatten(options: Options, prefix: str = "") -> Options:
    """Nested objects and lists turned into dotted keys: the reverse of :func:`unflatten`."""
    result: Options = {}
    # Members of an object inside come in the reverse order, which shows where two share a place in QEMU's tables.
    for key, value in reversed(options.items()) if prefix else options.items():
        if isinstance(value, list):
            value = {str(index): each for index, each in enumerate(value)}
        if isinstance(value, dict):
            result.update(flatten(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result


def json_filename(options: Options) -> str:
    """The ``json:`` name for a node with these full options, cut short as QEMU does where it would be very long."""
    parts = ["json:"]
    _append_json(options, parts, PATH_MAX)
    text = "".join(parts)
    return text if len(text) < PATH_MAX else text[: PATH_MAX - 4] + "..."


def _append_json(options: Options, parts: list[str], room: int) -> int:
    """Append the text of ``options`` or the beginning of it; returns how many of ``room`` characters are left."""
    from qobra.json_text import compact, ordered, quoted

    separator = "{"
    for name, value in ordered(options):
        head = f"{separator}{quoted(name)}: "
        separator = ", "
        room -= len(head)
        parts.append(head)
        if room <= 0:
            return room
        if isinstance(value, dict) and value:
            room = _append_json(value, parts, room)
        else:
            text = compact(value)
            parts.append(text)
            room -= len(text)
        if room <= 0:
            return room
    parts.append("}")
    return room - 1


def full_backing_filename(node: BlockNode) -> str:
    """The name of the backing file in the header of ``node``, as seen from the image's directory.

    Raises QobraError where that name is relative and the image has no directory.
    """
    return _from_directory_of(node, node.backing_filename)


def name_as_backing(node: Vertex, backing: Vertex) -> str:
    """The name by which ``backing`` is found again from the header of ``node``.

    It is the one that ``backing`` was opened by, but the absolute path if that is relative, and another file as seen
    from the image's directory.
    """
    name = backing.filename
    if not name or protocol_of(name) or os.path.isabs(name):
        return name
    absolute = os.path.abspath(name)
    try:
        seen = _from_directory_of(node, name)
    except QobraError:
        return absolute
    return name if not protocol_of(seen) and os.path.abspath(seen) == absolute else absolute


def _from_directory_of(node: Vertex, name: str) -> str:
    if not name or protocol_of(name) or os.path.isabs(name):
        return name
    lowest: Vertex = node
    while (primary := primary_child(lowest)) is not None:
        lowest = primary
    if not lowest.exact_filename:
        raise QobraError(f"Cannot generate a base directory for {lowest.driver} nodes")
    return relative_to(name, lowest.exact_filename)


def primary_child(node: Vertex) -> BlockNode | None:
    """The child that a node takes its file name from."""
    return next((child for name, child in node.children.items() if node.roles[name] & permissions.ROLE_PRIMARY), None)


def relative_to(filename: str, base: str) -> str:
    """``filename`` as seen from the directory of the image ``base``; unchanged if absolute or with a protocol.

    Raises QobraError where ``base`` is a ``json:`` name, which has no directory.
    """
    if not filename or protocol_of(filename) or os.path.isabs(filename):
        return filename
    if base.startswith("json:"):
        raise QobraError(f"Cannot generate a base directory with the node's options: '{base}'")
    protocol = protocol_of(base)
    if protocol and "/" not in base:
        return f"{protocol}:{filename}"
    return base[: base.rfind("/") + 1] + filename if "/" in base else filename
