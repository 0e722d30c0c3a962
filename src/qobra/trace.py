"""Trace events: lines that say what a part of the program does, printed while they are switched on.

An event is seen at *seams*, methods that are wrapped only while one of their events is on, so that one that is off
costs nothing. ``qobra.*.trace_events`` declare the events of their layers, with QEMU's names and forms where QEMU has
the same thing to tell; they are imported when somebody asks for events. Lines are like those of QEMU's ``log``.
"""

from __future__ import annotations

import os

from qobra.report import visible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

SOURCES = ("qobra.block.trace_events", "qobra.machine.trace_events", "qobra.qmp.trace_events")
"""The modules that declare events. They lie above this one, which knows them by name only."""

STANDARD_ERROR = 2


class Seam:
    """One method of a class, wrapped while an event is seen there."""

    def __init__(self, owner: type, method: str) -> None:
        self._owner = owner
        self._method = method
        self._before: list[Callable[..., None]] = []
        self._after: list[Callable[..., None]] = []
        self._original: Any = None

    def add(self, call: Callable[..., None], *, after: bool) -> None:
        """Call ``call`` with the arguments of each call, or ``after`` it with its result and them."""
        if self._original is None:
            self._install()
        (self._after if after else self._before).append(call)

    def remove(self, call: Callable[..., None]) -> None:
        """Do not call it any more."""
        for calls in (self._before, self._after):
            if call in calls:
                calls.remove(call)
        if not self._before and not self._after:
            setattr(self._owner, self._method, self._original)
            self._original = None

    def _install(self) -> None:
        original = self._original = self._owner.__dict__[self._method]

        def traced(*args: Any, **kwargs: Any) -> Any:
            for call in tuple(self._before):
                call(*args, **kwargs)
            result = original(*args, **kwargs)
            for call in tuple(self._after):
                call(result, *args, **kwargs)
            return result

        setattr(self._owner, self._method, traced)


class Event:
    """An event: ``form`` is its line as printf has it, ``%p`` being an object."""

    def __init__(self, name: str, form: str) -> None:
        self.name = name
        self._line = f"{name} {form}\n".replace("%p", "0x%x")
        self._places: list[tuple[tuple[type, str], Callable[..., None], bool]] = []
        self.enabled = False

    def see(self, places: Iterable[tuple[type, str]], values: Callable[..., Any], after: bool) -> None:
        """It is seen in calls of ``places``, whose arguments ``values`` makes the values of a line of."""

        def seen(*args: Any, **kwargs: Any) -> None:
            found = values(*args, **kwargs)
            if found is not None:
                _write(self._line % tuple(each if isinstance(each, (int, str)) else id(each) for each in found))

        self._places += [(place, seen, after) for place in places]

    def set(self, enabled: bool) -> None:
        """Switch it."""
        if enabled == self.enabled:
            return
        self.enabled = enabled
        for place, seen, after in self._places:
            seam = _seams.get(place)
            if seam is None:
                seam = _seams[place] = Seam(*place)
            if enabled:
                seam.add(seen, after=after)
            else:
                seam.remove(seen)


_events: dict[str, Event] = {}
_seams: dict[tuple[type, str], Seam] = {}
_descriptor = STANDARD_ERROR


def event(
    name: str, form: str, *seams: tuple[type, str], after: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare an event, or more seams of one.

    What is decorated gets the arguments of a call at a seam and returns the values of ``form``. ``None`` in their
    place says that this call is no event. ``after``: it is told when the method has returned, and its result comes
    first.
    """

    def decorate(values: Callable[..., Any]) -> Callable[..., Any]:
        known = _events.get(name)
        if known is None:
            known = _events[name] = Event(name, form)
        known.see(seams, values, after)
        return values

    return decorate


def events() -> dict[str, Event]:
    """All events by name."""
    for source in SOURCES:
        __import__(source)
    return _events


def matching(pattern: str) -> list[Event]:
    """The events that a name, or a pattern with ``*`` and ``?``, means."""
    known = events()
    if not is_pattern(pattern):
        return [known[pattern]] if pattern in known else []
    from fnmatch import fnmatchcase

    pattern = pattern.replace("[", "[[]")
    return [each for name, each in known.items() if fnmatchcase(name, pattern)]


def switch(pattern: str) -> bool:
    """Switch the events of ``PATTERN`` on, of ``-PATTERN`` off; False for the name of no event."""
    name = pattern.removeprefix("-")
    found = matching(name)
    for each in found:
        each.set(name == pattern)
    return bool(found) or is_pattern(name)


def is_pattern(text: str) -> bool:
    """Whether ``text`` may mean no event at all, or many."""
    return "*" in text or "?" in text


def write_to(path: str) -> None:
    """Let events be written to a new file ``path`` rather than to standard error. Raises OSError."""
    global _descriptor
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    if _descriptor != STANDARD_ERROR:
        os.close(_descriptor)
    _descriptor = descriptor


def _write(line: str) -> None:
    if os.isatty(_descriptor):
        line = visible(line, "\n\t")
    try:
        os.write(_descriptor, line.encode("utf-8", "surrogateescape"))
    except OSError:
        pass  # nobody reads what is traced, which must not disturb the work
