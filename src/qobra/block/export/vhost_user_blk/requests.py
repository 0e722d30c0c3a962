"""virtio-blk (virtio 1.1, section 5.2): the configuration space, and requests done on a node."""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING

from qobra.block.export.vhost_user_blk.vring import Chain
from qobra.errors import QobraError, errno_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qobra.block.export.export import Export
    from qobra.block.export.vhost_user_blk.memory import Memory
    from qobra.block.node import BlockNode
    from qobra.block.slots import Slot

F_SIZE_MAX = 1
F_SEG_MAX = 2
F_RO = 5
F_BLK_SIZE = 6
F_FLUSH = 9
F_TOPOLOGY = 10
F_CONFIG_WCE = 11
F_MQ = 12
F_DISCARD = 13
F_WRITE_ZEROES = 14
RING_F_INDIRECT_DESC = 28
RING_F_EVENT_IDX = 29
F_VERSION_1 = 32

T_IN = 0
T_OUT = 1
T_FLUSH = 4
T_GET_ID = 8
T_DISCARD = 11
T_WRITE_ZEROES = 13

S_OK = 0
S_IOERR = 1
S_UNSUPP = 2

SECTOR = 512
"""The unit of positions and lengths in requests, whatever the logical block size."""
MAX_SECTORS = 32768
"""Sectors in one discard or write-zeroes request."""
SEG_MAX = 128 - 2
MAX_LENGTH = (1 << 31) - SECTOR
"""Bytes of one read or write: its descriptors may all be of the same memory, and so be of far more than there is."""
MAX_PIECE = 32 << 20
"""Bytes that are read or written at once."""
ID_LENGTH = 20

HEADER = Struct("<IIQ")  # type, priority, sector
RANGE = Struct("<QII")  # sector, sectors, flags
RANGE_F_UNMAP = 1
# Capacity, longest segment, segments, geometry, block size, topology, write cache, queues, discard, write zeroes.
CONFIG = Struct("<QIIHBBIBBHIBxHIIIIIB3x")
WCE_OFFSET = 32


def features(export: Export) -> int:
    """The feature bits that a front end may choose from."""
    bits = [F_SIZE_MAX, F_SEG_MAX, F_BLK_SIZE, F_FLUSH, F_TOPOLOGY, F_CONFIG_WCE, F_MQ, F_DISCARD, F_WRITE_ZEROES]
    bits += [RING_F_INDIRECT_DESC, RING_F_EVENT_IDX, F_VERSION_1]
    if not export.writable:
        bits.append(F_RO)
    return sum(1 << bit for bit in bits)


def config(export: Export, block_size: int, queues: int, write_cache: bool) -> bytes:
    """The configuration space."""
    return CONFIG.pack(
        export.backend.length // SECTOR,
        0xFFFFFFFF & -4096,
        SEG_MAX,
        *(0, 0, 0),
        block_size,
        *(0, 0, 1, 1),
        write_cache,
        queues,
        *(MAX_SECTORS, 1, block_size // SECTOR),
        *(MAX_SECTORS, 1, 1),
    )


class Requests:
    """Does requests of one queue, in its thread, whose chains lie in ``memory``.

    ``write_cache`` tells whether writes may wait for a flush.
    """

    def __init__(
        self, export: Export, slot: Slot, memory: Memory, block_size: int, write_cache: Callable[[], bool]
    ) -> None:
        self._export = export
        self._slot = slot
        self._memory = memory
        self._block_size = block_size
        self._write_cache = write_cache

    def perform(self, chain: Chain) -> int:
        """Do one request and set its status; bytes of its memory that were written. Raises QobraError if malformed."""
        if not chain.into:
            raise QobraError("vhost-user-blk: request without a status byte", errno=errno.EPROTO)
        header, out = _split(chain.out, HEADER.size)
        status = chain.into[-1][-1:]
        into = [*chain.into[:-1], chain.into[-1][:-1]]
        kind, _priority, sector = HEADER.unpack(header)
        try:
            written = self._do(kind, sector, out, [view for view in into if len(view)])
            status[0] = S_UNSUPP if written is None else S_OK
        except (OSError, QobraError) as error:
            status[0] = S_UNSUPP if errno_of(error) == errno.ENOTSUP else S_IOERR
            written = 0
        return (written or 0) + 1

    def _do(self, kind: int, sector: int, out: list[memoryview], into: list[memoryview]) -> int | None:
        """Bytes written to memory; None for a request of an unknown type."""
        if kind == T_IN:
            return self._read(sector * SECTOR, into)
        if kind == T_OUT:
            self._write(sector * SECTOR, out)
        elif kind == T_FLUSH:
            with self._slot:
                self._export.backend.inserted().flush()
        elif kind == T_GET_ID:
            name = self._export.id.encode()[:ID_LENGTH].ljust(ID_LENGTH, b"\0")
            return _scatter(name, into)
        elif kind in (T_DISCARD, T_WRITE_ZEROES):
            self._ranges(kind, out)
        else:
            return None
        return 0

    def _read(self, offset: int, into: list[memoryview]) -> int:
        length = sum(map(len, into))
        with self._slot:
            node = self._checked(offset, length)
            position = offset
            for view in into if length <= MAX_PIECE else _pieces(into):
                node.read_into(position, view)
                position += len(view)
        return length

    def _write(self, offset: int, out: list[memoryview]) -> None:
        self._check_writable()
        with self._slot:
            length = sum(map(len, out))
            node = self._checked(offset, length)
            position = offset
            for batch in (out,) if length <= MAX_PIECE else _batches(out):
                # The guest may change its memory while we look at it (zero detection, encryption, mirrors): copy once.
                data = batch[0].tobytes() if len(batch) == 1 else b"".join(batch)
                self._memory.check()
                node.write(position, data, fua=not self._write_cache())
                position += len(data)

    def _ranges(self, kind: int, out: list[memoryview]) -> None:
        self._check_writable()
        length = sum(map(len, out))
        if length != RANGE.size:
            raise QobraError("one range expected", errno=errno.ENOTSUP if length > RANGE.size else errno.EINVAL)
        body = b"".join(out)
        self._memory.check()
        sector, sectors, flags = RANGE.unpack(body)
        unmap = bool(flags & RANGE_F_UNMAP)
        if sectors > MAX_SECTORS:
            raise QobraError("range too long", errno=errno.EINVAL)
        if flags & ~RANGE_F_UNMAP or (kind == T_DISCARD and unmap):
            raise QobraError("range with unknown flags", errno=errno.ENOTSUP)
        with self._slot:
            node = self._checked(sector * SECTOR, sectors * SECTOR)
            if kind == T_DISCARD:
                node.discard(sector * SECTOR, sectors * SECTOR)
            else:
                node.write_zeroes(sector * SECTOR, sectors * SECTOR, may_unmap=unmap, fua=not self._write_cache())

    def _checked(self, offset: int, length: int) -> BlockNode:
        node = self._export.backend.inserted()
        if offset % self._block_size or length % self._block_size or offset + length > node.length:
            raise OSError(errno.EINVAL, "Request unaligned or beyond the end")
        if length > MAX_LENGTH:
            raise OSError(errno.EINVAL, "Request too long")
        return node

    def _check_writable(self) -> None:
        if not self._export.writable:
            raise OSError(errno.EPERM, "Export is read-only")


def _split(views: list[memoryview], length: int) -> tuple[bytes, list[memoryview]]:
    """The first ``length`` bytes of ``views``, and what follows them."""
    head = b""
    rest = list(views)
    while rest and len(head) < length:
        part = rest[0][: length - len(head)]
        head += part
        rest[0] = rest[0][len(part) :]
        if not len(rest[0]):
            del rest[0]
    if len(head) < length:
        raise QobraError("vhost-user-blk: request without a header", errno=errno.EPROTO)
    return head, rest


def _pieces(views: list[memoryview]) -> Iterator[memoryview]:
    """``views``, those cut that are longer than MAX_PIECE."""
    for view in views:
        if len(view) <= MAX_PIECE:
            yield view
        else:
            for start in range(0, len(view), MAX_PIECE):
                yield view[start : start + MAX_PIECE]


def _batches(views: list[memoryview]) -> Iterator[list[memoryview]]:
    """``views`` in runs of MAX_PIECE bytes at most."""
    batch: list[memoryview] = []
    room = MAX_PIECE
    for view in _pieces(views):
        if len(view) > room:
            yield batch
            batch, room = [], MAX_PIECE
        batch.append(view)
        room -= len(view)
    if batch:
        yield batch


def _scatter(data: bytes, into: list[memoryview]) -> int:
    done = 0
    for view in into:
        part = data[done : done + len(view)]
        view[: len(part)] = part
        done += len(part)
    return done
