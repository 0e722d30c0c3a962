"""The places that the threads of one copy have at its roots."""

from __future__ import annotations

from qobra.lean import contextmanager, local

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qobra.block.backend import BlockBackend
    from qobra.block.slots import Slot


class ThreadSlots:
    """A slot at each of ``roots`` for every thread that asks, all closed together."""

    def __init__(self, roots: Sequence[BlockBackend]) -> None:
        self._roots = tuple(roots)
        self._all: list[Slot] = []
        self._local = local()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While the body runs, the calling thread is in its slot at every root."""
        slots: list[Slot] | None = getattr(self._local, "slots", None)
        if slots is None:
            slots = self._local.slots = [root.new_slot(background=True) for root in self._roots]
            self._all.extend(slots)
        entered = 0
        try:
            for slot in slots:
                slot.enter()
                entered += 1
            yield
        finally:
            for slot in slots[:entered]:
                slot.leave()

    def close(self) -> None:
        """Give all places up; no thread is in one."""
        for slot in self._all:
            slot.close()
        self._all.clear()
