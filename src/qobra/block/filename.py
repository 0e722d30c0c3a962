"""Names of images: plain paths, protocol prefixes, ``json:`` objects, and paths relative to another image."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.node import BlockNode, Options

MAX_FILENAME = 1 << 20
"""Longest name that is looked at, in characters (a json: name may hold a whole chain)."""


def protocol_of(filename: str) -> str:
    """The protocol prefix of ``filename`` without the colon, or "" for a path."""
    head = filename.split("/", 1)[0]
    return head.split(":", 1)[0] if ":" in head else ""


def parse_filename(filename: str) -> Options:
    """The options (with a ``driver``) that open the protocol or ``json:`` node that ``filename`` names.

    Raises QobraError for a prefix that no driver knows and for bad JSON.
    """
    from qobra.block.node import drivers

    if len(filename) > MAX_FILENAME:
        raise QobraError("File name too long")
    if filename.startswith("json:"):
        return _parse_json(filename[5:])
    protocol = protocol_of(filename)
    if not protocol:
        return {"driver": "file", "filename": filename}
    driver = drivers.find(protocol.split("+", 1)[0])
    options = driver.parse_filename(filename) if driver else None
    if options is None:
        raise QobraError(f"Unknown protocol '{protocol}'")
    return options


def _parse_json(text: str) -> Options:
    import json

    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        reason = "premature EOI" if error.pos >= len(text.rstrip()) else error.msg
        raise QobraError(f"Could not parse the JSON options: JSON parse error, {reason}")
    except RecursionError:
        raise QobraError("Could not parse the JSON options: JSON parse error, the nesting is too deep")
    if not isinstance(value, dict):
        raise QobraError("Invalid JSON object given")
    from qobra.block.typed_options import typed

    return typed(unflatten(value))


def unflatten(options: Options) -> Options:
    """Dotted keys (``file.filename``) turned into nested objects."""
    result: Options = {}
    for key, value in options.items():
        *path, last = key.split(".")
        place = result
        for part in path:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise QobraError(f"Cannot use '{part}' both as a value and as an object")
            place = inner
        value = unflatten(value) if isinstance(value, dict) else value
        if isinstance(value, dict) and isinstance(place.get(last), dict):
            place[last].update(value)
        else:
            place[last] = value
    return result


def json_filename(node: BlockNode) -> str:
    """The ``json:`` name of ``node`` with all that is under it."""
    from qobra.json_text import compact

    return "json:" + compact(full_options(node))


def full_options(node: BlockNode) -> dict[str, Any]:
    """Options that open ``node`` and its children anew, children inline."""
    options: dict[str, Any] = {"driver": node.driver}
    options.update(node.relevant_options())
    options["driver"] = node.driver
    for name, child in node.children.items():
        if name == "backing" and not node.is_filter and "backing" not in node.options:
            continue  # what the image itself says
        options[name] = full_options(child)
    return options


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
