from qobra.block.buffers import Buffer

class Deflater:
    """Compresses one buffer after another. For one thread at a time."""

    def compress(self, data: Buffer, depth: int, nice: int, lazy: int) -> bytes | None:
        """``data`` as a raw deflate stream whose distances are at most 4 KiB; None if that would not be smaller.

        At most ``depth`` earlier places are looked at for a match; one of ``nice`` bytes is good enough, and after one
        of ``lazy`` bytes the next place is not looked at.
        """
