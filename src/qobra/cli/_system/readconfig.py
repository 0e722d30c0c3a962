"""``-readconfig``: options from a file of groups, ``[group "id"]`` and lines ``key = "value"``."""

from __future__ import annotations

from qobra.config_groups import parse_groups
from qobra.errors import QobraError

_AS_OPTION = {"memory": "m", "smp-opts": "smp", "boot-opts": "boot"}
_MAX_LENGTH = 1 << 20


def read_config(path: str) -> list[tuple[str, str]]:
    """The file's groups as options, in their order. Raises QobraError."""
    try:
        stream = open(path, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise QobraError.from_os(f"-readconfig {path}: Could not open '{path}'", error)
    with stream:
        try:
            lines = stream.read(_MAX_LENGTH).splitlines(keepends=True)
        except OSError as error:
            raise QobraError.from_os(f"-readconfig {path}: Cannot read config file", error)
    return [
        (
            _AS_OPTION.get(group.name, group.name),
            ",".join(
                f"{key}={value.replace(',', ',,')}"
                for key, value in ([("id", group.id)] if group.id else []) + group.items
            ),
        )
        for group in parse_groups(lines, lambda number: f"-readconfig {path}: {path}:{number}: ")
    ]
