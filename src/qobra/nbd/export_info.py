"""What an export is like, as the handshake tells it."""

from __future__ import annotations

from typing import NamedTuple

from qobra.nbd import protocol as p


class BlockSizes(NamedTuple):
    """Constraints on requests, in bytes: alignment and smallest length; the best length; the longest payload."""

    minimum: int
    preferred: int
    maximum: int


class ExportInfo:
    """One export: ``name`` (the server's own spelling), ``description``, ``size`` in bytes, transmission ``flags``, and
    ``block_sizes`` where the server advertises them.
    """

    __slots__ = ("block_sizes", "description", "flags", "name", "size")

    def __init__(
        self,
        name: str,
        size: int,
        flags: int,
        description: str = "",
        block_sizes: BlockSizes | None = None,
    ) -> None:
        self.name = name
        self.size = size
        self.flags = flags
        self.description = description
        self.block_sizes = block_sizes

    def __repr__(self) -> str:
        return f"ExportInfo({self.name!r}, size={self.size}, flags={self.flags:#x})"

    @property
    def read_only(self) -> bool:
        """Whether writes, zeroing and trims are refused."""
        return bool(self.flags & p.FLAG_READ_ONLY)

    @property
    def rotational(self) -> bool:
        """Whether the server asks for requests in elevator order."""
        return bool(self.flags & p.FLAG_ROTATIONAL)

    @property
    def can_flush(self) -> bool:
        """Whether the server knows FLUSH."""
        return bool(self.flags & p.FLAG_SEND_FLUSH)

    @property
    def can_fua(self) -> bool:
        """Whether a write can be made to be on stable storage before it is answered."""
        return bool(self.flags & p.FLAG_SEND_FUA)

    @property
    def can_trim(self) -> bool:
        """Whether the server knows TRIM."""
        return bool(self.flags & p.FLAG_SEND_TRIM)

    @property
    def can_zero(self) -> bool:
        """Whether the server knows WRITE_ZEROES."""
        return bool(self.flags & p.FLAG_SEND_WRITE_ZEROES)

    @property
    def can_fast_zero(self) -> bool:
        """Whether WRITE_ZEROES may be asked to fail at once where it would be slow."""
        return bool(self.flags & p.FLAG_SEND_FAST_ZERO)

    @property
    def can_df(self) -> bool:
        """Whether a read can be asked for in one piece."""
        return bool(self.flags & p.FLAG_SEND_DF)

    @property
    def can_cache(self) -> bool:
        """Whether the server knows CACHE."""
        return bool(self.flags & p.FLAG_SEND_CACHE)

    @property
    def can_multi_conn(self) -> bool:
        """Whether several connections see each other's flushed writes."""
        return bool(self.flags & p.FLAG_CAN_MULTI_CONN)
