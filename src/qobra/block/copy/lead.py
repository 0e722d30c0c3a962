"""What was copied is kept the same by who writes it: the guests lead, and a job has nothing to copy again there.

Loops that serve a guest without the interpreter lock write both disks where these are in step
(:mod:`qobra.native.in_step`); the job says where that is, and when.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend
    from qobra.block.bitmap import DirtyBitmap


class Leader:
    """Has guests write ``target``, too, where it is in step with the node of ``dirty``.

    One thread at a time starts and stops it; any may hold and release.
    Without the compiled form, or once the bitmap has another length, it does nothing: what is written is marked.
    """

    def __init__(self, target: BlockBackend, dirty: DirtyBitmap) -> None:
        self._target = target
        self._dirty = dirty
        self._unknown: list[tuple[int, int]] = []
        """Ranges (offset, length) that were copied while guests were at work."""

    @property
    def may_lead(self) -> bool:
        """Whether what is copied can be kept in step."""
        return self._dirty.in_step is not None

    def start(self) -> None:
        """From now on, or on again after a change of the graph. Inside a slot of the target's root."""
        in_step = self._dirty.in_step
        if in_step is not None:
            table = self._target.table()
            while self._unknown:
                # What guests write next: they know only places that were asked for.
                table.look(*self._unknown.pop())
            in_step.aim(table.places)

    def stop(self) -> None:
        """No guest writes the target any more; so nobody has to know the places of what was copied."""
        self._unknown.clear()
        if self._dirty.in_step is not None:
            self._dirty.in_step.aim(None)

    def hold(self, offset: int, length: int) -> None:
        """A range is about to be copied: what is written there is marked, and the target written by nobody else."""
        if self._dirty.in_step is not None:
            self._dirty.in_step.hold(offset, length)

    def release(self, offset: int, length: int, beside_guests: bool) -> None:
        """It was copied; ``beside_guests``: such are at work."""
        in_step = self._dirty.in_step
        if in_step is not None:
            in_step.release(offset, length, self._dirty.length)
            if beside_guests:
                self._unknown.append((offset, length))
