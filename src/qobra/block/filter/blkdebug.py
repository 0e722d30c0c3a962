"""The ``blkdebug`` filter: faults on demand, at events of the drivers above or at any request.

Rules come from the options ``inject-error`` and ``set-state`` and from a file (``config``). A rule waits for its event
in its state; once the event has come, requests of the rule's kinds that touch its place fail. Requests can be held
at an event, too (:meth:`BlkdebugNode.set_breakpoint`).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence

from qobra.block import permissions
from qobra.block.buffers import Buffer
from qobra.block.copy.range_locks import RangeLocks
from qobra.block.extents import COMPUTED, DATA, Extent
from qobra.block.filter._filter import FilterNode, not_negative
from qobra.block.node import BlockNode, Options, drivers, read_or_zero
from qobra.block.opening import Opening
from qobra.errors import QobraError

_SECTOR = 512
_DEFAULT_KINDS = frozenset({"read", "write", "write-zeroes", "discard", "flush"})
_LIMITS = ("max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard")


def _event(options: Options) -> str:
    """The event of a rule; 2.x spells some with a dot where there is an underscore since."""
    event: str = options["event"]
    return event.replace(".", "_")


class _InjectError:
    def __init__(self, options: Options) -> None:
        self.event = _event(options)
        self.state: int = options.get("state", 0)
        kind = options.get("iotype")
        self.kinds = frozenset({kind}) if kind is not None else _DEFAULT_KINDS
        self.errno: int = options.get("errno", errno.EIO)
        sector = options.get("sector", -1)
        self.offset = sector * _SECTOR if sector >= 0 else -1
        self.once: bool = options.get("once", False)

    def hits(self, kind: str, offset: int, length: int) -> bool:
        return kind in self.kinds and (self.offset < 0 or offset <= self.offset < offset + max(length, 1))


class _SetState:
    def __init__(self, options: Options) -> None:
        self.event = _event(options)
        self.state: int = options.get("state", 0)
        self.new_state: int = options.get("new_state", 0)  # a text may lack it


class _Breakpoint:
    """Holds the first request that comes to ``event``, and no other."""

    def __init__(self, event: str, tag: str) -> None:
        self.event = event
        self.tag = tag
        self.held = False
        self.released = False


_MOST = (1 << 31) - 1
"""The largest request that QEMU makes, in bytes."""


@drivers.register("blkdebug")
class BlkdebugNode(FilterNode):
    """See the module. The filtered child is called ``image``."""

    driver = "blkdebug"
    protocols = ("blkdebug",)
    sees_reads = True
    named_by_prefix = True
    strong_options = ("config", "inject-error.", "set-state.", "align", *_LIMITS)

    @classmethod
    def parse_filename(cls, filename: str) -> Options | None:
        from qobra.block.filename import parse_filename

        if not filename.startswith("blkdebug:"):
            # Named by its driver, it takes a name for that of its image.
            return {"driver": cls.driver, "image": parse_filename(filename)}
        config, colon, image = filename[9:].partition(":")
        if not colon:
            raise QobraError("blkdebug requires both config file and image path", errno=errno.EINVAL)
        options: Options = {"driver": cls.driver, "image": parse_filename(image)}
        if config:
            options["config"] = config
        return options

    def plain_filename(self, options: Options) -> str:
        image = self.file.exact_filename
        if not image or not options.keys() <= {"driver", "config", "image"}:
            return ""
        return f"blkdebug:{self.options.get('config') or ''}:{image}"

    @property
    def filtered(self) -> BlockNode | None:
        return self.children.get("image")

    @property
    def file(self) -> BlockNode:
        return self.children["image"]

    def open(self, opening: Opening) -> None:
        options = opening.options
        self._lock = threading.Condition()
        self._state = 1
        self._rules: list[_InjectError | _SetState] = []
        self._active: list[_InjectError] = []
        self._breakpoints: list[_Breakpoint] = []
        if "config" in options:
            from qobra.block.filter._blkdebug_config import read_config

            errors, states = read_config(options["config"])
            self._rules += [*map(_InjectError, errors), *map(_SetState, states)]
        self._rules += [_InjectError(rule) for rule in options.get("inject-error", [])]
        self._rules += [_SetState(rule) for rule in options.get("set-state", [])]
        self._take_perms = _mask(options.get("take-child-perms", []))
        self._unshare_perms = _mask(options.get("unshare-child-perms", []))
        opening.child("image", permissions.ROLE_FILTERED | permissions.ROLE_PRIMARY)
        self._set_alignment(options)
        self.child_resized("image")
        self.debug_event("none")

    def _set_alignment(self, options: Options) -> None:
        align = not_negative(options, "align")
        if align > _MOST or align & (align - 1):
            raise QobraError(f"Cannot meet constraints with align {align}")
        self._align: int = align
        self._ranges = RangeLocks(ordered=True)
        """As guest: what has to be filled up, which nothing may overlap; as job: what is aligned."""
        self.request_alignment = max(align, self.file.request_alignment)
        self._zero_unit: int = options.get("opt-write-zero", 0)
        for name in _LIMITS:
            value = not_negative(options, name)
            unit = max(align, self.file.request_alignment, options.get(name.replace("max-", "opt-"), 0))
            unit = self.request_alignment if name.startswith("opt-") else unit
            if value >= _MOST or value % unit:
                raise QobraError(f"Cannot meet constraints with {name} {value}")

    def child_permissions(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        perm, shared = super().child_permissions(name, role, perm, shared)
        return perm | self._take_perms, shared & ~self._unshare_perms

    # -- events -------------------------------------------------------------------------------------------------

    def debug_event(self, event: str) -> None:
        with self._lock:
            fresh = []
            state = self._state
            for rule in self._rules:
                if rule.event != event or (rule.state and rule.state != state):
                    continue
                if isinstance(rule, _SetState):
                    self._state = rule.new_state
                else:
                    fresh.append(rule)
            if fresh:
                # The newest event decides alone which errors are due.
                self._active = fresh
            points = [point for point in self._breakpoints if point.event == event and not point.held]
            for point in points:
                self.layer.tell_held(f"blkdebug: Suspended request '{point.tag}'")
                point.held = True
                self._lock.notify_all()
            while not all(point.released for point in points):
                self._lock.wait()

    def set_breakpoint(self, event: str, tag: str) -> bool:
        """Hold the next request that comes to ``event`` until ``tag`` is resumed; False if there is no such event."""
        from qobra.qapi.contract import contract

        if event not in contract().types["BlkdebugEvent"].values:
            return False
        with self._lock:
            self._breakpoints.insert(0, _Breakpoint(event, tag))  # where one request comes to several, the newest first
        return True

    def remove_breakpoint(self, tag: str) -> bool:
        """Forget the breakpoints of ``tag``, and let go what they hold; False if none was still to be come to."""
        with self._lock:
            found = [point for point in self._breakpoints if point.tag == tag]
            self._let_go([point for point in found if point.held])
            self._breakpoints = [point for point in self._breakpoints if point.tag != tag]
            return any(not point.held for point in found)

    def resume(self, tag: str) -> bool:
        """Let go of what waits at ``tag``; False if nothing does. The breakpoint is used up."""
        with self._lock:
            held = [point for point in self._breakpoints if point.tag == tag and point.held]
            self._let_go(held)
            return bool(held)

    def _let_go(self, held: list[_Breakpoint]) -> None:
        for point in held:
            self.layer.tell_held(f"blkdebug: Resuming request '{point.tag}'")
            point.released = True
            self._breakpoints.remove(point)
        self._lock.notify_all()

    def is_suspended(self, tag: str) -> bool:
        """Whether a request is held at ``tag``."""
        with self._lock:
            return any(point.tag == tag and point.held for point in self._breakpoints)

    def wait_suspended(self, tag: str) -> None:
        """Wait until a request is held at ``tag``."""
        with self._lock:
            while not any(point.tag == tag and point.held for point in self._breakpoints):
                self._lock.wait()

    def _check(self, kind: str, offset: int, length: int) -> None:
        if not self._active:
            return
        with self._lock:
            for rule in self._active:
                if rule.hits(kind, offset, length):
                    break
            else:
                return
            if not rule.errno:
                return
            if rule.once:
                self._active.remove(rule)
                self._rules = [each for each in self._rules if each is not rule]
        raise OSError(rule.errno, os.strerror(rule.errno))

    def allocated_size(self) -> int | None:
        return None  # as of a protocol that cannot tell

    # -- requests -----------------------------------------------------------------------------------------------

    def plain_writes(self) -> bool:
        return False

    def linear_child(self) -> tuple[BlockNode, int] | None:
        return None

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        if want_zero:
            self._check("block-status", offset, length)
            return (Extent(length, DATA, self.below, offset),)
        return (Extent(length, COMPUTED),)

    def _read(self, offset: int, view: memoryview) -> None:
        self._check("read", offset, len(view))
        super()._read(offset, view)

    def read_computed(self, offset: int, view: memoryview) -> None:
        self._read(offset, view)

    def _write(self, offset: int, data: Buffer) -> None:
        if self._align <= 1:
            self._write_whole(offset, data)
            return
        end = offset + len(data)
        start, stop = offset & -self._align, min(-(-end // self._align) * self._align, max(end, self.length))
        if (start, stop) == (offset, end):
            with self._ranges.job(start, stop - start):
                self._write_whole(offset, data)
            return
        # Two requests must not undo one another in what both fill up.
        with self._ranges.guest(start, stop - start):
            self._write_whole(start, self._filled_up(start, stop, offset, data))

    def _write_whole(self, offset: int, data: Buffer) -> None:
        self.debug_event("pwritev")
        self._check("write", offset, len(data))
        super()._write(offset, data)
        self.debug_event("pwritev_done")

    def _filled_up(self, start: int, stop: int, offset: int, data: Buffer) -> memoryview:
        """``data`` for ``offset`` with what lies around it, from ``start`` to ``stop``."""
        whole = memoryview(bytearray(stop - start))
        end = offset + len(data)
        edges = [(start, min(start + self._align, stop), "head")] if start < offset else []
        if end < stop:
            edges.append((max(end & -self._align, start), stop, "tail"))
        if len(edges) == 2 and edges[0][1] >= edges[1][0]:
            reads = [(start, stop, ["head", "tail"])]  # both in one go
        else:
            reads = [(low, high, [name]) for low, high, name in edges]
        for low, high, names in reads:
            for name in names:
                self.debug_event(f"pwritev_rmw_{name}")
            self._check("read", low, high - low)
            read_or_zero(self.below, low, whole[low - start : high - start])
            for name in names:
                self.debug_event(f"pwritev_rmw_after_{name}")
        whole[offset - start : end - start] = data
        return whole

    def _write_compressed(self, offset: int, data: Buffer) -> None:
        self._check("write", offset, len(data))
        super()._write_compressed(offset, data)

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        self._check("write-zeroes", offset, length)
        unit = self._zero_unit or 1
        first, last = -(-offset // unit) * unit, (offset + length) // unit * unit
        if (first, last) == (offset, offset + length):
            return super()._write_zeroes(offset, length, may_unmap, no_fallback)
        if no_fallback or first >= last:
            return False
        # What is less than the unit cannot be zeroed but has to be written.
        self.write_zero_bytes(offset, first - offset)
        super()._write_zeroes(first, last - first, may_unmap, False)
        self.write_zero_bytes(last, offset + length - last)
        return True

    def _discard(self, offset: int, length: int) -> None:
        self._check("discard", offset, length)
        super()._discard(offset, length)

    def _flush(self) -> None:
        self._check("flush", 0, 0)


def _mask(names: list[str]) -> int:
    bits = {name: bit for bit, name in permissions.NAMES.items()}
    mask = 0
    for name in names:
        mask |= bits[name]
    return mask
