"""Machine types by version: guests keep the board that they were installed on, with what was different about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.board import Compat, boards

if TYPE_CHECKING:
    from qobra.machine.board import Board

_VERSIONS = ("7.2", "7.1", "7.0", "6.2", "6.1", "6.0", "5.2", "5.1", "5.0", "4.2", "4.1", "4.0")
_WITH_PLAIN_NODE_MEMORY = ("5.0", "4.2", "4.1", "4.0")
"""Versions that take ``-numa node,mem=``."""
_ALL_BOARDS: dict[str, Compat] = {
    "5.0": (("virtio-balloon-device", "page-poison", "off"),),
    "4.0": (("virtio-balloon-device", "qemu-4-0-config-size", "on"),),
}
"""What changed after a version on all boards."""


def register_versions(
    board: type[Board], family: str, alias: str, differences: dict[str, Compat], *, default_for: str | None = None
) -> None:
    """Register ``family``-4.0 to -7.2: kinds of ``board``, the newest under ``alias`` too.

    It is the default of the architecture ``default_for``.

    ``differences`` has the properties, and their values, that changed after a version: they hold for it and all before.
    """
    compat: Compat = ()
    for version in _VERSIONS:
        newest = version == _VERSIONS[0]
        compat += _ALL_BOARDS.get(version, ()) + differences.get(version, ())
        name = f"{family}-{version}"
        members: dict[str, object] = {
            "__module__": board.__module__,
            "__doc__": board.__doc__,
            "type_name": f"{name}-machine",
            "machine_name": name,
            "family": family,
            "alias": alias if newest else None,
            "default_for": frozenset((default_for,) if newest and default_for else ()),
            "compat": compat,
            "cpu_models_have_versions": version != "4.0",
            "numa_mem_supported": version in _WITH_PLAIN_NODE_MEMORY,
        }
        names = (alias, name) if newest else (name,)
        boards.register(*names)(type(f"{board.__name__}V{version.replace('.', '_')}", (board,), members))
