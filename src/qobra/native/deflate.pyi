from qobra.block.buffers import Buffer

class Deflater:
    """Compresses one buffer after another. For one thread at a time."""

    def compress(self, data: Buffer, cluster: int, depth: int, nice: int, lazy: int) -> list[bytes | None]:
        """Each ``cluster`` bytes of ``data``, which are as many as that or a multiple, as a raw deflate stream.

        Distances are at most 4 KiB. It is None where it would not be smaller. At most ``depth`` earlier places are
        looked at for a match; one of ``nice`` bytes is good enough, and after one of ``lazy`` bytes the next place is
        not looked at. With a ``depth`` of 0 it goes a quick way, with an effort of its own. Raises ValueError for a
        size that cannot be.
        """
