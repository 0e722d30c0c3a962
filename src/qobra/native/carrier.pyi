from collections.abc import Sequence

from qobra.block.protocol._folios import Folios
from qobra.native.old_blocks import OldBlocks

class Carrier:
    cost: int
    """Nanoseconds of a processor's time that moving a MiB has taken lately."""

    def move(
        self,
        parts: Sequence[tuple[int, int, int]],
        fd: int,
        host: int,
        old: OldBlocks | None = None,
        start: int = 0,
        share: int = 1,
        folios: Folios | None = None,
    ) -> tuple[int, bool] | None: ...
    def work(self) -> None:
        """Move units in time that nobody else wants, until :meth:`stop`."""

    def stop(self) -> None:
        """The threads end as soon as they can; whoever moves does so alone from then on."""
