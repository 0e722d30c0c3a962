"""Properties of objects: named, typed, described, checked before anything is stored.

A property is declared as a class attribute of an object's class::

    class IOThread(Object):
        poll_max_ns = Int(default=32768, description="...")

It is a Python descriptor, so the code of the class reads and writes ``self.poll_max_ns``; users reach it
under its QOM name (hyphens for underscores unless ``name`` says otherwise). ``type`` is what QMP
shows as its type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qobra import units
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.object.qom import Object


class Property:
    """One property. Subclasses say which values it takes."""

    expected = "value"
    forwarded = False
    """Whether reading and setting is another object's business."""

    def __init__(
        self,
        type: str,
        default: Any = None,
        *,
        name: str | None = None,
        description: str | None = None,
        get: Callable[[Any], Any] | None = None,
        set: Callable[[Any, Any], None] | None = None,
        readable: bool = True,
        writable: bool = True,
        show_default: bool = True,
        live: bool = False,
        guard: Callable[[Any], None] | None = None,
    ) -> None:
        """``live``: whether it may change while a device works. ``guard`` refuses before a value is looked at."""
        self.type = type
        self.default = default
        self.name = name or ""
        self.description = description
        self.readable = readable
        self.writable = writable
        self.show_default = show_default
        self.live = live
        self._guard = guard
        self._get = get
        self._set = set
        self._attribute = ""

    def __set_name__(self, owner: type[Object], attribute: str) -> None:
        self._attribute = attribute
        self.name = self.name or attribute.replace("_", "-")

    def __get__(self, instance: Object | None, owner: type[Object]) -> Any:
        if instance is None:
            return self
        return instance.values.get(self.name, self.default)

    def __set__(self, instance: Object, value: Any) -> None:
        instance.values[self.name] = value

    def read(self, instance: Object) -> Any:
        """The value as QMP shows it."""
        if not self.readable:
            raise QobraError(f"Property '{instance.type_name}.{self.name}' is not readable")
        if self._get is not None:
            return self._get(instance)
        return self.show(instance.values.get(self.name, self.default))

    def write(self, instance: Object, value: Any, *, keyval: bool = False) -> None:
        """Check ``value`` (a string to be converted, with ``keyval``) and store it."""
        if not self.writable:
            raise QobraError(f"Property '{instance.type_name}.{self.name}' is not writable")
        if self._guard is not None:
            self._guard(instance)
        checked = self.parse(value) if keyval and isinstance(value, str) else self.check(value)
        if self._set is not None:
            self._set(instance, checked)
        else:
            instance.values[self.name] = checked

    def check(self, value: Any) -> Any:
        """The value to store for a JSON value; raises QobraError where its type is wrong."""
        return value

    def parse(self, text: str) -> Any:
        """The value to store for the text of a ``key=value`` option."""
        return self.check(self.convert(text))

    def convert(self, text: str) -> Any:
        """The JSON value that the text of an option stands for. Raises QobraError."""
        return text

    def show(self, value: Any) -> Any:
        """The JSON value for a stored one."""
        return value

    def choices(self) -> tuple[str, ...]:
        """The texts that may be given for it, where there are only some."""
        return ()

    def mismatch(self, expected: str | None = None) -> QobraError:
        """The error for a value of the wrong type."""
        return QobraError(f"Invalid parameter type for '{self.name}', expected: {expected or self.expected}")


class Bool(Property):
    """True or false."""

    expected = "boolean"

    def __init__(self, default: bool | None = False, **options: Any) -> None:
        super().__init__("bool", default, **options)

    def choices(self) -> tuple[str, ...]:
        return ("on", "off")

    def check(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self.mismatch()
        return value

    def convert(self, text: str) -> bool:
        if text in ("on", "yes", "true", "y"):
            return True
        if text in ("off", "no", "false", "n"):
            return False
        raise QobraError(f"Parameter '{self.name}' expects 'on' or 'off'")


_INT_BOUNDS: dict[str, tuple[int, int]] = {
    "int": (-(1 << 63), (1 << 63) - 1),
    "uint64": (0, (1 << 64) - 1),
    "size": (0, (1 << 64) - 1),
    "uint32": (0, (1 << 32) - 1),
    "uint16": (0, (1 << 16) - 1),
    "uint8": (0, (1 << 8) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "int32": (-(1 << 31), (1 << 31) - 1),
}


class Int(Property):
    """A whole number of one of QOM's widths (``uint8`` .. ``uint64``, ``int32``, ``int``)."""

    expected = "integer"

    def __init__(
        self,
        default: int | None = 0,
        *,
        type: str = "int",
        width: str | None = None,
        minimum: int | None = None,
        maximum: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(type, default, **options)
        self.width = width or type
        low, high = _INT_BOUNDS[self.width]
        self.minimum = low if minimum is None else minimum
        self.maximum = high if maximum is None else maximum

    def mismatch(self, expected: str | None = None) -> QobraError:
        if expected is None and self.width.startswith("u"):
            return QobraError(f"Parameter '{self.name}' expects uint64")
        return super().mismatch(expected)

    def check(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.mismatch()
        if not self.minimum <= value <= self.maximum:
            raise self.out_of_range(value)
        return value

    def convert(self, text: str) -> int:
        value = units.integer(text)
        highest = (1 << 64) - 1 if self.width.startswith("u") else (1 << 63) - 1
        if value is None or not -(1 << 63) <= value <= highest:
            raise QobraError(f"Parameter '{self.name}' expects {self.expected}")
        return value & highest if self.width.startswith("u") else value  # as C converts what is below 0

    def out_of_range(self, value: int) -> QobraError:
        """The error for a number outside the bounds."""
        low, high = _INT_BOUNDS[self.width]
        if low <= value <= high:
            return QobraError(f"{self.name} value must be in range [{self.minimum}, {self.maximum}]")
        if self.width in ("int", "int64") or not -(1 << 63) <= value < (1 << 64):
            return self.mismatch()
        return QobraError(f"Parameter '{self.name}' expects {self.width}_t")


class Size(Int):
    """A number of bytes; as text it takes the suffixes B, K, M, G, T, P, E."""

    def __init__(self, default: int | None = 0, **options: Any) -> None:
        super().__init__(default, type=options.pop("type", "size"), width=options.pop("width", "uint64"), **options)

    def convert(self, text: str) -> int:
        return parse_size(text, self.name)


class String(Property):
    """Text."""

    expected = "string"

    def __init__(self, default: str | None = None, *, type: str = "string", **options: Any) -> None:
        super().__init__(type, default, **options)

    def check(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self.mismatch()
        return value

    def show(self, value: Any) -> Any:
        return "" if value is None else value


class Enum(Property):
    """One of some words; ``type`` is the name of the enum in the schema."""

    expected = "string"

    def __init__(self, type: str, values: Sequence[str], default: str | None = None, **options: Any) -> None:
        super().__init__(type, default, **options)
        self.values = tuple(values)

    def choices(self) -> tuple[str, ...]:
        return self.values

    def check(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self.mismatch()
        if value not in self.values:
            raise QobraError(f"Parameter '{self.name}' does not accept value '{value}'")
        return value


class Link(Property):
    """A reference to another object of the tree, given and shown as its path."""

    expected = "string"

    def __init__(self, target: str, **options: Any) -> None:
        super().__init__(f"link<{target}>", **options)
        self.target = target

    def resolve(self, instance: Object, value: Any) -> Object | None:
        """The object that ``value`` means, or None for nothing. Raises QobraError."""
        if not isinstance(value, str):
            raise self.mismatch()
        return instance.tree.find_link(value, self.target, self.name) if value else None

    def write(self, instance: Object, value: Any, *, keyval: bool = False) -> None:
        if self._guard is not None:
            self._guard(instance)
        linked = self.resolve(instance, value)
        if self._set is not None:
            self._set(instance, linked)
        else:
            instance.values[self.name] = linked

    def show(self, value: Any) -> Any:
        return value.path() if value is not None else ""


def parse_size(text: str, name: str = "size") -> int:
    """Bytes from ``text``, for the property or option ``name``: see :func:`qobra.units.parse_size`."""
    try:
        return units.parse_size(text)
    except (units.NotANumber, units.OutOfRange):
        raise QobraError(f"Parameter '{name}' expects size")
