"""The ``file`` driver: an image in a regular file of the host."""

from __future__ import annotations

import errno
import os
import stat
from fcntl import F_GETFL, F_SETFL, fcntl

from qobra.block import permissions
from qobra.block.buffers import Buffer, fill_zero, write_all
from qobra.block.extents import DATA, WRITABLE, ZERO, Extent
from qobra.block.filename import protocol_of
from qobra.block.in_files import InFiles
from qobra.block.node import BlockNode, Options, drivers
from qobra.block.opening import Opening
from qobra.block.protocol import _locks as locks
from qobra.errors import QobraError, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from qobra.block.protocol._direct import DirectFile

_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2
_FALLOC_ZERO_RANGE = 16

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENOTTY)

_WRITES = permissions.WRITE | permissions.WRITE_UNCHANGED | permissions.RESIZE


@drivers.register("file")
class FileNode(BlockNode):
    """A regular file. Holes are found with SEEK_DATA, made with fallocate; locks as in :mod:`_locks`."""

    driver = "file"
    protocols = ("file",)
    is_leaf = True
    creatable = True
    needs_filename = True
    strong_options = ()
    changeable_options = frozenset({"drop-cache", "x-check-cache-dropped"})
    lasting_options = frozenset({"drop-cache"})

    fd: int = -1
    _direct: DirectFile | None = None
    _unsynced: int = 0
    """The error of a sync that has failed, 0 if none has: the kernel tells it once, and drops what it did not write."""

    @classmethod
    def parse_filename(cls, filename: str) -> Options | None:
        path = filename.removeprefix("file:")
        if path != filename and protocol_of(path):
            path = f"./{path}"  # or, told again, it would be taken for another protocol's
        return {"driver": cls.driver, "filename": path}

    def open(self, opening: Opening) -> None:
        options = opening.options
        self.path: str = options["filename"]
        locking = options.get("locking", "auto")
        self._locking = locking == "on" or (locking == "auto" and locks.available())
        self._held = locks.HeldLocks()
        manager = options.get("pr-manager")
        if manager is not None and self.layer.find_object(manager, "pr-manager") is None:
            raise QobraError(f"No persistent reservation manager with id '{manager}'")
        try:
            self._open_fd()
            if options.get("aio") == "native" and not self.cache_direct:
                raise QobraError(
                    "aio=native was specified, but it requires cache.direct=on, which was not specified.",
                    errno=errno.EINVAL,
                )
            self.check_kind(os.fstat(self.fd).st_mode)
            self.length = self._host_length()
        except OSError as error:
            raise self._cannot_open(error)
        self._discards = self._discards_failed = self._discarded_bytes = 0
        self._data = (0, 0)
        """Where data begin and end that were found by the last look for a hole: within it there is none."""
        self._set_direct()
        if not self.read_only:
            self._watch_folios()

    def _watch_folios(self) -> None:
        """There may be writes from now on."""
        if self.driver == "file" and self.folios is None:
            from qobra.block.protocol._folios import Folios

            self.folios = Folios(self.fd)

    def _open_fd(self) -> None:
        """Open as asked for, falling back to read-only where ``auto-read-only`` allows."""
        writable = not self.read_only and not self.auto_read_only
        if self.auto_read_only and not self.read_only:
            # Opened for reading until a user that writes comes along.
            self.fd = self._host_open(os.O_RDONLY)
            self._writable = False
            return
        self.fd = self._host_open(os.O_RDWR if writable else os.O_RDONLY)
        self._writable = writable

    def _host_open(self, access: int) -> int:
        flags = access | os.O_CLOEXEC | (os.O_DIRECT if self.cache_direct else 0)
        if self.fd >= 0 and not os.fstat(self.fd).st_nlink:
            return os.open(f"/proc/self/fd/{self.fd}", flags)  # it has no name any more
        if self.path.startswith("/dev/fdset/") and self.layer.open_path is not None:
            return self.layer.open_path(self.path, flags)
        try:
            return os.open(self.path, flags | os.O_NONBLOCK)
        except ValueError:  # a NUL character: no file has such a name
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _cannot_open(self, error: OSError) -> QobraError:
        refused = self.cache_direct and error.errno == errno.EINVAL  # open(2)
        reason = "filesystem does not support O_DIRECT" if refused else strerror(error)
        return QobraError(f"Could not open '{self.path}': {reason}", errno=error.errno)

    def check_kind(self, mode: int) -> None:
        """Refuse what is no file of this driver's kind, by the ``st_mode`` of the open file."""
        if not stat.S_ISREG(mode):
            raise QobraError(f"'{self.driver}' driver requires '{self.path}' to be a regular file", errno=errno.EINVAL)

    def _host_length(self) -> int:
        return os.lseek(self.fd, 0, os.SEEK_END)

    def close(self) -> None:
        if self.folios is not None:
            self.folios.close()
        if self.fd >= 0:
            try:
                if self.highest_write() or self.written_around:
                    self._flush()
            finally:
                os.close(self.fd)
                self.fd = -1

    def plain_filename(self, options: Options) -> str:
        return self.path

    # -- permissions ------------------------------------------------------------------------------------------

    def refuses(self, perm: int) -> bool:
        return bool(perm & ~permissions.RESIZE & _WRITES) and (self.inactive or (self.read_only and not self._writable))

    def prepare_permissions(self, perm: int, shared: int) -> None:
        if self.refuses(perm):
            raise QobraError("Block node is read-only")
        if perm & _WRITES and not self._writable and not self.read_only:
            self.reopen_writable()
        if self._locking:
            self._held.take(self.fd, perm, permissions.ALL if self.force_share else shared, self.path)

    def set_permissions(self, perm: int, shared: int) -> None:
        super().set_permissions(perm, shared)
        if self._locking and self.fd >= 0:
            self._held.settle(self.fd, perm, permissions.ALL if self.force_share else shared)
        if self.auto_read_only and self._writable and not perm & _WRITES:
            try:
                self._swap_fd(os.O_RDONLY)
            except OSError:
                pass  # the file has another name now, or none: it stays open as it is

    def reopen_writable(self) -> None:
        try:
            self._swap_fd(os.O_RDWR)
        except OSError as error:
            raise self._cannot_open(error)

    def take_options(self, options: Options) -> None:
        wants_writing = not self.read_only and (not self.auto_read_only or bool(self.perm & _WRITES))
        try:
            self._swap_fd(os.O_RDWR if wants_writing else os.O_RDONLY)
        except OSError as error:
            raise self._cannot_open(error)
        self._set_direct()

    def _set_direct(self) -> None:
        """Go past the page cache, or not, as ``cache.direct`` says."""
        if self.cache_direct:
            from qobra.block.protocol._direct import ALIGNMENT, DirectFile

            self._direct = self._direct or DirectFile(self.fd)
            self.request_alignment = ALIGNMENT
        else:
            self._direct = None
            self.request_alignment = 1

    def _swap_fd(self, access: int) -> None:
        """Reopen under the same descriptor number, so that requests in flight go on undisturbed."""
        flags = fcntl(self.fd, F_GETFL)
        if flags & os.O_ACCMODE == access:
            # Nothing needs to be opened, and under its name there may be nothing any more.
            fcntl(self.fd, F_SETFL, flags & ~os.O_DIRECT | (os.O_DIRECT if self.cache_direct else 0))
            self._writable = access == os.O_RDWR
            return
        fresh = self._host_open(access)
        try:
            if self._locking:
                self._held.copy(fresh)
            os.dup2(fresh, self.fd, inheritable=False)
        finally:
            os.close(fresh)
        self._writable = access == os.O_RDWR
        if self._writable:
            self._watch_folios()

    # -- data -------------------------------------------------------------------------------------------------

    def map(self, offset: int, length: int, want_zero: bool = True) -> Sequence[Extent]:
        if not want_zero:
            return (Extent(length, DATA, self, offset, WRITABLE),)
        extents = []
        end = offset + length
        while offset < end:
            known, known_end = self._data
            if known <= offset < known_end:
                size = min(known_end, end) - offset
                extents.append(Extent(size, DATA, self, offset, WRITABLE))
                offset += size
                continue
            try:
                data = os.lseek(self.fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    data = offset  # the file system cannot tell
                    hole = end
                else:
                    data = end
            if data > offset:
                size = min(data, end) - offset
                extents.append(Extent(size, ZERO, self, offset, WRITABLE))
                offset += size
                continue
            try:
                hole = os.lseek(self.fd, offset, os.SEEK_HOLE)
                # Looking for the end of long data takes long with some file systems: once will do.
                self._data = (min(known, offset) if hole == known_end else offset, hole)
                hole = min(hole, end)
            except OSError:
                hole = end
            extents.append(Extent(hole - offset, DATA, self, offset, WRITABLE))
            offset = hole
        return extents

    def next_data(self, offset: int) -> int:
        """Where data begin, at ``offset`` or behind it. Raises OSError: ENXIO where there are no more."""
        known, known_end = self._data
        return offset if known <= offset < known_end else os.lseek(self.fd, offset, os.SEEK_DATA)

    def next_hole(self, offset: int) -> int:
        """Where the data that are at ``offset`` end. Raises OSError."""
        known, known_end = self._data
        if not known <= offset < known_end:
            known_end = os.lseek(self.fd, offset, os.SEEK_HOLE)
            self._data = (offset, known_end)
        return known_end

    def _read(self, offset: int, view: memoryview) -> None:
        if self._direct is not None:
            self._direct.read(offset, view)
            return
        done = os.preadv(self.fd, (view,), offset)
        while done < len(view):
            size = os.preadv(self.fd, (view[done:],), offset + done)
            if not size:
                # The file is shorter than it was: as sparse as the rest of it.
                fill_zero(view[done:])
                return
            done += size

    def _write(self, offset: int, data: Buffer) -> None:
        if isinstance(data, InFiles):
            data.copy_to(self.fd, offset, self.folios)
        elif self._direct is not None:
            self._direct.write(offset, data, self.length)
        elif self.folios is not None:
            view = memoryview(data)
            done = self.folios.write(view, offset)
            if done < len(view):
                write_all(self.fd, view[done:], offset + done)
        else:
            write_all(self.fd, memoryview(data), offset)

    def check_write(self, offset: int, length: int) -> None:
        if self.read_only or not self._writable:
            raise OSError(errno.EPERM, "Block node is read-only")
        if offset < 0 or length < 0 or offset + length > (1 << 63) - 1:
            raise OSError(errno.EIO, "Request beyond the end of the node")
        # A file grows under whoever may resize it (formats allocate past its end).
        if offset + length > self.length:
            if not self.perm & permissions.RESIZE:
                raise OSError(errno.EIO, "Request beyond the end of the node")

    def written(self, offset: int, length: int) -> None:
        if offset + length > self.length:
            self.length = offset + length
        super().written(offset, length)

    def extend(self, length: int) -> None:
        """Be ``length`` bytes long at least, with zeroes that take up no space yet. From inside a request."""
        if length > self.length:
            os.ftruncate(self.fd, length)
            self.length = length
            self._data = (0, 0)

    def _write_zeroes(self, offset: int, length: int, may_unmap: bool, no_fallback: bool) -> bool:
        end = offset + length
        alignment = self.request_alignment
        if (offset | end) % alignment and not no_fallback:
            # Blocks that are zeroed in part are written, as by any write; space is given and taken by whole ones.
            first, last = -(-offset // alignment) * alignment, end // alignment * alignment
            if first >= last:
                return False
            if not self._write_zeroes(first, last - first, may_unmap, no_fallback):
                return False
            if offset < first:
                self._write(offset, bytes(first - offset))
            if last < end:
                self._write(last, bytes(end - last))
            return True
        if may_unmap and self._fallocate(_FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, length):
            if end > self.length:
                os.ftruncate(self.fd, end)
            return True
        if self._fallocate(_FALLOC_ZERO_RANGE, offset, length):
            return True
        if offset >= self.length:
            os.ftruncate(self.fd, end)
            return True
        return False

    def _discard(self, offset: int, length: int) -> None:
        length = min(length, max(0, self.length - offset))
        done = False
        try:
            done = self._fallocate(_FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, length)
        finally:
            self.count_discard(length if done else None)

    def count_discard(self, length: int | None) -> None:
        """A discard of ``length`` bytes succeeded; None: one failed."""
        if length is None:
            self._discards_failed += 1
        else:
            self._discards += 1
            self._discarded_bytes += length

    def stats(self) -> Options:
        return {
            "driver": self.driver,
            "discard-nb-ok": self._discards,
            "discard-nb-failed": self._discards_failed,
            "discard-bytes-ok": self._discarded_bytes,
        }

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """fallocate(2) with a mode; False where the host or file system has none."""
        if length <= 0:
            return True
        from qobra.block.protocol._allocation import fallocate  # a reader never needs it

        known, known_end = self._data
        try:
            fallocate(self.fd, mode, offset, length)
            if offset < known_end and offset + length > known:
                self._data = (0, 0)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise
        return True

    def _flush(self) -> None:
        if not self.cache_no_flush and self._writable:
            self.sync()

    def sync(self) -> None:
        """fdatasync(2). Raises OSError, and from then on always: see :attr:`_unsynced`."""
        if self._unsynced:
            raise OSError(self._unsynced, os.strerror(self._unsynced))
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            if not self.cache_direct:
                self._unsynced = error.errno or errno.EIO
            raise

    def _truncate(self, length: int, preallocation: str, exact: bool) -> None:
        if preallocation != "off" and length < self.length:
            raise QobraError("Cannot use preallocation for shrinking files", errno=errno.ENOTSUP)
        from qobra.block.protocol._allocation import NOT_RESIZED, preallocate

        try:
            preallocate(self.fd, self.length, length, preallocation)
        except OSError as error:
            os.ftruncate(self.fd, self.length)
            raise QobraError(f"{NOT_RESIZED[preallocation]}: {strerror(error)}", errno=error.errno)
        self.length = length
        self._data = (0, 0)

    def allocated_size(self) -> int | None:
        return os.fstat(self.fd).st_blocks * 512

    def has_zero_init(self) -> bool:
        return True

    def invalidate_cache(self) -> None:
        self.length = self._host_length()
        self._data = (0, 0)

    @classmethod
    def create(cls, options: Options) -> None:
        """blockdev-create (BlockdevCreateOptionsFile). Raises QobraError: see :func:`create_file`."""
        from qobra.block.protocol._allocation import create_file

        create_file(options)

    @classmethod
    def delete(cls, options: Options) -> None:
        """Remove the file that ``options`` name, if it is a regular one."""
        path = options["filename"].removeprefix("file:")
        if os.path.isfile(path):
            os.unlink(path)
