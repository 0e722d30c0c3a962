"""``--image-opts``: a node described as ``key=value,...`` in the older syntax of QemuOpts."""

from __future__ import annotations

from qobra.block.filename import unflatten
from qobra.block.typed_options import typed
from qobra.cli._tool.report import Program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object


Options = dict[str, Any]


def split_options(text: str) -> list[str]:
    """The parts between single commas; ``,,`` stands for a comma in a value."""
    parts = []
    current = ""
    position = 0
    while position < len(text):
        comma = text.find(",", position)
        if comma < 0:
            current += text[position:]
            break
        current += text[position:comma]
        if text[comma + 1 : comma + 2] == ",":
            current += ","
            position = comma + 2
        else:
            parts.append(current)
            current = ""
            position = comma + 1
    parts.append(current)
    return parts


def parse_pairs(text: str, program: Program, implied_key: str = "") -> dict[str, str]:
    """``a=b,c=d`` as a dict, the last of a key winning; a bare word means on, or off if it begins with ``no``."""
    result: dict[str, str] = {}
    for number, part in enumerate(split_options(text) if text else ()):
        key, equals, value = part.partition("=")
        if not equals:
            if number == 0 and implied_key:
                key, value = implied_key, part
            elif key.startswith("no"):
                program.warning(f"short-form boolean option '{key}' deprecated\nPlease use {key[2:]}=off instead")
                key, value = key[2:], "off"
            elif key:
                program.warning(f"short-form boolean option '{key}' deprecated\nPlease use {key}=on instead")
                value = "on"
        if key:
            result.pop(key, None)
            result[key] = value
    return result


def parse_image_opts(text: str, program: Program, implied_key: str = "file") -> Options:
    """The options of a node, typed as its driver's schema says. Raises QobraError."""
    return typed(unflatten(dict(parse_pairs(text, program, implied_key))))
