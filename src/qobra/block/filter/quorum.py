"""The ``quorum`` driver: several copies of an image, and a vote on what they hold."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from qobra.block import permissions
from qobra.block.buffers import Buffer
from qobra.block.extents import ABSENT, COMPUTED, ZERO, Extent, resolve
from qobra.block.filter.blkverify import end_for_mismatch
from qobra.block.node import BlockNode, Options, drivers
from qobra.block.opening import Opening
from qobra.errors import QobraError, errno_of

_SECTOR = 512
MAX_CHILDREN = 1000


@drivers.register("quorum")
class QuorumNode(BlockNode):
    """Writes go to all children; a read is right if ``vote-threshold`` of them agree.

    With ``read-pattern`` fifo the children are read in turn until one answers, without a vote.
    """

    driver = "quorum"
    sees_reads = True
    can_reopen = False
    strong_options = ("vote-threshold", "blkverify", "rewrite-corrupted", "read-pattern")
    reports_info = False

    def open(self, opening: Opening) -> None:
        options = opening.options
        self._count = 0
        references = options.get("children", [])
        if not references or len(references) > MAX_CHILDREN:
            raise QobraError("Number of provided children must be 1 or more")
        self._threshold: int = options.get("vote-threshold", 0)  # texts may lack it
        self._fifo = options.get("read-pattern", "quorum") == "fifo"
        if self._threshold < 1:
            raise QobraError("Parameter 'vote-threshold' expects a value >= 1")
        if self._threshold > len(references):
            raise QobraError("threshold may not exceed children count")
        # Where nobody votes, what is done about a vote that is not unanimous is never looked at.
        votes = not self._fifo
        self._blkverify: bool = votes and options.get("blkverify", False)
        if self._blkverify and (len(references) != 2 or self._threshold != 2):
            raise QobraError("blkverify=on can only be set if there are exactly two files and vote-threshold is 2")
        self._rewrite: bool = votes and options.get("rewrite-corrupted", False)
        if self._rewrite and self._blkverify:
            raise QobraError("rewrite-corrupted=on cannot be used with blkverify=on")
        for reference in references:
            opening.attach(self.next_child_name(), permissions.ROLE_DATA | permissions.ROLE_FILTERED, reference)
            self.child_added()
        if len({-(-child.length // _SECTOR) for child in self.children.values()}) > 1:
            raise QobraError("Could not refresh total sector count: Input/output error", errno=errno.EIO)

    def child_options(self) -> Options:
        return {"children": [child.full_options for child in self.children.values()]}

    def child_permissions(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        perm, _shared = super().child_permissions(name, permissions.ROLE_FILTERED, perm, shared)
        if self._rewrite:
            perm |= permissions.WRITE
        # Written or resized by others, the children would come to differ.
        keep = permissions.CONSISTENT_READ | permissions.WRITE_UNCHANGED
        return perm, shared & keep | permissions.GRAPH_MOD

    def next_child_name(self) -> str:
        """The name of the next child that is added."""
        return f"children.{self._count}"

    def child_added(self) -> None:
        """The child of that name is there."""
        self._count += 1
        self.child_resized("")

    def child_resized(self, name: str) -> None:
        self.length = min((child.length for child in self.children.values()), default=0)

    def check_addition(self) -> None:
        """Refuse one more child where exactly two are compared."""
        if self._blkverify:
            raise QobraError("Cannot add a child to a quorum in blkverify mode")

    def check_removal(self) -> None:
        """Refuse to lose one more child than the vote can bear."""
        if len(self.children) <= self._threshold:
            raise QobraError("The number of children cannot be lower than the vote threshold " + str(self._threshold))

    def plain_writes(self) -> bool:
        return False

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        if not want_zero:
            return (Extent(length, COMPUTED),)
        # Zero is what is zero in all children. What cannot be told is data: others may outvote the child that fails.
        data: list[tuple[int, int]] = []
        for child in self.children.values():
            try:
                runs = resolve(child, offset, length, want_zero=True)
                data += [(run.start, run.start + run.length) for run in runs if run.kind not in (ZERO, ABSENT)]
            except (OSError, QobraError) as error:
                self._report_bad("read", child, offset, length, error)
                return (Extent(length, COMPUTED),)
        data.sort()
        extents: list[Extent] = []
        position = offset
        for start, end in data:
            if start > position:
                extents.append(Extent(start - position, ZERO))
                position = start
            if end > position:
                extents.append(Extent(end - position, COMPUTED))
                position = end
        if position < offset + length:
            extents.append(Extent(offset + length - position, ZERO))
        return extents

    # -- reading ------------------------------------------------------------------------------------------------

    def read_computed(self, offset: int, view: memoryview) -> None:
        if self._fifo:
            self._read_first(offset, view)
        else:
            self._read_vote(offset, view)

    def _read_first(self, offset: int, view: memoryview) -> None:
        failure: Exception | None = None
        for child in self.children.values():
            try:
                child.read_into(offset, view)
                return
            except (OSError, QobraError) as error:
                failure = error
                self._report_bad("read", child, offset, len(view), error)
        assert failure is not None
        raise failure

    def _read_vote(self, offset: int, view: memoryview) -> None:
        votes: dict[bytes, list[BlockNode]] = {}
        failures: dict[int, list[BlockNode]] = {}
        for child in self.children.values():
            try:
                votes.setdefault(child.read(offset, len(view)), []).append(child)
            except (OSError, QobraError) as error:
                failures.setdefault(errno_of(error), []).append(child)
                self._report_bad("read", child, offset, len(view), error)
        succeeded = sum(len(children) for children in votes.values())
        if succeeded < self._threshold:
            self._report_failure(offset, len(view))
            number = max(failures, key=lambda each: len(failures[each]))
            raise OSError(number, os.strerror(number))
        if self._blkverify and len(votes) > 1:
            end_for_mismatch("quorum:", offset, *votes)
        # Of versions with as many votes the last one wins, and the last is reported first, as in QEMU.
        versions = list(reversed(votes.items()))
        data, winners = max(versions, key=lambda version: len(version[1]))
        if len(votes) > 1:
            if len(winners) < self._threshold:
                self._report_failure(offset, len(view))
                raise OSError(5, os.strerror(5))
            for _data, children in versions:
                if children is not winners:
                    for child in reversed(children):
                        self._report_bad("read", child, offset, len(view), None)
                        self._mend(child, offset, data)
        view[:] = data

    def _mend(self, child: BlockNode, offset: int, data: bytes) -> None:
        if self._rewrite:
            try:
                child.write(offset, data)
            except (OSError, QobraError) as error:
                self._report_bad("write", child, offset, len(data), error)

    # -- writing ------------------------------------------------------------------------------------------------

    def _write(self, offset: int, data: Buffer) -> None:
        self._all("write", offset, len(data), lambda child: child.write(offset, data))

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        def zero(child: BlockNode) -> None:
            child.write_zeroes(offset, length, may_unmap=may_unmap and child.discard_unmap)

        self._all("write", offset, length, zero)
        return True

    def flush(self) -> None:
        if self.read_only:
            return
        self._all("flush", 0, self.length, lambda child: child.flush())

    def _all(self, kind: str, offset: int, length: int, call: Callable[[BlockNode], object]) -> None:
        succeeded = 0
        failures: dict[int, int] = {}
        for child in self.children.values():
            try:
                call(child)
                succeeded += 1
            except (OSError, QobraError) as error:
                number = errno_of(error)
                failures[number] = failures.get(number, 0) + 1
                self._report_bad(kind, child, offset, length, error)
        if succeeded < self._threshold:
            if kind != "flush":
                self._report_failure(offset, length)
            number = max(failures, key=lambda each: failures[each])
            raise OSError(number, os.strerror(number))

    # -- events -------------------------------------------------------------------------------------------------

    def _report_bad(self, kind: str, child: BlockNode, offset: int, length: int, error: Exception | None) -> None:
        data: dict[str, object] = {
            "type": kind,
            "node-name": child.node_name,
            "sector-num": offset // _SECTOR,
            "sectors-count": -(-(offset + length) // _SECTOR) - offset // _SECTOR,
        }
        if error is not None:
            data["error"] = os.strerror(errno_of(error))
        self.layer.emit_from_request("QUORUM_REPORT_BAD", data)

    def _report_failure(self, offset: int, length: int) -> None:
        self.layer.emit_from_request(
            "QUORUM_FAILURE",
            {
                "reference": self.layer.device_or_node_name(self),
                "sector-num": offset // _SECTOR,
                "sectors-count": -(-(offset + length) // _SECTOR) - offset // _SECTOR,
            },
        )
