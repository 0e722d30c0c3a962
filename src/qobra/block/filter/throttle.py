"""The ``throttle`` filter: limits the I/O that passes through it to what its group allows."""

from __future__ import annotations

from collections.abc import Sequence

from qobra.block import permissions
from qobra.block.buffers import Buffer
from qobra.block.extents import COMPUTED, DATA, Extent
from qobra.block.filter._filter import FilterNode
from qobra.block.node import Options, drivers
from qobra.block.opening import Opening
from qobra.block.throttle import ThrottleGroup
from qobra.errors import QobraError


@drivers.register("throttle")
class ThrottleNode(FilterNode):
    """Every read, write, zeroing and discard waits for its turn in the group; a drain lets all that wait go."""

    driver = "throttle"
    sees_reads = True
    can_compress = True
    strong_options = ("throttle-group",)

    def open(self, opening: Opening) -> None:
        opening.child("file", permissions.ROLE_FILTERED | permissions.ROLE_PRIMARY)
        name = opening.options.get("throttle-group")
        if name is None:
            raise QobraError("Please specify a throttle group")
        self._join(self._find(name))
        self.child_resized("file")

    def _find(self, name: str) -> ThrottleGroup:
        group = self.layer.find_throttle_group(name)
        if group is None:
            raise QobraError(f"Throttle group '{name}' does not exist")
        return group

    def _join(self, group: ThrottleGroup) -> None:
        self._group = group
        group.members += 1
        self.layer.flight.drain_listeners.append(group.wake)

    def _leave(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            self.layer.flight.drain_listeners.remove(group.wake)
            group.members -= 1

    _group: ThrottleGroup | None = None

    changeable_options = frozenset({"throttle-group"})

    def take_options(self, options: Options) -> None:
        group = self._find(options["throttle-group"])
        self._leave()
        self._join(group)

    def close(self) -> None:
        self._leave()

    def _wait(self, length: int, is_write: bool) -> None:
        flight, group = self.layer.flight, self._group
        assert group is not None
        group.wait(self, length, is_write, lambda: flight.draining > 0)

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        if want_zero:
            return (Extent(length, DATA, self.file, offset),)
        # Resolved for a transfer: it has to pass through here.
        return (Extent(length, COMPUTED),)

    def _read(self, offset: int, view: memoryview) -> None:
        self._wait(len(view), False)
        self.file.read_into(offset, view)

    def read_computed(self, offset: int, view: memoryview) -> None:
        self._read(offset, view)

    def plain_writes(self) -> bool:
        return False

    def _write(self, offset: int, data: Buffer) -> None:
        self._wait(len(data), True)
        self.file.write(offset, data)

    def _write_compressed(self, offset: int, data: Buffer) -> None:
        self._wait(len(data), True)
        self.file.write_compressed(offset, data)

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        self._wait(length, True)
        return super()._write_zeroes(offset, length, may_unmap, no_fallback)

    def _discard(self, offset: int, length: int) -> None:
        self._wait(length, True)
        super()._discard(offset, length)
