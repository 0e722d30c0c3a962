"""A change that was made and can still be undone."""

from __future__ import annotations

from collections.abc import Callable


def _nothing() -> None:
    pass


class Change:
    """A change that was made: exactly one of ``commit`` and ``undo`` is to be called, ``clean`` after either."""

    __slots__ = ("clean", "commit", "undo")

    def __init__(
        self,
        undo: Callable[[], None] = _nothing,
        commit: Callable[[], None] = _nothing,
        clean: Callable[[], None] = _nothing,
    ) -> None:
        self.undo = undo
        self.commit = commit
        self.clean = clean

    def settle(self) -> None:
        """Commit a change that stands alone."""
        self.commit()
        self.clean()
