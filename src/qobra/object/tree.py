"""The composition tree of a machine, and what users do in it: create, find, delete, resolve a path."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from qobra.errors import DEVICE_NOT_FOUND, QobraError
from qobra.object.qom import Container, Interface, Object
from qobra.object.types import registry
from qobra.registry import Registry

if TYPE_CHECKING:
    from qobra.machine.machine import Machine

_ID_EXTRA = frozenset("-._")


class ObjectTree:
    """The objects of one machine. The user's own are in ``/objects``; boards add ``/machine``."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.closing = False
        self.registries: list[Registry[type[Object]]] = [registry]
        self._found: dict[str, type[Object]] = {}
        self._all: dict[str, type[Object]] = {}
        self._all_of = 0
        self.root = Container(self)
        self.objects = self.container("objects")
        self.container("chardevs")

    # -- the user's objects

    def create(self, type_name: str, id: str, props: dict[str, Any], *, keyval: bool = False) -> Object:
        """Create a user's object and put it into use.

        ``props`` are JSON values, or option texts with ``keyval``. QobraError says why it is refused;
        nothing is left behind then.
        """
        check_identifier(id)
        cls = self.find_type(type_name)
        if cls is None:
            raise QobraError(f"invalid object type: {type_name}")
        if not cls.user_creatable:
            raise QobraError(f"object type '{type_name}' isn't supported by object-add")
        if cls.abstract:
            raise QobraError(f"object type '{type_name}' is abstract")
        for name in cls.required:
            if name not in props:
                raise QobraError(f"Parameter '{name}' is missing")
        created = cls(self)
        try:
            known = created.properties()
            for name in props:
                if keyval and name not in known:
                    raise QobraError(f"Parameter '{name}' is unexpected")
            for name, value in props.items():
                created.set(name, value, keyval=keyval)
            self.objects.add_child(id, created)
            created.complete()
        except BaseException:
            created.unparent()
            raise
        return created

    def find(self, id: str, type_name: str | None = None) -> Object | None:
        """The user's object ``id``, if there is one and it is a ``type_name`` (or derives from it)."""
        found = self.objects.children.get(id)
        if found is None or (type_name is not None and not found.implements(type_name)):
            return None
        return found

    def delete(self, id: str) -> None:
        """Delete the user's object ``id``; QobraError where it does not exist or is in use."""
        found = self.objects.children.get(id)
        if found is None:
            raise QobraError(f"object '{id}' not found")
        if not found.can_be_deleted():
            raise QobraError(f"object '{id}' is in use, can not be deleted")
        found.unparent()

    # -- types

    def find_type(self, type_name: str) -> type[Object] | None:
        """The class of a type, abstract ones included."""
        found = self._found.get(type_name)
        if found is None:
            # A look into each package costs: what was loaded for any machine comes first, and what was found stays.
            loaded = (types.loaded().get(type_name) for types in self.registries)
            candidates = chain(loaded, (types.find(type_name) for types in self.registries))
            found = next((each for each in candidates if each is not None), None)
            if found is None or not self._has(found):
                found = self.all_types().get(type_name)
            if found is not None:
                self._found[type_name] = found
        return found

    def all_types(self) -> dict[str, type[Object]]:
        """Every type by name, with the abstract ones that they derive from."""
        # Gone through once, and again when a board has brought more.
        if self._all_of != len(self.registries):
            self._all, self._all_of = self._list_types(), len(self.registries)
        return dict(self._all)

    def _list_types(self) -> dict[str, type[Object]]:
        found: dict[str, type[Object]] = {"object": Object}
        for types in self.registries:
            for cls in types.load_all().values():
                if self._has(cls):
                    found.update((base.type_name, base) for base in cls.lineage())
        for cls in filter(self._has, _provided(Object)):
            for base in cls.lineage():
                found.setdefault(base.type_name, base)
        interfaces = {name for cls in found.values() for name in cls.all_interfaces()}
        found[Interface.type_name] = Interface
        found.update((name, Interface.named(name)) for name in sorted(interfaces))
        return found

    def _has(self, cls: type[Object]) -> bool:
        # The type may be one of other architectures than this machine's.
        return not cls.architectures or bool(cls.architectures & self.machine.capabilities)

    # -- paths

    def container(self, path: str) -> Object:
        """The container at ``path`` from the root, made if it is not there yet."""
        here: Object = self.root
        for part in path.strip("/").split("/"):
            child = here.children.get(part)
            if child is None:
                child = Container(self)
                here.add_child(part, child)
            here = child
        return here

    def resolve(self, path: str, *, tells_ambiguous: bool = False) -> Object:
        """The object at an absolute path, or the only one whose path ends in a relative one.

        QobraError says that there is none, or, if it ``tells_ambiguous``, that there are several.
        """
        found = self._resolve(path)
        if len(found) > 1 and tells_ambiguous:
            raise QobraError(f"Path '{path}' is ambiguous")
        if len(found) != 1:
            raise QobraError(f"Device '{path}' not found", DEVICE_NOT_FOUND)
        return found[0]

    def find_link(self, path: str, type_name: str, property_name: str) -> Object:
        """The object that a link property is set to: ``path`` must lead to one ``type_name``."""
        candidates = self._resolve(path)
        if not candidates:
            raise QobraError(f"Device '{path}' not found", DEVICE_NOT_FOUND)
        fitting = [o for o in candidates if o.implements(type_name)]
        if len(fitting) > 1:
            raise QobraError(f"Path '{path}' does not uniquely identify an object")
        if not fitting:
            raise QobraError(f"Invalid parameter type for '{property_name}', expected: {type_name}")
        return fitting[0]

    def find_at(self, path: str, type_name: str) -> Object | None:
        """The ``type_name`` at a path, as :meth:`resolve` takes them; None where there is none or more than one."""
        fitting = [found for found in self._resolve(path) if found.implements(type_name)]
        return fitting[0] if len(fitting) == 1 else None

    def _resolve(self, path: str) -> list[Object]:
        parts = [part for part in path.split("/") if part]
        if path.startswith("/"):
            found = _descend(self.root, parts)
            return [found] if found is not None else []
        # The empty path ends every path.
        matches: list[Object] = []
        for start in _walk(self.root):
            found = _descend(start, parts)
            if found is not None and found not in matches:
                matches.append(found)
        return matches

    def close(self) -> None:
        """Finalize every object; devices first, then the user's objects that they use."""
        self.closing = True
        for child in sorted(self.root.children.values(), key=lambda c: c is self.objects):
            child.unparent()


def check_identifier(text: str) -> None:
    """Raise QobraError if ``text`` cannot be an id."""
    if not is_identifier(text):
        hint = "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
        raise QobraError("Parameter 'id' expects an identifier", hint=hint)


def is_identifier(text: str) -> bool:
    """Whether ``text`` may be an id: a letter, then letters, digits, ``-``, ``.`` and ``_``."""
    return (
        text[:1].isalpha()
        and text.isascii()
        and all(character.isalnum() or character in _ID_EXTRA for character in text)
    )


def _descend(start: Object, parts: list[str]) -> Object | None:
    here: Object | None = start
    for part in parts:
        if here is None:
            return None
        here = here.children.get(part) or _linked(here, part)
    return here


def _linked(start: Object, name: str) -> Object | None:
    """The object that a link of ``start`` leads to."""
    prop = start.properties().get(name)
    if prop is None or not prop.type.startswith("link<"):
        return None
    path = prop.read(start)
    return _descend(start.tree.root, [part for part in path.split("/") if part]) if path else None


def _provided(start: type[Object]) -> Iterator[type[Object]]:
    for cls in start.__subclasses__():
        if cls.provided and cls.__module__.startswith("qobra."):
            yield cls
        yield from _provided(cls)


def _walk(start: Object) -> Iterator[Object]:
    yield start
    for child in start.children.values():
        yield from _walk(child)
