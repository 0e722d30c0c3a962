from qobra.native.marks import Marks
from qobra.native.places import Places

class InStep:
    """Which granules of a source and a target hold the same; ``marks`` are those of the source's dirty bitmap.

    At first all of them are apart, and no write goes to the target. Memory: a bit for each granule, in pages of 4 KiB
    where any was ever in step.
    """

    def __init__(self, marks: Marks) -> None: ...
    @property
    def marks(self) -> Marks: ...
    @property
    def target(self) -> Places | None: ...
    def aim(self, target: Places | None) -> None:
        """Have those who write the source write ``target``, too; None: nobody. The former is written no more then."""
    def hold(self, offset: int, length: int) -> None:
        """The granules that are touched are apart from now on, and nobody writes them in the target any more."""
    def hold_bits(self, offset: int, bits: bytes | bytearray) -> None:
        """The same for those whose bits are set, from ``offset`` on."""
    def release(self, offset: int, length: int, end: int) -> None:
        """The granules that lie inside of the range were copied. ``end``: where the disk ends."""
    def release_bits(self, offset: int, bits: bytes | bytearray, left: bytes | bytearray) -> None:
        """Those were copied whose bits are set in ``bits`` and not in ``left``."""
    def is_in_step(self, offset: int, length: int) -> bool:
        """Whether all that the range touches is in step."""
