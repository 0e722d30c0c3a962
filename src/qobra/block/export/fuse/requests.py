"""Answers to what the kernel asks of a file that is a node."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING

from qobra.block.export.fuse import protocol as p
from qobra.block.extents import ZERO, resolve
from qobra.errors import QobraError, errno_of

if TYPE_CHECKING:
    from qobra.block.export.fuse import FuseExport

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16


class Ended(Exception):
    """The file system was unmounted."""


class Requests:
    """Serves one mount, from any number of threads."""

    def __init__(self, export: FuseExport, uid: int, gid: int, mode: int) -> None:
        self._export = export
        self._uid = uid
        self._gid = gid
        self._mode = mode if export.writable else mode & ~0o222
        self._handlers = {
            p.GETATTR: self._getattr,
            p.SETATTR: self._setattr,
            p.OPEN: self._open,
            p.WRITE: self._write,
            p.STATFS: self._statfs,
            p.RELEASE: self._nothing,
            p.FSYNC: self._flush,
            p.FLUSH: self._flush,
            p.INIT: self._init,
            p.ACCESS: self._nothing,
            p.FALLOCATE: self._fallocate,
            p.LSEEK: self._lseek,
            p.DESTROY: self._nothing,
        }

    def serve(self, fd: int) -> None:
        """Read requests from ``fd`` and answer them until the file system is gone. Raises Ended then."""
        buffer = bytearray(p.MAX_TRANSFER + 4096)
        view = memoryview(buffer)
        out = bytearray(p.REPLY.size + p.MAX_TRANSFER)
        out_view = memoryview(out)
        while True:
            try:
                size = os.readv(fd, (view,))
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                raise Ended
            if size < p.HEADER.size:
                raise Ended
            _length, opcode, unique, node, *_ids = p.HEADER.unpack_from(buffer)
            if opcode in (p.FORGET, p.BATCH_FORGET, p.INTERRUPT):
                continue  # these want no reply
            body = view[p.HEADER.size : size]
            try:
                if node not in (0, p.ROOT):
                    raise OSError(errno.ENOENT, "no such file")
                if opcode == p.READ:
                    length = self._read(body, out_view[p.REPLY.size :])
                    p.REPLY.pack_into(out, 0, p.REPLY.size + length, 0, unique)
                    reply = out_view[: p.REPLY.size + length]
                else:
                    handler = self._handlers.get(opcode)
                    if handler is None:
                        raise OSError(errno.ENOSYS, "not a request for this file")
                    data = handler(body)
                    reply = memoryview(p.REPLY.pack(p.REPLY.size + len(data), 0, unique) + data)
            except (OSError, QobraError) as error:
                reply = memoryview(p.REPLY.pack(p.REPLY.size, -errno_of(error), unique))
            try:
                os.writev(fd, (reply,))
            except OSError as error:
                if error.errno != errno.ENOENT:  # the request was interrupted meanwhile
                    raise Ended

    # -- requests -----------------------------------------------------------------------------------------------

    def _init(self, body: memoryview) -> bytes:
        major, _minor, readahead, flags = p.INIT_IN.unpack_from(body)
        if major < p.MAJOR:
            raise OSError(errno.EPROTO, "the kernel's protocol is too old")
        if flags & p.CAP_MORE:
            flags |= p.INIT_MORE.unpack_from(body, p.INIT_IN.size)[0] << 32
        wanted = flags & (p.CAP_ASYNC_READ | p.CAP_BIG_WRITES | p.CAP_MAX_PAGES | p.CAP_MORE | p.CAP_DIRECT_IO_MMAP)
        pages = p.MAX_TRANSFER // os.sysconf("SC_PAGE_SIZE")
        low, high = wanted & 0xFFFFFFFF, wanted >> 32
        return p.INIT_OUT.pack(p.MAJOR, p.MINOR, readahead, low, 16, 12, p.MAX_TRANSFER, 1, pages, 0, high)

    def _attributes(self) -> bytes:
        node = self._export.backend.inserted()
        allocated = node.allocated_size()
        blocks = -(-(node.length if allocated is None else allocated) // 512)
        now = int(time.time())
        mode = stat.S_IFREG | self._mode
        attributes = p.ATTRIBUTES.pack(
            p.ROOT, node.length, blocks, now, now, now, 0, 0, 0, mode, 1, self._uid, self._gid, 0, 4096, 0
        )
        # Valid for no time at all: others may resize the node.
        return p.GETATTR_OUT.pack(0, 0, 0) + attributes

    def _getattr(self, body: memoryview) -> bytes:
        return self._attributes()

    def _setattr(self, body: memoryview) -> bytes:
        fields = p.SETATTR_IN.unpack_from(body)
        valid, size, mode, uid, gid = fields[0], fields[3], fields[11], fields[13], fields[14]
        if not self._export.open_to_others:
            if valid & p.SET_MODE and mode & 0o077:
                raise OSError(errno.EPERM, "mounted for its owner alone")
            if valid & (p.SET_UID | p.SET_GID):
                raise OSError(errno.EOPNOTSUPP, "mounted for its owner alone")
        if valid & p.SET_MODE:
            if mode & 0o222 and not self._export.writable:
                raise OSError(errno.EROFS, "read-only export")
            self._mode = mode & 0o777
        if valid & p.SET_UID:
            self._uid = uid
        if valid & p.SET_GID:
            self._gid = gid
        if valid & p.SET_SIZE:
            self._check_writable()
            self._truncate(size)
        return self._attributes()

    def _open(self, body: memoryview) -> bytes:
        flags = p.OPEN_IN.unpack_from(body)[0]
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self._check_writable()
        # Not through the page cache: the node may change under it.
        return p.OPEN_OUT.pack(0, p.OPEN_DIRECT_IO, 0)

    def _read(self, body: memoryview, into: memoryview) -> int:
        _handle, offset, size, *_rest = p.READ_IN.unpack_from(body)
        if size > p.MAX_TRANSFER:
            raise OSError(errno.EINVAL, "read too long")
        backend = self._export.backend
        inside: int = max(0, min(size, backend.length - offset))
        if inside:
            backend.read_into(offset, into[:inside])
        return inside

    def _write(self, body: memoryview) -> bytes:
        _handle, offset, size, *_rest = p.WRITE_IN.unpack_from(body)
        self._check_writable()
        data = body[p.WRITE_IN.size : p.WRITE_IN.size + size]
        if len(data) < size:
            raise OSError(errno.EINVAL, "write too short")
        backend = self._export.backend
        if offset + size > backend.length:
            if self._export.growable:
                self._truncate(offset + size)
            else:
                size = max(0, backend.length - offset)
                if not size:
                    raise OSError(errno.EIO, "past the end of an export that does not grow")
        backend.write(offset, data[:size], fua=self._export.writethrough)
        return p.WRITE_OUT.pack(size, 0)

    def _flush(self, body: memoryview) -> bytes:
        if self._export.writable:
            self._export.backend.flush()
        return b""

    def _statfs(self, body: memoryview) -> bytes:
        return p.STATFS_OUT.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0)

    def _nothing(self, body: memoryview) -> bytes:
        return b""

    def _fallocate(self, body: memoryview) -> bytes:
        _handle, offset, length, mode, _padding = p.FALLOCATE_IN.unpack_from(body)
        self._check_writable()
        backend = self._export.backend
        end = offset + length
        if mode & _PUNCH_HOLE:
            if not mode & _KEEP_SIZE:
                raise OSError(errno.EINVAL, "a hole does not change the size")
            end = min(end, backend.length)
            if end > offset:
                backend.write_zeroes(offset, end - offset, may_unmap=True)
        elif mode & _ZERO_RANGE:
            if not mode & _KEEP_SIZE and end > backend.length:
                self._truncate(end)
            end = min(end, backend.length)
            if end > offset:
                backend.write_zeroes(offset, end - offset)
        elif not mode:
            # Only at the end is there a way to get space that is not there yet.
            if offset < backend.length:
                raise OSError(errno.EOPNOTSUPP, "only space at the end can be allocated")
            self._truncate(end, preallocation="falloc")
        else:
            raise OSError(errno.EOPNOTSUPP, "no such kind of allocation")
        return b""

    def _lseek(self, body: memoryview) -> bytes:
        _handle, offset, whence, _padding = p.LSEEK_IN.unpack_from(body)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "not a way to seek")
        backend = self._export.backend
        with backend.slot():
            node = backend.inserted()
            length = node.length
            if offset >= length:
                raise OSError(errno.ENXIO, "past the end")
            step = 1 << 30
            while offset < length:
                for run in resolve(node, offset, min(step, length - offset), want_zero=True):
                    if (run.kind == ZERO) == (whence == os.SEEK_HOLE):
                        return p.LSEEK_OUT.pack(run.start)
                offset = min(offset + step, length)
        if whence == os.SEEK_HOLE:
            return p.LSEEK_OUT.pack(length)
        raise OSError(errno.ENXIO, "no data past here")

    def _check_writable(self) -> None:
        if not self._export.writable:
            raise OSError(errno.EACCES, "read-only export")

    def _truncate(self, length: int, *, preallocation: str = "off") -> None:
        backend = self._export.backend
        with backend.slot():
            backend.inserted().truncate(length, preallocation=preallocation)
