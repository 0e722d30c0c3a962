"""``qobra.open``: a disk image as a file that Python programs can use.

    import qobra

    with qobra.open("disk.qcow2") as disk:
        boot = disk[:512]
        disk.seek(1 << 20)
        data = disk.read(4096)
        for offset, data in disk.chunks():
            ...                               # only what is not zero

An image is what the programs open too: any format, protocol and ``json:`` name, with its whole backing chain. It is
an :class:`io.RawIOBase`, so whatever takes a binary file takes it (dissect, pytsk3, pandas, shutil), and it has
calls that name their place (:meth:`Image.pread`, :meth:`Image.preadv`, :meth:`Image.pwrite`), which any number of
threads may use at once.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.buffers import new_buffer
from qobra.block.cache_modes import CACHE_MODES
from qobra.block.extents import ABSENT, COMPRESSED, ZERO, resolve
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode

Buffer = bytes | bytearray | memoryview

SECTOR = 512
MODES = ("r", "rb", "r+", "r+b", "rb+")
CHUNK_SIZE = 1 << 20
MAP_STEP = 1 << 30
"""Bytes of an image whose map is looked at together, so that memory stays bounded however large it is."""


class Extent(NamedTuple):
    """A run of ``length`` bytes from ``start``.

    ``data`` is False where it reads as zeroes. ``depth`` is how far down the chain it comes from (0: the image
    itself), ``None`` where nobody has it. ``offset`` in ``file`` is where the bytes lie as they are; ``None`` for
    what must be worked out (compressed, encrypted).
    """

    start: int
    length: int
    data: bool
    depth: int | None
    compressed: bool
    file: str | None
    offset: int | None


def open_image(
    filename: str | os.PathLike[str] | bytes,
    mode: str = "r",
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    cache: str = "writeback",
    snapshot: str | None = None,
    force_share: bool = False,
    layer: BlockLayer | None = None,
) -> Image:
    """Open an image: a path, or a name as QEMU has them (``nbd://...``, ``json:...``).

    ``mode`` is ``r`` or ``r+`` (read and write; a ``b`` changes nothing). ``format`` is a driver's name; without it the
    format is told from the first bytes, which is only safe for images that you trust: a guest can make a raw disk
    look like another format. ``options`` are further options of the node, as blockdev-add has them. ``cache`` is a
    cache mode as qemu-img has them: ``writeback``, ``none``, ``writethrough``, ``directsync`` or ``unsafe``.
    ``snapshot`` is the id or name of an internal snapshot to show (read-only). ``force_share`` opens for reading an
    image that another program is writing to. ``layer`` is a block layer to open it in, for those who have one; it
    stays open when the image is closed.

    Raises QobraError (with ``errno`` where the operating system refused), and ValueError for no mode.
    """
    filename = os.fsdecode(filename)
    if mode not in MODES:
        raise ValueError(f"invalid mode: {mode!r}")
    if cache not in CACHE_MODES:
        raise QobraError(f"Invalid cache option: {cache}")
    writable = "+" in mode
    if snapshot is not None and writable:
        raise QobraError("A snapshot inside an image can only be read")
    through, direct, no_flush = CACHE_MODES[cache]
    merged: dict[str, Any] = {"read-only": not writable, "discard": "unmap", **(options or {})}
    if direct or no_flush:
        merged.setdefault("cache", {"direct": direct, "no-flush": no_flush})
    if format is not None:
        merged["driver"] = format
    if force_share:
        merged["force-share"] = True
    own_layer = layer is None
    if layer is None:
        from qobra.block.layer import BlockLayer

        layer = BlockLayer()
    perm = permissions.CONSISTENT_READ | (permissions.WRITE if writable else 0)
    backend = BlockBackend(layer, perm=perm, description=f"the image {filename!r}")
    backend.writeback = not through
    try:
        node = layer.open_image(filename, merged, root=backend)
        if snapshot is not None:
            if not hasattr(node, "snapshot_load"):
                raise QobraError(f"Block format '{node.driver}' does not support internal snapshots")
            node.snapshot_load(snapshot)
    except OSError as error:
        raise QobraError.from_os(f"Could not open '{filename}'", error)
    except BaseException:
        if own_layer:
            layer.close()
        raise
    return Image(filename, layer, backend, own_layer=own_layer)


class Image(io.RawIOBase):
    """An open image; see the module. Close it, or use it in a ``with``.

    Offsets and lengths are bytes. What reads and writes raises OSError or QobraError where that fails, and ValueError
    for negative numbers and for an image that is closed; what writes also raises io.UnsupportedOperation for an image
    that was opened for reading, and OSError (ENOSPC) past the end.
    """

    def __init__(self, name: str, layer: BlockLayer, backend: BlockBackend, *, own_layer: bool) -> None:
        self.name = name
        self._layer = layer
        self._backend = backend
        self._own_layer = own_layer
        self._position = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.format}, {self.size} bytes"
        return f"<qobra image {self.name!r}, {state}>"

    # -- what it is ---------------------------------------------------------------------------------------------

    @property
    def node(self) -> BlockNode:
        """The node of the block graph, for what has no method here."""
        self._check_open()
        return self._backend.inserted()

    @property
    def size(self) -> int:
        """Bytes that a guest sees: whole sectors of 512."""
        return -(-self.node.length // SECTOR) * SECTOR

    def __len__(self) -> int:
        return self.size

    def __bool__(self) -> bool:
        return True

    @property
    def format(self) -> str:
        """The driver's name: ``qcow2``, ``raw``, ..."""
        return self.node.driver

    @property
    def mode(self) -> str:
        """``rb`` or ``rb+``."""
        return "rb+" if self.writable() else "rb"

    def info(self) -> dict[str, Any]:
        """The reference's ImageInfo, as query-named-block-nodes has it in ``image``."""
        from qobra.block.query import image_info

        return dict(image_info(self.node))

    def chain(self) -> list[dict[str, Any]]:
        """ImageInfo of the image and of all that it lies on, the top first."""
        from qobra.block.query import cow_backing, image_info

        infos = []
        node: BlockNode | None = self.node
        while node is not None:
            infos.append(dict(image_info(node)))
            node = cow_backing(node)
        return infos

    def snapshots(self) -> list[dict[str, Any]]:
        """The internal snapshots, as the reference's SnapshotInfo."""
        node = self.node
        return node.snapshot_list()

    # -- calls that name their place, for any number of threads -----------------------------------------------

    def pread(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset``, fewer where the image ends before."""
        data = new_buffer(self._inside(length, offset))
        self._fill(memoryview(data), offset)
        return bytes(data)

    def preadv(self, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Fill ``buffers`` one after another from ``offset``, as os.preadv; returns how many bytes were read."""
        total = 0
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            size = self._inside(len(view), offset)
            self._fill(view[:size], offset)
            offset += size
            total += size
            if size < len(view):
                break
        return total

    def pwrite(self, data: Buffer, offset: int, *, fua: bool = False) -> int:
        """Write all of ``data`` at ``offset`` and return its length; with ``fua`` it is then on stable storage."""
        view = memoryview(data).cast("B")
        self._check_writable(offset, len(view))
        if len(view):
            self._backend.write(offset, view, fua=fua)
        return len(view)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Write ``buffers`` one after another from ``offset``, as os.pwritev; returns how many bytes they have."""
        return self.pwrite(b"".join(bytes(buffer) for buffer in buffers), offset)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make a range read as zeroes; with ``unmap`` its space may be given back."""
        self._check_writable(offset, length)
        self._backend.write_zeroes(offset, length, may_unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        """Say that what a range holds is of no use any more: it may read as zeroes, or as what lies below, from now."""
        self._check_writable(offset, length)
        self._backend.discard(offset, length)

    def __getitem__(self, place: int | slice) -> int | bytes:
        """A byte as a number, or the bytes of a slice. Raises IndexError."""
        size = self.size
        if isinstance(place, slice):
            start, stop, step = place.indices(size)
            data = self.pread(max(0, stop - start), start) if step > 0 else self.pread(max(0, start - stop), stop + 1)
            return data if step == 1 else data[::step]
        index = place + size if place < 0 else place
        if not 0 <= index < size:
            raise IndexError("image index out of range")
        return self.pread(1, index)[0]

    def _inside(self, length: int, offset: int) -> int:
        if length < 0 or offset < 0:
            raise ValueError("negative length or offset")
        return max(0, min(length, self.size - offset))

    def _fill(self, view: memoryview, offset: int) -> None:
        inside = max(0, min(len(view), self.node.length - offset))
        if inside:
            self._backend.read_into(offset, view[:inside])
        if inside < len(view):
            view[inside:] = bytes(len(view) - inside)  # a file ends with a whole sector

    # -- where the data is --------------------------------------------------------------------------------------

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[Extent]:
        """Where the bytes from ``start`` to ``end`` (of the image, by default) lie, in order and without gaps."""
        node = self.node
        stop = self.size if end is None else min(end, self.size)
        last: Extent | None = None
        while start < stop:
            inside = max(0, min(MAP_STEP, stop - start, node.length - start))
            pieces = (
                [_extent(run) for run in resolve(node, start, inside, want_zero=True)]
                if inside
                else [Extent(start, stop - start, False, None, False, None, None)]
            )
            for piece in pieces:
                if last is not None and _follows(last, piece):
                    last = last._replace(length=last.length + piece.length)
                else:
                    if last is not None:
                        yield last
                    last = piece
                start = piece.start + piece.length
        if last is not None:
            yield last

    def chunks(self, size: int = CHUNK_SIZE, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        """``(offset, data)`` of at most ``size`` bytes each (1 MiB by default), without what is known to be zero."""
        for extent in self.extents(start, end):
            if extent.data:
                for offset in range(extent.start, extent.start + extent.length, size):
                    yield offset, self.pread(min(size, extent.start + extent.length - offset), offset)

    # -- a binary file ------------------------------------------------------------------------------------------

    def readable(self) -> bool:
        """See io.IOBase."""
        return True

    def writable(self) -> bool:
        """See io.IOBase."""
        return not self.node.read_only

    def seekable(self) -> bool:
        """See io.IOBase."""
        return True

    def tell(self) -> int:
        """See io.IOBase."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.IOBase."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}.get(whence)
        if base is None:
            raise ValueError(f"invalid whence: {whence}")
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase; reads all that fits and is there."""
        view = memoryview(buffer).cast("B")
        with self._lock:
            size = self._inside(len(view), self._position)
            self._fill(view[:size], self._position)
            self._position += size
        return size

    def read(self, size: int | None = -1, /) -> bytes:
        """See io.RawIOBase; all the rest, at once and in memory, for a negative ``size`` or None."""
        with self._lock:
            data = self.pread(self.size if size is None or size < 0 else size, self._position)
            self._position += len(data)
        return data

    def readall(self) -> bytes:
        """See io.RawIOBase."""
        return self.read()

    def write(self, data: Any) -> int:
        """See io.RawIOBase. A disk has its size: what would lie past the end is refused whole."""
        view = memoryview(data).cast("B")
        with self._lock:
            done = self.pwrite(view, self._position)
            self._position += done
        return done

    def truncate(self, size: int | None = None) -> int:
        """Give the image another size in bytes, the position by default; returns it. Raises QobraError or OSError."""
        self._check_writable()
        length = self._position if size is None else size
        self._resize(length)
        return length

    def _resize(self, length: int) -> None:
        self._backend.set_permissions(self._backend.perm | permissions.RESIZE, self._backend.shared)
        try:
            with self._layer.drained():
                self.node.truncate(length)
        finally:
            self._backend.set_permissions(self._backend.perm & ~permissions.RESIZE, self._backend.shared)

    def flush(self) -> None:
        """What was written is on stable storage when this returns."""
        if not self.closed and not self.node.read_only:
            self._backend.flush()

    def close(self) -> None:
        """Write out what is cached and let go of the image. Raises OSError or QobraError where that fails."""
        if self.closed:
            return
        try:
            self.flush()
        finally:
            super().close()
            self._backend.remove()
            if self._own_layer:
                self._layer.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed image")

    def _check_writable(self, offset: int = 0, length: int = 0) -> None:
        node = self.node
        if node.read_only:
            raise io.UnsupportedOperation("not writable")
        if offset < 0 or length < 0:
            raise ValueError("negative length or offset")
        if offset + length > self.size:
            raise OSError(errno.ENOSPC, "past the end of the image")
        if offset + length > node.length:
            self._resize(self.size)  # the file gets the rest of its last sector


def _extent(run: Any) -> Extent:
    is_zero = run.kind in (ZERO, ABSENT)
    leaf = run.leaf if run.leaf is not None and run.leaf.is_leaf else None
    return Extent(
        run.start,
        run.length,
        not is_zero,
        run.depth if run.depth >= 0 else None,
        bool(run.flags & COMPRESSED),
        leaf.filename if leaf is not None else None,
        run.offset if leaf is not None else None,
    )


def _follows(last: Extent, piece: Extent) -> bool:
    return last[2:6] == piece[2:6] and (
        last.offset is None and piece.offset is None
        if last.offset is None or piece.offset is None
        else last.offset + last.length == piece.offset
    )
