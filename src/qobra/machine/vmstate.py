"""What state a device has, as its class declares it, and how that is written to a stream and read back.

A class says which of its attributes are state: ``vmstate = VmState(u8("mask"), flag("poll"), timer("_timer"))``. The
state of an object is what every class of its lineage declares, bases first, so that each class cares for its own
attributes only; a part of a device (a queue, a counter) declares its own and is a :func:`part` of it. What is read is
checked against the declaration: names, order, versions, ranges, lengths. Nothing in a stream chooses a type.

Levels of wires are nobody's state. Whoever drives one has its level as state, and so has whoever listens, and neither
is told when a state is read. What follows from state (mappings, sets of drivers) is worked out anew in
``state_loaded()``, which is called for every object that had state in the stream once all of it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from qobra.errors import QobraError
from qobra.report import visible

if TYPE_CHECKING:
    from qobra.machine.vclock import DeviceTimer

MAX_BYTES = 16 << 20
"""The longest string of bytes and the longest list that any field may have."""


class StateSource:
    """The bytes of one section, taken from the front. Raises QobraError where they end too early."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._position = 0
        self.loaded: list[Any] = []
        """The objects whose state was read, in order."""

    @property
    def left(self) -> int:
        """Bytes that were not taken yet."""
        return len(self._data) - self._position

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes."""
        if length > self.left:
            raise QobraError("the state ends too early")
        self._position += length
        return bytes(self._data[self._position - length : self._position])

    def number(self, width: int) -> int:
        """The next ``width`` bytes as a little-endian number."""
        return int.from_bytes(self.take(width), "little")

    def text(self) -> str:
        """A name, as :func:`put_text` writes it."""
        return self.take(self.number(1)).decode("utf-8", "surrogateescape")


def put_text(out: bytearray, text: str) -> None:
    """Write a name of at most 255 bytes, which need not be UTF-8: that of a bitmap comes from its image."""
    raw = text.encode("utf-8", "surrogateescape")
    out.append(len(raw))
    out += raw


class Kind:
    """How one value is written, and checked when it is read. ``current`` is the value that it takes the place of."""

    def put(self, out: bytearray, value: Any) -> None:
        """Write ``value``."""
        raise NotImplementedError

    def take(self, source: StateSource, current: Any) -> Any:
        """Read a value. Raises QobraError where it cannot be one."""
        raise NotImplementedError


class Number(Kind):
    """A whole number of ``width`` bytes, from ``minimum`` (0, if it has a bound at all) to ``maximum``."""

    def __init__(
        self, width: int, *, signed: bool = False, minimum: int | None = None, maximum: int | None = None
    ) -> None:
        self._width = width
        self._signed = signed
        self._minimum = minimum
        self._maximum = maximum

    def put(self, out: bytearray, value: int) -> None:
        out += int(value).to_bytes(self._width, "little", signed=self._signed)

    def take(self, source: StateSource, current: Any) -> int:
        value = int.from_bytes(source.take(self._width), "little", signed=self._signed)
        low = self._minimum if self._minimum is not None else 0 if self._maximum is not None else value
        if value < low or (self._maximum is not None and value > self._maximum):
            raise QobraError(f"{value} is out of range")
        return value


class Flag(Kind):
    """True or false."""

    def put(self, out: bytearray, value: bool) -> None:
        out.append(1 if value else 0)

    def take(self, source: StateSource, current: Any) -> bool:
        value = source.number(1)
        if value > 1:
            raise QobraError(f"{value} is neither true nor false")
        return bool(value)


class Raw(Kind):
    """Bytes: exactly as many as there are now, or up to ``maximum``. A bytearray stays the same object."""

    def __init__(self, maximum: int | None = None) -> None:
        self._maximum = maximum

    def put(self, out: bytearray, value: bytes | bytearray) -> None:
        out += len(value).to_bytes(4, "little")
        out += value

    def take(self, source: StateSource, current: Any) -> Any:
        length = source.number(4)
        check_length(length, len(current) if self._maximum is None else None, self._maximum)
        data = source.take(length)
        if isinstance(current, bytearray):
            current[:] = data
            return current
        return data


class Listed(Kind):
    """A list, tuple or deque of ``kind``: as many as there are now, or up to ``maximum``."""

    def __init__(self, kind: Kind, maximum: int | None = None) -> None:
        self._kind = kind
        self._maximum = maximum

    def put(self, out: bytearray, value: Any) -> None:
        out += len(value).to_bytes(4, "little")
        for each in value:
            self._kind.put(out, each)

    def take(self, source: StateSource, current: Any) -> Any:
        count = source.number(4)
        check_length(count, len(current) if self._maximum is None else None, self._maximum)
        values = [self._kind.take(source, None) for _ in range(count)]
        return values if current is None else type(current)(values)


class Together(Kind):
    """A tuple whose members are of these kinds."""

    def __init__(self, *kinds: Kind) -> None:
        self._kinds = kinds

    def put(self, out: bytearray, value: Any) -> None:
        for kind, each in zip(self._kinds, value, strict=True):
            kind.put(out, each)

    def take(self, source: StateSource, current: Any) -> Any:
        return tuple(kind.take(source, None) for kind in self._kinds)


class NumberSet(Kind):
    """A set of numbers below ``limit``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def put(self, out: bytearray, value: set[int]) -> None:
        out += len(value).to_bytes(4, "little")
        for each in sorted(value):
            out += each.to_bytes(4, "little")

    def take(self, source: StateSource, current: Any) -> set[int]:
        count = source.number(4)
        check_length(count, None, self._limit)
        found = {source.number(4) for _ in range(count)}
        if len(found) < count or any(each >= self._limit for each in found):
            raise QobraError("a set has a member that it cannot have")
        return found


class Maybe(Kind):
    """A value of ``kind``, or None."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def put(self, out: bytearray, value: Any) -> None:
        out.append(0 if value is None else 1)
        if value is not None:
            self._kind.put(out, value)

    def take(self, source: StateSource, current: Any) -> Any:
        return self._kind.take(source, current) if Flag().take(source, None) else None


class TimerKind(Kind):
    """A timer: when it is due, if at all."""

    _deadline = Maybe(Number(8))

    def put(self, out: bytearray, value: DeviceTimer) -> None:
        self._deadline.put(out, value.deadline_ns)

    def take(self, source: StateSource, current: DeviceTimer) -> DeviceTimer:
        deadline = self._deadline.take(source, None)
        if deadline is None:
            current.cancel()
        else:
            current.set(deadline)
        return current


class Timers(Kind):
    """As many timers as there are now."""

    def put(self, out: bytearray, value: list[DeviceTimer]) -> None:
        out += len(value).to_bytes(4, "little")
        for each in value:
            TimerKind().put(out, each)

    def take(self, source: StateSource, current: list[DeviceTimer]) -> list[DeviceTimer]:
        check_length(source.number(4), len(current), None)
        for each in current:
            TimerKind().take(source, each)
        return current


class Part(Kind):
    """An object with state of its own, or None; it is there on both sides or on neither."""

    def put(self, out: bytearray, value: Any) -> None:
        out.append(0 if value is None else 1)
        if value is not None:
            put_object(out, value)

    def take(self, source: StateSource, current: Any) -> Any:
        there = Flag().take(source, None)
        if there != (current is not None):
            raise QobraError("a part is there on one side only")
        if there:
            take_object(source, current)
        return current


class Parts(Kind):
    """Several objects with state of their own, in a list or as the values of a dictionary."""

    def put(self, out: bytearray, value: Any) -> None:
        parts = _members(value)
        out += len(parts).to_bytes(4, "little")
        for each in parts:
            put_object(out, each)

    def take(self, source: StateSource, current: Any) -> Any:
        parts = _members(current)
        check_length(source.number(4), len(parts), None)
        for each in parts:
            take_object(source, each)
        return current


class Field:
    """One attribute that is state. ``since`` is the version of its class's state that brought it."""

    __slots__ = ("_get", "_put", "kind", "name", "since")

    def __init__(
        self,
        name: str,
        kind: Kind,
        *,
        since: int = 1,
        get: Callable[[Any], Any] | None = None,
        put: Callable[[Any, Any], None] | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.since = since
        self._get = get
        self._put = put

    def save(self, out: bytearray, owner: Any) -> None:
        """Write the attribute of ``owner``."""
        put_text(out, self.name)
        self.kind.put(out, self._value(owner))

    def load(self, source: StateSource, owner: Any) -> None:
        """Read the attribute of ``owner``."""
        name = source.text()
        if name != self.name:
            raise QobraError(f"field '{self.name}' is missing: there is '{visible(name)}'")
        try:
            value = self.kind.take(source, self._value(owner))
        except QobraError as error:
            raise error.prefixed(f"field '{self.name}': ")
        if self._put is not None:
            self._put(owner, value)
        else:
            setattr(owner, self.name, value)

    def _value(self, owner: Any) -> Any:
        return self._get(owner) if self._get is not None else getattr(owner, self.name)


Fields = tuple[Field, ...]


def u8(*names: str, maximum: int | None = None, since: int = 1) -> Fields:
    """Attributes that are numbers of one byte."""
    return tuple(Field(name, Number(1, maximum=maximum), since=since) for name in names)


def u16(*names: str, maximum: int | None = None, since: int = 1) -> Fields:
    """Attributes that are numbers of two bytes."""
    return tuple(Field(name, Number(2, maximum=maximum), since=since) for name in names)


def u32(*names: str, maximum: int | None = None, since: int = 1) -> Fields:
    """Attributes that are numbers of four bytes."""
    return tuple(Field(name, Number(4, maximum=maximum), since=since) for name in names)


def u64(*names: str, maximum: int | None = None, since: int = 1) -> Fields:
    """Attributes that are numbers of eight bytes."""
    return tuple(Field(name, Number(8, maximum=maximum), since=since) for name in names)


def i64(*names: str, since: int = 1) -> Fields:
    """Attributes that are signed numbers of eight bytes."""
    return tuple(Field(name, Number(8, signed=True), since=since) for name in names)


def flag(*names: str, since: int = 1) -> Fields:
    """Attributes that are true or false."""
    return tuple(Field(name, Flag(), since=since) for name in names)


def raw(*names: str, maximum: int | None = None, since: int = 1) -> Fields:
    """Attributes that are bytes: as many as there are, or up to ``maximum``."""
    return tuple(Field(name, Raw(maximum), since=since) for name in names)


def listed(*names: str, kind: Kind, maximum: int | None = None, since: int = 1) -> Fields:
    """Attributes that are lists of ``kind``: as long as they are, or up to ``maximum``."""
    return tuple(Field(name, Listed(kind, maximum), since=since) for name in names)


def timer(*names: str, since: int = 1) -> Fields:
    """Attributes that are timers of the guest's clock."""
    return tuple(Field(name, TimerKind(), since=since) for name in names)


def part(*names: str, since: int = 1) -> Fields:
    """Attributes that are objects with state of their own."""
    return tuple(Field(name, Part(), since=since) for name in names)


def parts(*names: str, since: int = 1) -> Fields:
    """Attributes that are lists of objects with state of their own, or dictionaries with such values."""
    return tuple(Field(name, Parts(), since=since) for name in names)


class VmState:
    """The state that one class declares.

    ``partial``: what derives from the class is migrated only if it declares its own state too, even an empty one.
    """

    def __init__(self, *fields: Field | Fields, version: int = 1, partial: bool = False) -> None:
        self.version = version
        self.partial = partial
        flat: list[Field] = []
        for each in fields:
            flat.extend((each,) if isinstance(each, Field) else each)
        self.fields = tuple(flat)

    def save(self, out: bytearray, owner: Any) -> None:
        """Write what this class has in ``owner``."""
        out.append(self.version)
        for field in self.fields:
            field.save(out, owner)

    def load(self, source: StateSource, owner: Any) -> None:
        """Read it back."""
        version = source.number(1)
        if not 1 <= version <= self.version:
            raise QobraError(f"version {version} is not known, only up to {self.version}")
        for field in self.fields:
            if field.since <= version:
                field.load(source, owner)


def declared(cls: type) -> Iterator[tuple[str, VmState]]:
    """The states that the lineage of ``cls`` declares, bases first, each with the name of its class."""
    for base in reversed(cls.__mro__):
        state = base.__dict__.get("vmstate")
        if isinstance(state, VmState):
            yield str(base.__dict__.get("type_name") or base.__name__), state


def is_declared(cls: type) -> bool:
    """Whether all the state of ``cls`` is declared."""
    for base in cls.__mro__:
        state = base.__dict__.get("vmstate")
        if isinstance(state, VmState):
            return base is cls or not state.partial
    return False


def put_object(out: bytearray, owner: Any) -> None:
    """Write the state of ``owner``."""
    for name, state in declared(type(owner)):
        put_text(out, name)
        state.save(out, owner)
    out.append(0)


def take_object(source: StateSource, owner: Any) -> None:
    """Read the state of ``owner``, and note that it was."""
    for name, state in declared(type(owner)):
        found = source.text()
        if found != name:
            raise QobraError(f"the state of '{name}' is missing: there is '{visible(found)}'")
        try:
            state.load(source, owner)
        except QobraError as error:
            raise error.prefixed(f"'{name}': ")
    if source.number(1):
        raise QobraError(f"there is more state than '{type(owner).__name__}' has")
    source.loaded.append(owner)


def check_length(found: int, expected: int | None, maximum: int | None) -> None:
    """Raise QobraError unless ``found`` is as it must be."""
    if expected is not None and found != expected:
        raise QobraError(f"length mismatch: {found} != {expected}")
    if found > (MAX_BYTES if maximum is None else maximum):
        raise QobraError(f"{found} is too long")


def _members(value: Any) -> list[Any]:
    return [value[key] for key in sorted(value)] if isinstance(value, dict) else list(value)
