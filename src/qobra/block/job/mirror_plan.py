"""What a mirror is to do, by whichever command it was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.block.job.block_job import REPORT

if TYPE_CHECKING:
    from qobra.block.node import BlockNode

DEFAULT_BUFFER = 16 << 20
"""Bytes in flight at most, unless ``buf-size`` says otherwise."""
LEAVE_BACKING = "leave"
"""The target's backing chain stays as it is."""
SOURCE_BACKING = "source"
"""The target gets the source's (sync=top), or the source itself (sync=none)."""
OPEN_BACKING = "open"
"""The target's own is opened when the job completes."""


class MirrorPlan:
    """What a mirror is to do; the members are those of blockdev-mirror as far as they have the same names."""

    def __init__(self, sync: str, base: BlockNode | None, granularity: int) -> None:
        self.sync = sync
        self.base = base
        """Data of this node and what is below it is not copied."""
        self.granularity = granularity
        self.may_refine = False
        """Nobody has asked for that granularity: what the guest writes may be followed in smaller pieces."""
        self.least_unit = 0
        """Parts of so many bytes must be written whole, 0: any size will do; ``granularity`` is no less."""
        self.buffer = DEFAULT_BUFFER
        self.unmap = True
        self.write_blocking = False
        self.zero_target = False
        """The target may hold anything where the source reads as zeroes."""
        self.replaces: str | None = None
        self.backing_mode = LEAVE_BACKING
        self.on_source_error = REPORT
        self.on_target_error = REPORT
