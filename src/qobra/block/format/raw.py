"""The ``raw`` format: a file, or a window of it, as it is."""

from __future__ import annotations

import errno

from qobra.block import permissions
from qobra.block.buffers import Buffer
from qobra.block.extents import COMPUTED, DATA, WRITABLE, Extent
from qobra.block.node import BlockNode, Options, drivers
from qobra.block.opening import Opening
from qobra.errors import QobraError
from qobra.units import not_a_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


@drivers.register("raw")
class RawNode(BlockNode):
    """Shows its file from ``offset`` on, ``size`` bytes of it (default: to its end)."""

    driver = "raw"
    is_format = True
    is_transparent = True
    creatable = True
    strong_options = ("offset", "size")

    @classmethod
    def probe(cls, data: bytes, filename: str) -> int:
        # Anything may be raw; whoever recognises more wins.
        return 1

    def open(self, opening: Opening) -> None:
        options = opening.options
        window = options.get("offset", 0) or "size" in options
        role = permissions.ROLE_DATA if window else permissions.ROLE_FILTERED
        opening.child("file", role | permissions.ROLE_PRIMARY)
        self.take_options(options)
        if self.probed:
            self.request_alignment = 512  # so that the first sector is written whole, and can be looked at
        if self.probed and not self.read_only:
            self.layer.warn(
                f"WARNING: Image format was not specified for '{self.file.filename}' and probing guessed raw.\n"
                "         Automatically detecting the format is dangerous for raw images, write operations on block 0 "
                "will be restricted.\n"
                "         Specify the 'raw' format explicitly to remove the restrictions."
            )

    def child_permissions(self, name: str, role: int, perm: int, shared: int) -> tuple[int, int]:
        # It writes and resizes the file for its users only, also where it shows a window of it.
        own = permissions.WRITE | permissions.RESIZE
        asked, shared = super().child_permissions(name, role, perm, shared)
        return asked & ~own | perm & own, shared

    changeable_options = frozenset({"offset", "size"})

    def check_options(self, options: Options) -> None:
        _check_numbers(options)
        if options.get("size", 0) % 512:
            raise QobraError("Specified size is not multiple of 512")

    def take_options(self, options: Options) -> None:
        _check_numbers(options)
        real = self.file.virtual_size
        offset: int = options.get("offset", 0)
        size: int | None = options.get("size")
        if real < offset:
            raise QobraError(f"Offset ({offset}) cannot be greater than size of the containing file ({real})")
        if size is not None and real - offset < size:
            raise QobraError(
                f"The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  "
                f"actual size of the containing file ({real})"
            )
        self.check_options(options)
        self._offset, self._size = offset, size
        self.child_resized("file")
        self.moved(0, max(self.length, 1))

    def child_resized(self, name: str) -> None:
        rest = max(0, self.file.length - self._offset)
        self.length = rest if self._size is None else min(self._size, rest)

    def check_write(self, offset: int, length: int) -> None:
        super().check_write(min(offset, self.length), min(length, max(0, self.length - offset)))
        if offset + length > self.length:
            # As a file does, it grows under a format, which may resize it, up to the size that it was given.
            if not self.perm & permissions.RESIZE:
                raise OSError(errno.EIO, "Request beyond the end of the node")
            if self._size is not None:
                raise OSError(errno.ENOSPC, "Request beyond the size that the node was given")
            self.file.check_write(offset + self._offset, length)

    def written(self, offset: int, length: int) -> None:
        if offset + length > self.length:
            self.child_resized("file")
        super().written(offset, length)

    def linear_child(self) -> tuple[BlockNode, int] | None:
        return self.file, self._offset

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        if self.file.driver == "blkdebug" and not want_zero:
            return (Extent(length, COMPUTED),)  # it is to hear of each read
        return (Extent(length, DATA, self.file, offset + self._offset, WRITABLE),)

    def _read(self, offset: int, view: memoryview) -> None:
        self.file.debug_event("read_aio")
        self.file.read_into(offset + self._offset, view)

    def read_computed(self, offset: int, view: memoryview) -> None:
        self._read(offset, view)

    def _write(self, offset: int, data: Buffer) -> None:
        if self.probed and offset < 512:
            self._check_first_sector(offset, data)
        self.file.debug_event("write_aio")
        self.file.write(offset + self._offset, data)

    def _check_first_sector(self, offset: int, data: Buffer) -> None:
        """A guest must not turn a disk that was taken for raw into a format with a backing file of its choice."""
        sector = bytearray(512)
        self.file.read_into(self._offset, memoryview(sector)[: min(512, self.length)])
        size = min(512 - offset, len(data))
        sector[offset : offset + size] = memoryview(data)[:size]
        if self.layer.opener.format_of(bytes(sector), self.file.filename) != "raw":
            raise OSError(errno.EPERM, "Operation not permitted")

    def plain_writes(self) -> bool:
        return super().plain_writes() and not self.probed

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        file = self.file
        may_unmap = may_unmap and file.discard_unmap
        file.write_zeroes(offset + self._offset, length, may_unmap=may_unmap, no_fallback=no_fallback)
        return True

    def _discard(self, offset: int, length: int) -> None:
        self.file.discard(offset + self._offset, length)

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        if self._size is not None:
            raise QobraError("Cannot resize fixed-size raw disks", errno=errno.ENOTSUP)
        self.file.truncate(length + self._offset, preallocation=preallocation, exact=exact)
        self.child_resized("file")

    def cluster_size(self) -> int:
        return self.file.cluster_size()

    def has_zero_init(self) -> bool:
        return self.file.has_zero_init()

    @classmethod
    def measure(cls, options: Options, source: BlockNode | None = None) -> Options:
        """BlockMeasureInfo of a new image: ``size`` bytes, whatever ``source`` holds."""
        size = -(-options["size"] // 512) * 512
        return {"required": size, "fully-allocated": size}

    @classmethod
    def create(cls, options: Options, file: BlockNode) -> None:
        """blockdev-create (BlockdevCreateOptionsRaw): give ``file`` the size ``size``."""
        file.truncate(options["size"], preallocation=options.get("preallocation", "off"))


def _check_numbers(options: Options) -> None:
    for name in ("offset", "size"):
        if options.get(name, 0) < 0:
            raise not_a_size(name)
