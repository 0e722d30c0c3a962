"""``-readconfig``: options from a file of groups, ``[group "id"]`` and lines ``key = "value"``."""

from __future__ import annotations

from qobra.errors import QobraError

_AS_OPTION = {"memory": "m", "smp-opts": "smp", "boot-opts": "boot"}
_MAX_LENGTH = 1 << 20


def read_config(path: str) -> list[tuple[str, str]]:
    """The file's groups as options, in their order. Raises QobraError."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            lines = stream.read(_MAX_LENGTH).splitlines()
    except OSError as error:
        raise QobraError.from_os(f"-readconfig {path}: Cannot read config file {path}", error)
    groups: list[tuple[str, list[str]]] = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        where = f"-readconfig {path}: {path}:{number}"
        if text.startswith("[") and text.endswith("]"):
            group, _, id = text[1:-1].strip().partition(" ")
            quoted = id.strip().strip('"')
            groups.append((group, [f"id={quoted}"] if quoted else []))
            continue
        key, equals, value = text.partition("=")
        if not equals or not groups:
            raise QobraError(f"{where}: parse error" if equals == "" else f"{where}: no group defined")
        stripped = value.strip()
        if len(stripped) < 2 or stripped[0] != '"' or stripped[-1] != '"':
            raise QobraError(f"{where}: parse error")
        groups[-1][1].append(f"{key.strip()}={stripped[1:-1].replace(',', ',,')}")
    return [(_AS_OPTION.get(group, group), ",".join(items)) for group, items in groups]
