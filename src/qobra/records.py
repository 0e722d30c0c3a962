"""``NamedTuple`` without ``typing``, whose import takes longer than all else that ``qobra-img info`` imports."""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:

    class _Maker(type):
        """Turns the class statement of a record into a named tuple with the same fields, defaults and methods."""

        def __new__(cls, name, bases, namespace):
            if not bases:
                return super().__new__(cls, name, bases, namespace)
            fields = list(namespace.pop("__annotations__"))
            defaults = [namespace.pop(field) for field in fields if field in namespace]
            made = namedtuple(name, fields, defaults=defaults, module=namespace["__module__"])
            return type(name, (made,), {"__slots__": (), **namespace})

    class NamedTuple(metaclass=_Maker):
        """The base of a record: to a type checker, :class:`typing.NamedTuple`."""


__all__ = ["NamedTuple"]
