"""Option lists in the older syntax of QemuOpts: ``a=b,c,nod``, where a word without a value is a switch."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

Pair = tuple[str, str]


def split_options(text: str) -> list[str]:
    """The parts between single commas; ``,,`` stands for a comma in a value. After a last comma there is none."""
    parts = []
    current = ""
    position = 0
    while position < len(text):
        comma = text.find(",", position)
        if comma < 0:
            current += text[position:]
            position = len(text)
        elif text[comma + 1 : comma + 2] == ",":
            current += text[position : comma + 1]
            position = comma + 2
        else:
            parts.append(current + text[position:comma])
            current = ""
            position = comma + 1
    return [*parts, current] if current else parts


def option_pairs(text: str, implied_key: str = "", warn: Callable[[str], object] | None = None) -> list[Pair]:
    """Each option with its value, in order.

    The first word may stand without its key, ``implied_key``. Any other that is bare means ``on``, or ``off`` if it
    begins with ``no``; ``warn`` is told of that.
    """
    pairs = []
    for number, part in enumerate(split_options(text)):
        key, equals, value = part.partition("=")
        if not equals and number == 0 and implied_key:
            key, value = implied_key, part
        elif not equals:
            key, value = (part[2:], "off") if part.startswith("no") else (part, "on")
            if warn is not None:
                warn(f"short-form boolean option '{part}' deprecated\nPlease use {key}={value} instead")
        pairs.append((key, value))
    return pairs
