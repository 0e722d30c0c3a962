"""Character devices in the composition tree: ``/chardevs/ID``, of types ``chardev-KIND``.

The tree only shows them; it is :class:`qobra.chardev.chardevs.Chardevs` that owns them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qobra.chardev.chardev import registry
from qobra.object.property import Property
from qobra.object.qom import Object
from qobra.registry import Registry

if TYPE_CHECKING:
    from qobra.chardev.chardev import Chardev
    from qobra.object.tree import ObjectTree

_ON_DESCRIPTORS = frozenset(("file", "pipe", "serial", "stdio"))


class ChardevObject(Object):
    """What the tree shows of a character device."""

    type_name = "chardev"
    abstract = True

    device: Chardev | None = None


class FdChardevObject(ChardevObject):
    """What has plain file descriptors."""

    type_name = "chardev-fd"
    abstract = True


class SocketChardevObject(ChardevObject):
    """A socket, its address (a SocketAddress) and whether somebody is there."""

    type_name = "chardev-socket"

    connected = Property("bool", get=lambda self: self.device.is_open, set=None, writable=False)
    addr = Property("SocketAddress", get=lambda self: self.address(), set=None, writable=False)

    def address(self) -> dict[str, Any]:
        """The configured address, without the wrapper that chardev-add has around it."""
        assert self.device is not None
        wrapped = self.device.options["addr"]
        return {**wrapped["data"], "type": wrapped["type"]}


class _Types(Registry[type[Object]]):
    """A type for each backend, made when it is asked for."""

    def find(self, name: str) -> type[Object] | None:
        if name not in self._items:
            kind = name.removeprefix("chardev-")
            backend = registry.find(kind)
            if kind == name or backend is None:
                return None
            base: type[Object] | None = FdChardevObject if kind in _ON_DESCRIPTORS else ChardevObject
            if kind == "memory":
                base = self.find("chardev-ringbuf")
            assert base is not None
            where = frozenset(("board",)) if backend.needs_board else None
            members = {"type_name": name, "architectures": where}
            self._items[name] = type(f"{kind.capitalize()}ChardevObject", (base,), members)
        return self._items[name]

    def load_all(self) -> dict[str, type[Object]]:
        for kind in registry.names():
            self.find(f"chardev-{kind}")
        return self._items


types = _Types("chardev type", [])
for _type in (ChardevObject, FdChardevObject, SocketChardevObject):
    types.register(_type.type_name)(_type)


def show(tree: ObjectTree, device: Chardev) -> None:
    """Put ``device`` into ``tree``, in place of one with its id."""
    hide(tree, device.id)
    found = types.find(f"chardev-{device.kind}")
    assert found is not None and issubclass(found, ChardevObject)
    shown = found(tree)
    shown.device = device
    tree.container("chardevs").add_child(device.id, shown)


def hide(tree: ObjectTree, id: str) -> None:
    """Take the device ``id`` out of ``tree``, if it is there."""
    shown = tree.container("chardevs").children.get(id)
    if shown is not None:
        shown.unparent()
