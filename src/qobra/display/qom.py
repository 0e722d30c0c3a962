"""Consoles in the composition tree: ``/backend/console[N]``, of type ``qemu-console``.

The tree only shows them; it is :class:`qobra.display.console.Consoles` that owns them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.object.property import Int, Property
from qobra.object.qom import Object

if TYPE_CHECKING:
    from qobra.display.console import Console
    from qobra.object.tree import ObjectTree


class ConsoleObject(Object):
    """What the tree shows of a console: which output of which device it is; a text is of none."""

    type_name = "qemu-console"
    provided = True

    console: Console | None = None


def show(tree: ObjectTree, console: Console) -> ConsoleObject:
    """Put ``console`` into ``tree`` under the first number that is free."""
    container = tree.container("backend")
    shown = ConsoleObject(tree)
    shown.console = console
    # Of the object, not of its type: the reference's clients find nothing at the type.
    shown.add_property(Property("link<device>", name="device", get=lambda _: _path(console), writable=False))
    shown.add_property(Int(type="uint32", name="head", get=lambda _: console.head, writable=False))
    number = next(n for n in range(len(container.children) + 1) if f"console[{n}]" not in container.children)
    container.add_child(f"console[{number}]", shown)
    return shown


def _path(console: Console) -> str:
    return console.device.path() if console.device is not None else ""
