"""``NamedTuple`` without ``typing`` and ``collections``, whose imports take longer than much of ``qobra-img info``."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:
    from _collections import _tuplegetter

    class _Record(tuple):
        """What records have besides their fields."""

        __slots__ = ()
        _fields = ()

        @classmethod
        def _make(cls, values):
            return cls(*values)

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, /, **changes):
            changed = self._make(map(changes.pop, self._fields, self))
            if changes:
                raise TypeError(f"{type(self).__name__} has no field '{min(changes)}'")
            return changed

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"

    class _Maker(type):
        """Turns the class statement of a record into a named tuple with the same fields, defaults and methods."""

        def __new__(cls, name, bases, namespace):
            if not bases:
                return super().__new__(cls, name, bases, namespace)
            fields = tuple(namespace["__annotations__"])
            defaults = tuple(namespace.pop(field) for field in fields if field in namespace)
            values = f"({', '.join(fields)},)"
            # A function of its own for each record, as calls of it are hot.
            new = eval(f"lambda cls, {', '.join(fields)}: new(cls, {values})", {"new": tuple.__new__})
            new.__defaults__ = defaults
            getters = {field: _tuplegetter(number, field) for number, field in enumerate(fields)}
            own = {"__slots__": (), "__new__": new, "_fields": fields, "__match_args__": fields, **getters}
            return type(name, (_Record,), {**namespace, **own})

    class NamedTuple(metaclass=_Maker):
        """The base of a record: to a type checker, :class:`typing.NamedTuple`."""


__all__ = ["NamedTuple"]
