"""Files of option groups, as ``-readconfig`` and blkdebug read them: ``[group "id"]`` and lines ``key = "value"``.

What counts as such a line is lenient in the ways of QEMU, whose users' files this reads: a key without a value has
an empty one, quotes and brackets need not be closed, and words end where they are longer than their limit.
"""

from __future__ import annotations

import re

from qobra.errors import QobraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_NAMED = re.compile(r'\[\s*(\S{1,63})\s*"([^"]{1,63})')
_PLAIN = re.compile(r"\[([^\]]{1,63})")
_ITEM = re.compile(r'\s*(\S{1,63})(?:\s*=\s*"([^"]{1,1023}))?')


class Group:
    """One group of a file, and the number of the line that begins it."""

    def __init__(self, name: str, id: str | None, line: int) -> None:
        self.name = name
        self.id = id
        self.line = line
        self.items: list[tuple[str, str]] = []


def parse_groups(lines: Iterable[str], where: Callable[[int], str] = lambda _line: "") -> list[Group]:
    """The groups in ``lines``, which keep their ends. ``where`` says what errors at a line begin with.

    Raises QobraError.
    """
    groups: list[Group] = []
    for number, line in enumerate(lines, 1):
        if line[:1] in ("", "\n", "#"):
            continue
        if named := _NAMED.match(line):
            groups.append(Group(named[1], named[2], number))
        elif plain := _PLAIN.match(line):
            groups.append(Group(plain[1], None, number))
        elif not (item := _ITEM.match(line)):
            raise QobraError(f"{where(number)}parse error")
        elif not groups:
            raise QobraError(f"{where(number)}no group defined")
        else:
            groups[-1].items.append((item[1], item[2] or ""))
    return groups
