"""JSON as QEMU prints it: four spaces of indent, and the members of an object in QEMU's order.

QEMU keeps an object in a hash table of 512 buckets and prints it in the order of the buckets. Scripts that compare
texts rely on it, so the order is computed here in the same way (the hash is that of Samba's tdb).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

Json = object

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


_buckets: dict[str, int] = {}
"""The buckets of names that came up before: there are few, and they come again and again."""
_MOST_KNOWN = 1024


def bucket(key: str) -> int:
    """The bucket of a member's name."""
    known = _buckets.get(key)
    if known is not None:
        return known
    data = key.encode("utf-8", "surrogateescape")
    value = (0x238F13AF * len(data)) & 0xFFFFFFFF
    for position, byte in enumerate(data):
        value = (value + (byte << (position * 5 % 24))) & 0xFFFFFFFF
    found = ((1103515243 * value + 12345) & 0xFFFFFFFF) % 512
    if len(_buckets) < _MOST_KNOWN:
        _buckets[key] = found
    return found


def ordered(members: Mapping[str, Json]) -> list[tuple[str, Json]]:
    """The members in the order in which QEMU prints them; those that share a bucket, last put first."""
    return sorted(reversed(list(members.items())), key=lambda member: bucket(member[0]))


def dumps(value: Json, indent: int = 0) -> str:
    """``value`` as JSON text over several lines."""
    parts: list[str] = []
    _dump(value, indent, parts)
    return "".join(parts)


def compact(value: Json) -> str:
    """``value`` as JSON text on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)}: {compact(each)}" for key, each in ordered(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(compact, value)) + "]"
    return dumps(value)


def quoted(text: str) -> str:
    """A JSON string; whatever is not ASCII is escaped."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    parts = []
    for char in text:
        code = ord(char)
        if char in _ESCAPES:
            parts.append(_ESCAPES[char])
        elif 0x20 <= code < 0x7F:
            parts.append(char)
        elif 0xDC80 <= code <= 0xDCFF:
            parts.append("\\uFFFD")  # a byte that is no UTF-8
        elif code > 0xFFFF:
            code -= 0x10000
            parts.append(f"\\u{0xD800 + (code >> 10):04X}\\u{0xDC00 + (code & 0x3FF):04X}")
        else:
            parts.append(f"\\u{code:04X}")
    return '"' + "".join(parts) + '"'


def _dump(value: Json, indent: int, parts: list[str]) -> None:
    if value is None:
        parts.append("null")
    elif value is True:
        parts.append("true")
    elif value is False:
        parts.append("false")
    elif isinstance(value, str):
        parts.append(quoted(value))
    elif isinstance(value, dict):
        _dump_group("{", "}", [(quoted(key) + ": ", each) for key, each in ordered(value)], indent, parts)
    elif isinstance(value, list | tuple):
        _dump_group("[", "]", [("", each) for each in value], indent, parts)
    elif isinstance(value, float):
        parts.append(f"{value:.17g}")
    else:
        parts.append(str(value))


def _dump_group(opening: str, closing: str, items: list[tuple[str, Json]], indent: int, parts: list[str]) -> None:
    parts.append(opening)
    for number, (label, item) in enumerate(items):
        parts.append("," if number else "")
        parts.append("\n" + "    " * (indent + 1) + label)
        _dump(item, indent + 1, parts)
    parts.append("\n" + "    " * indent + closing)
