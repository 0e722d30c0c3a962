"""The object model: classes with inherited properties, objects that own children in one tree.

A QOM type is a Python class with a ``type_name`` of its own; its QOM parent is the nearest base class that
has one. Every object knows its parent and the name it has there, so it has a path; properties come from
the class (:mod:`qobra.object.property`) and, for what differs between instances, from
:meth:`Object.add_property`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from qobra.errors import QobraError
from qobra.object.property import Property, String

if TYPE_CHECKING:
    from qobra.object.tree import ObjectTree


class Object:
    """The root of all types.

    ``user_creatable`` says whether object-add takes the type. ``in_use`` counts who holds on to the object;
    while it is not zero the object cannot be deleted.
    """

    type_name = "object"
    abstract = True
    user_creatable = False
    provided = False
    """Whether the type comes with those that use it, and no module is named after it."""
    required: tuple[str, ...] = ()
    """The properties that whoever creates an object has to give."""
    interfaces: tuple[str, ...] = ()
    """What the type implements, beside what the types do that it derives from."""
    ancestors: Mapping[str, tuple[str, ...]] = {}
    """Abstract types between this one and the class that it is made from, nearest first: they add but interfaces."""
    architectures: frozenset[str] | None = None
    """The architectures whose programs have the type (``board``: any that has a board); None: all."""

    # What each class has found out about itself; a class without one of them has not been asked yet.
    _ancestor_classes: ClassVar[list[type[Object]]]
    _lineage_names: ClassVar[frozenset[str]]
    _parent_type: ClassVar[str | None]
    _all_interfaces: ClassVar[frozenset[str]]
    _class_properties: ClassVar[dict[str, Property]]

    qom_type = String(name="type", get=lambda self: self.type_name, writable=False)

    def __init__(self, tree: ObjectTree) -> None:
        self.tree = tree
        self.parent: Object | None = None
        self.name = ""
        self.children: dict[str, Object] = {}
        self.values: dict[str, Any] = {}
        self.in_use = 0
        self._instance_properties: dict[str, Property] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Neither is inherited: a class is concrete and has no new name unless it says so itself.
        if "abstract" not in cls.__dict__:
            cls.abstract = "type_name" not in cls.__dict__

    def __repr__(self) -> str:
        return f"<{self.type_name} {self.path()}>"

    @property
    def id(self) -> str:
        """The name under the parent; for a user's object the id that they gave it."""
        return self.name

    @property
    def machine(self) -> Any:
        """The machine whose tree this is."""
        return self.tree.machine

    # -- types

    @classmethod
    def lineage(cls) -> Iterator[type[Object]]:
        """This class and its QOM ancestors, nearest first."""
        for base in cls.__mro__:
            if issubclass(base, Object) and "type_name" in base.__dict__:
                yield base
                yield from base._classes_of_ancestors()

    @classmethod
    def _classes_of_ancestors(cls) -> Iterator[type[Object]]:
        names = cls.__dict__.get("ancestors", {})
        if names and "_ancestor_classes" not in cls.__dict__:
            parent = next(base for base in cls.__mro__[1:] if "type_name" in base.__dict__)
            made: list[type[Object]] = []
            for name, interfaces in reversed(names.items()):
                members = {"type_name": name, "abstract": True, "interfaces": interfaces, "__doc__": f"{name}."}
                parent = type(f"{cls.__name__}Ancestor", (parent,), members)
                made.insert(0, parent)
            cls._ancestor_classes = made
        yield from cls.__dict__.get("_ancestor_classes", ())

    @classmethod
    def parent_type(cls) -> str | None:
        """The name of the type that this one derives from."""
        if "_parent_type" not in cls.__dict__:
            cls._parent_type = next((base.type_name for base in cls.lineage() if base.type_name != cls.type_name), None)
        return cls._parent_type

    @classmethod
    def implements(cls, type_name: str) -> bool:
        """Whether the class is ``type_name``, derives from it or has it as an interface."""
        interfaces = cls.all_interfaces()
        if type_name == Interface.type_name:
            return len(interfaces) == 1  # with more of them, which one is meant would not be clear
        return type_name in interfaces or type_name in cls._names()

    @classmethod
    def _names(cls) -> frozenset[str]:
        found: frozenset[str] | None = cls.__dict__.get("_lineage_names")
        if found is None:
            found = cls._lineage_names = frozenset(base.type_name for base in cls.lineage())
        return found

    @classmethod
    def all_interfaces(cls) -> frozenset[str]:
        """The interfaces of the class, inherited ones too."""
        found: frozenset[str] | None = cls.__dict__.get("_all_interfaces")
        if found is None:
            bases = (*cls.__mro__, *cls.lineage())
            names = {each for base in bases for each in base.__dict__.get("interfaces", ())}
            names |= {"user-creatable"} if cls.user_creatable else set()
            found = frozenset(names)
            cls._all_interfaces = found
        return found

    @classmethod
    def class_properties(cls) -> dict[str, Property]:
        """The properties of the class, inherited ones first.

        A class that sets an inherited attribute to None drops that property.
        """
        found: dict[str, Property] = cls.__dict__.get("_class_properties", {})
        if not found:
            attributes: dict[str, Any] = {}
            for base in reversed(cls.__mro__):
                for attribute, value in base.__dict__.items():
                    if isinstance(value, Property) or attribute in attributes:
                        attributes[attribute] = value
            found = {p.name: p for p in attributes.values() if isinstance(p, Property)}
            cls._class_properties = found
        return found

    # -- properties

    def properties(self) -> dict[str, Property]:
        """All properties of this object except its children."""
        if self._instance_properties:
            return self.class_properties() | self._instance_properties
        return self.class_properties()

    def add_property(self, prop: Property) -> None:
        """Give this object a property that its class does not have."""
        if self._instance_properties is None:
            self._instance_properties = {}
        self._instance_properties[prop.name] = prop

    def find_property(self, name: str) -> Property:
        """The property ``name``; QobraError where there is none."""
        prop = (self._instance_properties or {}).get(name) or self.class_properties().get(name)
        if prop is None:
            raise QobraError(f"Property '{self.type_name}.{name}' not found")
        return prop

    def get(self, name: str) -> Any:
        """The value of a property as QMP shows it; a child's is its path."""
        if name in self.children:
            return self.children[name].path()
        return self.find_property(name).read(self)

    def set(self, name: str, value: Any, *, keyval: bool = False) -> None:
        """Set a property from a JSON value, or from an option's text with ``keyval``."""
        if name in self.children:
            raise QobraError(f"Property '{self.type_name}.{name}' is not writable")
        self.find_property(name).write(self, value, keyval=keyval)

    # -- tree

    def path(self) -> str:
        """The canonical path, such as ``/objects/disk-key``."""
        if self.parent is None:
            return "/" + self.name
        return self.parent.path().rstrip("/") + "/" + self.name

    def add_child(self, name: str, child: Object) -> None:
        """Own ``child`` as ``name``; a name that ends in ``[*]`` takes the first free number."""
        if name.endswith("[*]"):
            stem = name[:-3]
            number = len(self.children) if f"{stem}[{len(self.children)}]" not in self.children else 0
            number = 0 if f"{stem}[0]" not in self.children else number
            while f"{stem}[{number}]" in self.children:
                number += 1
            name = f"{stem}[{number}]"
        if name in self.children or name in self.properties():
            raise QobraError(f"attempt to add duplicate property '{name}' to object (type '{self.type_name}')")
        child.parent = self
        child.name = name
        self.children[name] = child

    def unparent(self) -> None:
        """Leave the tree, and finalize this object and all below it."""
        for child in list(self.children.values()):
            child.unparent()
        if self.parent is not None:
            self.parent.children.pop(self.name, None)
            self.parent = None
        self.finalize()

    # -- life, for the types to fill in

    def complete(self) -> None:
        """All properties are set: check them together and become usable. Raises QobraError to refuse."""

    def can_be_deleted(self) -> bool:
        """Whether object-del may delete it."""
        return self.in_use == 0

    def finalize(self) -> None:
        """Let go of whatever the object holds. It has left the tree."""


class Container(Object):
    """An object that only holds others."""

    type_name = "container"
    provided = True


class Interface(Object):
    """What types that do not derive from each other have in common: a name that lists of types know."""

    type_name = "interface"
    abstract = True

    @classmethod
    def parent_type(cls) -> str | None:
        return None if cls is Interface else "interface"

    @classmethod
    def implements(cls, type_name: str) -> bool:
        return type_name in (cls.type_name, Interface.type_name)

    @staticmethod
    def named(name: str) -> type[Interface]:
        """The interface of that name as a type."""
        members = {"type_name": name, "abstract": True, "__module__": __name__, "__doc__": f"The interface {name}."}
        return type("Interface", (Interface,), members)
