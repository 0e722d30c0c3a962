"""I/O limits: leaky buckets for operations and bytes, shared by the members of a group.

A bucket leaks at its average rate. Without a burst it may run a tenth of a second's worth ahead; with ``max`` it takes
``max`` units a second for ``length`` seconds before the average counts. A request waits until every bucket that
concerns it has room, and is then accounted, so that a large request pays afterwards.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import chain
from typing import Any

from qobra.clock import Clock
from qobra.errors import QobraError

VALUE_MAX = 1_000_000_000_000_000
"""The highest rate or burst that may be set."""

KINDS = ("bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write")
_READ_KINDS = ("bps-total", "bps-read", "iops-total", "iops-read")
_WRITE_KINDS = ("bps-total", "bps-write", "iops-total", "iops-write")


class Limits:
    """A checked ThrottleLimits: ``average``, ``burst`` and ``burst_length`` (seconds) by kind, and ``iops_size``."""

    def __init__(self, base: Limits | None = None) -> None:
        self.average: dict[str, int] = dict(base.average) if base else dict.fromkeys(KINDS, 0)
        self.burst: dict[str, int] = dict(base.burst) if base else dict.fromkeys(KINDS, 0)
        self.burst_length: dict[str, int] = dict(base.burst_length) if base else dict.fromkeys(KINDS, 1)
        self.iops_size: int = base.iops_size if base else 0

    def set(self, name: str, value: int) -> None:
        """Set the member ``name`` of ThrottleLimits."""
        if name == "iops-size":
            self.iops_size = value
        elif name.endswith("-max-length"):
            self.burst_length[name.removesuffix("-max-length")] = value
        elif name.endswith("-max"):
            self.burst[name.removesuffix("-max")] = value
        else:
            self.average[name] = value

    def get(self, name: str) -> int:
        """The member ``name`` of ThrottleLimits."""
        if name == "iops-size":
            return self.iops_size
        if name.endswith("-max-length"):
            return self.burst_length[name.removesuffix("-max-length")]
        if name.endswith("-max"):
            return self.burst[name.removesuffix("-max")]
        return self.average[name]

    def updated(self, members: Mapping[str, int]) -> Limits:
        """A copy with some members set. Raises QobraError where the result is not allowed."""
        copy = Limits(self)
        for name, value in members.items():
            copy.set(name, value)
        copy.check()
        return copy

    def as_dict(self) -> dict[str, int]:
        """All members of ThrottleLimits."""
        return {name: self.get(name) for name in MEMBERS}

    def enabled(self) -> bool:
        """Whether anything is limited."""
        return any(self.average.values())

    def check(self) -> None:
        """Raise QobraError for a combination that makes no sense."""
        for tables in (self.average, self.burst):
            for unit in ("bps", "iops"):
                if tables[f"{unit}-total"] and (tables[f"{unit}-read"] or tables[f"{unit}-write"]):
                    raise QobraError("bps/iops/max total values and read/write values cannot be used at the same time")
        if self.iops_size and not any(self.average[f"iops-{which}"] for which in ("total", "read", "write")):
            raise QobraError("iops size requires an iops value to be set")
        for kind in KINDS:
            average, burst, length = self.average[kind], self.burst[kind], self.burst_length[kind]
            if not (0 <= average <= VALUE_MAX and 0 <= burst <= VALUE_MAX):
                raise QobraError(f"bps/iops/max values must be within [0, {VALUE_MAX}]")
            if length == 0:
                raise QobraError("the burst length cannot be 0")
            # What is below zero counts as more than there can be.
            if length != 1 and not burst:
                raise QobraError("burst length set without burst rate")
            if burst and not 0 < length <= VALUE_MAX // burst:
                raise QobraError("burst length too high for this burst rate")
            if burst and not average:
                raise QobraError("bps_max/iops_max require corresponding bps/iops values")
            if burst and burst < average:
                raise QobraError("bps_max/iops_max cannot be lower than bps/iops")


MEMBERS = tuple(f"{kind}{part}" for kind in KINDS for part in ("", "-max", "-max-length")) + ("iops-size",)


class Bucket:
    """One leaky bucket; levels are in units (bytes or operations), times in nanoseconds."""

    __slots__ = ("average", "burst", "burst_length", "burst_level", "level")

    def __init__(self, average: int, burst: int, burst_length: int) -> None:
        self.average = average
        self.burst = burst
        self.burst_length = burst_length
        self.level = 0.0
        self.burst_level = 0.0

    def leak(self, elapsed_ns: int) -> None:
        """Let ``elapsed_ns`` pass."""
        self.level = max(0.0, self.level - self.average * elapsed_ns / 1e9)
        if self.burst_length > 1:
            self.burst_level = max(0.0, self.burst_level - self.burst * elapsed_ns / 1e9)

    def add(self, units: float) -> None:
        """A request of ``units`` goes."""
        self.level += units
        if self.burst_length > 1:
            self.burst_level += units

    def wait_ns(self) -> int:
        """How long the next request has to wait."""
        if not self.average:
            return 0
        if self.burst:
            size, burst_size = float(self.burst * self.burst_length), self.burst / 10
        else:
            size, burst_size = self.average / 10, 0.0
        extra = self.level - size
        if extra > 0:
            return max(1, int(extra * 1e9 / self.average))
        if self.burst_length > 1:
            extra = self.burst_level - burst_size
            if extra > 0:
                return max(1, int(extra * 1e9 / self.burst))
        return 0


class _Ticket:
    """A request that waits."""

    __slots__ = ("condition", "granted", "length")

    def __init__(self, length: int, condition: threading.Condition) -> None:
        self.length = length
        self.condition = condition
        self.granted = False


class _Turns:
    """Requests that wait, one way: members take turns, however many requests each of them has waiting."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[_Ticket]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[_Ticket]:
        return chain.from_iterable(self._waiting.values())

    def add(self, member: Hashable, ticket: _Ticket) -> None:
        """``ticket`` waits behind what ``member`` has waiting, a member that had nothing behind all others."""
        self._waiting.setdefault(member, deque()).append(ticket)

    def first(self) -> _Ticket:
        """The ticket whose turn it is."""
        return next(iter(self._waiting.values()))[0]

    def take(self) -> _Ticket:
        """Take out the ticket whose turn it is; its member comes last now."""
        member = next(iter(self._waiting))
        tickets = self._waiting.pop(member)
        ticket = tickets.popleft()
        if tickets:
            self._waiting[member] = tickets
        return ticket

    def remove(self, member: Hashable, ticket: _Ticket) -> None:
        """``ticket`` does not wait any more."""
        tickets = self._waiting[member]
        tickets.remove(ticket)
        if not tickets:
            del self._waiting[member]


class ThrottleGroup:
    """Buckets that several members fill together. Thread-safe; members that wait are served in turn."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.members = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._turns = (_Turns(), _Turns())
        self.limits = Limits()
        self._buckets: dict[str, Bucket] = {}
        self._last_ns = clock.monotonic_ns()
        self._configure()

    def set_limits(self, limits: Limits) -> None:
        """Use ``limits`` from now on; what was used up is forgotten."""
        with self._lock:
            self.limits = limits
            self._configure()
            self._wake()

    def _configure(self) -> None:
        limits = self.limits
        self._buckets = {
            kind: Bucket(limits.average[kind], limits.burst[kind], limits.burst_length[kind])
            for kind in KINDS
            if limits.average[kind]
        }

    def wake(self) -> None:
        """Let those who wait look again whether they still have to."""
        with self._lock:
            self._wake()

    def _wake(self) -> None:
        for turns in self._turns:
            for ticket in turns:
                ticket.condition.notify()

    def wait(self, member: Hashable, length: int, is_write: bool, released: Callable[[], bool]) -> None:
        """Wait until a request of ``length`` bytes of ``member`` may go, or ``released()`` says that it need not."""
        if not self._buckets:
            return
        turns = self._turns[is_write]
        with self._lock:
            if released() or not (turns or self._wait_ns(is_write)):
                self._account(length, is_write)
                return
            ticket = _Ticket(length, threading.Condition(self._lock))
            turns.add(member, ticket)
            while not ticket.granted:
                if released():
                    turns.remove(member, ticket)
                    self._account(length, is_write)
                    break
                wait_ns = self._grant(is_write) if turns.first() is ticket else None
                if ticket.granted:
                    break
                if wait_ns is None:
                    ticket.condition.wait()
                else:
                    self._clock.wait(ticket.condition, wait_ns)
            if turns:
                turns.first().condition.notify()

    def _grant(self, is_write: bool) -> int:
        """Let all go that may, and say how long the next has to wait.

        Whoever waits for the time wakes late, and more so on a busy host; what has become due till then goes at once
        and not one after the other, each after another late wakening.
        """
        turns = self._turns[is_write]
        while turns:
            wait_ns = self._wait_ns(is_write)
            if wait_ns:
                return wait_ns
            ticket = turns.take()
            self._account(ticket.length, is_write)
            ticket.granted = True
            ticket.condition.notify()
        return 0

    def _concerned(self, is_write: bool) -> list[tuple[str, Bucket]]:
        kinds = _WRITE_KINDS if is_write else _READ_KINDS
        return [(kind, self._buckets[kind]) for kind in kinds if kind in self._buckets]

    def _wait_ns(self, is_write: bool) -> int:
        now_ns = self._clock.monotonic_ns()
        elapsed_ns, self._last_ns = now_ns - self._last_ns, now_ns
        for bucket in self._buckets.values():
            bucket.leak(elapsed_ns)
        return max((bucket.wait_ns() for _kind, bucket in self._concerned(is_write)), default=0)

    def _account(self, length: int, is_write: bool) -> None:
        size = self.limits.iops_size
        for kind, bucket in self._concerned(is_write):
            if kind.startswith("bps"):
                bucket.add(length)
            else:
                bucket.add(length / size if size and length > size else 1.0)


class Membership:
    """A backend's place in a group; see :class:`qobra.block.backend.Throttle`."""

    def __init__(self, group: ThrottleGroup) -> None:
        self.group = group
        group.members += 1
        self.left = False
        self._releases = 0

    def wait(self, length: int, is_write: bool) -> None:
        """Wait until a request of ``length`` bytes may go."""
        releases = self._releases
        self.group.wait(self, length, is_write, lambda: self.left or self._releases != releases)

    def release(self) -> None:
        """Requests that wait go on; those that come later have to wait as before."""
        self._releases += 1
        self.group.wake()

    def leave(self) -> None:
        """Leave the group; requests that wait go on."""
        if not self.left:
            self.left = True
            self.group.members -= 1
            self.release()

    def limits(self) -> dict[str, Any]:
        """The members of BlockDeviceInfo that tell the limits and the group."""
        limits = self.group.limits
        info: dict[str, Any] = {"group": self.group.name}
        for kind in KINDS:
            name = _old_name(kind)
            info[name] = limits.average[kind]
            if limits.burst[kind]:
                info[f"{name}_max"] = limits.burst[kind]
                info[f"{name}_max_length"] = limits.burst_length[kind]
        if limits.iops_size:
            info["iops_size"] = limits.iops_size
        return info


def _old_name(kind: str) -> str:
    unit, which = kind.split("-")
    return unit if which == "total" else f"{unit}_{'rd' if which == 'read' else 'wr'}"


def limits_from_throttle(args: Mapping[str, Any]) -> Limits:
    """The limits that a BlockIOThrottle sets. Raises QobraError where they are not allowed."""
    members: dict[str, int] = {}
    for kind in KINDS:
        name = _old_name(kind)
        for ours, theirs in (
            (kind, name),
            (f"{kind}-max", f"{name}_max"),
            (f"{kind}-max-length", f"{name}_max_length"),
        ):
            if theirs in args:
                members[ours] = args[theirs]
        if members.get(f"{kind}-max") == members.get(f"{kind}-max-length") == 0:
            del members[f"{kind}-max-length"]  # of no burst; the manual's example has it
    if "iops_size" in args:
        members["iops-size"] = args["iops_size"]
    return Limits().updated(members)
