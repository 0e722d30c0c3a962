"""Machine types by version: guests keep the board that they were installed on, with what was different about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.board import Compat, boards

if TYPE_CHECKING:
    from qobra.machine.board import Board

_OLDER = ("7.1", "7.0", "6.2", "6.1", "6.0", "5.2", "5.1", "5.0", "4.2", "4.1", "4.0")
_WITH_PLAIN_NODE_MEMORY = ("5.0", "4.2", "4.1", "4.0")
"""Versions that take ``-numa node,mem=``."""


def register_older(board: type[Board], family: str, differences: dict[str, Compat]) -> None:
    """Register ``family``-4.0 to -7.1 beside ``board``.

    ``differences`` has the properties, and their values, that changed after a version: they hold for it and all before.
    """
    compat: Compat = ()
    for version in _OLDER:
        compat += differences.get(version, ())
        name = f"{family}-{version}"
        members: dict[str, object] = {
            "__module__": board.__module__,
            "__doc__": board.__doc__,
            "type_name": f"{name}-machine",
            "machine_name": name,
            "alias": None,
            "default_for": frozenset(),
            "compat": compat,
            "cpu_models_have_versions": version != "4.0",
            "numa_mem_supported": version in _WITH_PLAIN_NODE_MEMORY,
        }
        boards.register(name)(type(f"{board.__name__}V{version.replace('.', '_')}", (board,), members))
