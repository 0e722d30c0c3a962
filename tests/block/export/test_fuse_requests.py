"""What the kernel asks of a FUSE export, over a socket in place of the device, so that nothing has to be mounted."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import threading
from types import SimpleNamespace

import pytest

from qobra.block import permissions
from qobra.block.backend import BlockBackend
from qobra.block.export.fuse import protocol as p
from qobra.block.export.fuse.requests import Ended, Requests
from qobra.block.layer import BlockLayer

SIZE = 1 << 20
DATA = 65536
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 1, 2, 8, 16


class Kernel:
    """The other end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.settimeout(20)
        self._unique = 0

    def tell(self, opcode: int, body: bytes = b"", node: int = p.ROOT) -> None:
        self._unique += 1
        self._sock.send(p.HEADER.pack(p.HEADER.size + len(body), opcode, self._unique, node, 0, 0, 0, 0, 0) + body)

    def ask(self, opcode: int, body: bytes = b"", node: int = p.ROOT) -> bytes:
        """The answer; raises OSError for one that is an error."""
        self.tell(opcode, body, node)
        reply = self._sock.recv(1 << 20)
        length, error, unique = p.REPLY.unpack_from(reply)
        assert length == len(reply) and unique == self._unique
        if error:
            assert length == p.REPLY.size
            raise OSError(-error, os.strerror(-error))
        return reply[p.REPLY.size :]

    def refused(self, opcode: int, body: bytes = b"", node: int = p.ROOT) -> int:
        with pytest.raises(OSError) as caught:
            self.ask(opcode, body, node)
        assert caught.value.errno is not None
        return caught.value.errno

    def read(self, offset: int, size: int) -> bytes:
        return self.ask(p.READ, p.READ_IN.pack(0, offset, size, 0, 0, 0, 0))

    def attributes(self) -> dict[str, int]:
        found = p.ATTRIBUTES.unpack_from(self.ask(p.GETATTR, bytes(16)), p.GETATTR_OUT.size)
        return dict(zip(("inode", "size", "blocks"), found, strict=False)) | dict(
            zip(("mode", "links", "uid", "gid"), found[9:], strict=False)
        )

    def change(self, valid: int, **fields: int) -> bytes:
        values = [0] * 16
        values[0] = valid
        for name, place in (("size", 3), ("mode", 11), ("uid", 13), ("gid", 14)):
            values[place] = fields.get(name, 0)
        return p.SETATTR_IN.pack(*values)


@pytest.fixture
def node(tmp_path):
    layer = BlockLayer()
    (tmp_path / "image").write_bytes(b"x" * DATA)
    os.truncate(tmp_path / "image", SIZE)
    options = {"driver": "file", "filename": str(tmp_path / "image"), "discard": "unmap"}
    yield layer.add_node({"driver": "raw", "node-name": "disk", "discard": "unmap", "file": options})
    layer.close()


@pytest.fixture
def serve(node):
    """``serve(writable=True, ...)``: the kernel's end of an export like that."""
    ended = []

    def start(*, writable=False, growable=False, open_to_others=True):
        backend = BlockBackend(node.layer, perm=permissions.ALL if writable or growable else 1)
        backend.insert(node)
        export = SimpleNamespace(
            backend=backend, writable=writable, growable=growable, open_to_others=open_to_others, writethrough=False
        )
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def run():
            with pytest.raises(Ended):
                Requests(export, 12, 34, 0o600).serve(ours.fileno())

        thread = threading.Thread(target=run)
        thread.start()

        def end():
            theirs.close()
            thread.join(20)
            assert not thread.is_alive()
            ours.close()
            backend.remove()

        ended.append(end)
        return Kernel(theirs)

    yield start
    for end in ended:
        end()


def test_the_handshake(serve):
    kernel = serve()
    offered = p.CAP_ASYNC_READ | p.CAP_MAX_PAGES | 1 << 31
    major, minor, readahead, flags, _background, _congestion, most, grain, pages, *_ = p.INIT_OUT.unpack(
        kernel.ask(p.INIT, p.INIT_IN.pack(7, 38, 4096, offered))
    )
    assert (major, minor, readahead, flags) == (7, 39, 4096, p.CAP_ASYNC_READ | p.CAP_MAX_PAGES)
    assert most == p.MAX_TRANSFER and grain == 1 and pages * os.sysconf("SC_PAGE_SIZE") == p.MAX_TRANSFER
    assert kernel.refused(p.INIT, p.INIT_IN.pack(6, 40, 0, 0)) == errno.EPROTO


@pytest.mark.parametrize("offered", [p.CAP_DIRECT_IO_MMAP, 0, p.CAP_DIRECT_IO_MMAP | 1 << 40])
def test_a_kernel_that_can_map_the_file_is_let(serve, offered):
    kernel = serve()
    asked = p.INIT_IN.pack(7, 39, 4096, p.CAP_MORE) + p.INIT_MORE.pack(offered >> 32) + bytes(44)
    answer = p.INIT_OUT.unpack(kernel.ask(p.INIT, asked))
    assert answer[3] == p.CAP_MORE and answer[-1] << 32 == offered & p.CAP_DIRECT_IO_MMAP


def test_what_wants_no_reply_gets_none(serve):
    kernel = serve()
    for opcode in (p.FORGET, p.BATCH_FORGET, p.INTERRUPT):
        kernel.tell(opcode, bytes(8))
    assert kernel.ask(p.ACCESS, bytes(8)) == b""  # and this is the reply to no other
    assert kernel.ask(p.RELEASE, bytes(24)) == b""


def test_other_files_and_requests_are_not_there(serve):
    kernel = serve()
    assert kernel.refused(p.GETATTR, bytes(16), node=2) == errno.ENOENT
    assert kernel.refused(p.LOOKUP, b"name\0") == errno.ENOSYS
    assert kernel.ask(p.STATFS, node=0) == p.STATFS_OUT.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0)


def test_attributes(serve, node):
    kernel = serve(writable=True)
    found = kernel.attributes()
    assert (found["inode"], found["size"], found["links"]) == (1, SIZE, 1)
    assert DATA <= found["blocks"] * 512 < SIZE
    assert (found["mode"], found["uid"], found["gid"]) == (stat.S_IFREG | 0o600, 12, 34)
    kernel.ask(p.SETATTR, kernel.change(p.SET_MODE | p.SET_UID, mode=stat.S_IFREG | 0o644, uid=7, gid=8))
    kernel.ask(p.SETATTR, kernel.change(p.SET_GID, uid=0, gid=9))
    found = kernel.attributes()
    assert (found["mode"], found["uid"], found["gid"]) == (stat.S_IFREG | 0o644, 7, 9)
    kernel.ask(p.SETATTR, kernel.change(p.SET_SIZE, size=SIZE * 2))
    assert node.length == SIZE * 2 == kernel.attributes()["size"]


def test_attributes_that_may_not_be_had(serve):
    kernel = serve(writable=True, open_to_others=False)
    assert kernel.refused(p.SETATTR, kernel.change(p.SET_MODE, mode=0o604)) == errno.EPERM
    for field in (p.SET_UID, p.SET_GID):
        assert kernel.refused(p.SETATTR, kernel.change(field)) == errno.EOPNOTSUPP
    kernel.ask(p.SETATTR, kernel.change(p.SET_MODE, mode=0o400))
    assert kernel.attributes()["mode"] == stat.S_IFREG | 0o400


def test_what_is_read_only_stays_as_it_is(serve, node):
    kernel = serve()
    assert kernel.attributes()["mode"] == stat.S_IFREG | 0o400
    assert kernel.refused(p.SETATTR, kernel.change(p.SET_MODE, mode=0o600)) == errno.EROFS
    kernel.ask(p.SETATTR, kernel.change(p.SET_MODE, mode=0o444))
    assert kernel.refused(p.SETATTR, kernel.change(p.SET_SIZE, size=4096)) == errno.EACCES
    for flags in (os.O_RDWR, os.O_WRONLY):
        assert kernel.refused(p.OPEN, p.OPEN_IN.pack(flags, 0)) == errno.EACCES
    assert kernel.ask(p.OPEN, p.OPEN_IN.pack(os.O_RDONLY, 0)) == p.OPEN_OUT.pack(0, p.OPEN_DIRECT_IO, 0)
    assert kernel.refused(p.WRITE, p.WRITE_IN.pack(0, 0, 1, 0, 0, 0, 0) + b"y") == errno.EACCES
    assert kernel.refused(p.FALLOCATE, p.FALLOCATE_IN.pack(0, 0, 4096, PUNCH_HOLE | KEEP_SIZE, 0)) == errno.EACCES
    assert kernel.ask(p.FSYNC, bytes(16)) == b""
    assert node.length == SIZE and kernel.read(0, 4) == b"xxxx"


def test_reads_end_where_the_file_ends(serve):
    kernel = serve()
    assert kernel.read(DATA - 3, 6) == b"xxx\0\0\0"
    assert kernel.read(SIZE - 3, 6) == bytes(3)
    assert kernel.read(SIZE, 6) == kernel.read(SIZE + 9, 6) == b""
    assert kernel.refused(p.READ, p.READ_IN.pack(0, 0, p.MAX_TRANSFER + 1, 0, 0, 0, 0)) == errno.EINVAL


@pytest.mark.parametrize("growable", [False, True])
def test_writes_at_the_end(serve, node, growable):
    kernel = serve(writable=True, growable=growable)

    def write(offset, data, size=None):
        return p.WRITE_IN.pack(0, offset, len(data) if size is None else size, 0, 0, 0, 0) + data

    assert kernel.ask(p.WRITE, write(10, b"here")) == struct.pack("=II", 4, 0)
    assert kernel.refused(p.WRITE, write(0, b"short", 6)) == errno.EINVAL
    (written, _) = p.WRITE_OUT.unpack(kernel.ask(p.WRITE, write(SIZE - 4, b"12345678")))
    assert written == (8 if growable else 4)
    if growable:
        assert node.length == SIZE + 4
    else:
        assert node.length == SIZE
        assert kernel.refused(p.WRITE, write(SIZE, b"x")) == errno.EIO
    assert kernel.read(8, 8) == b"xxherexx" and kernel.read(SIZE - 4, 4) == b"1234"
    assert kernel.ask(p.FLUSH, bytes(24)) == b""


@pytest.mark.parametrize(
    ("mode", "offset", "length", "zeroes", "size"),
    [
        (PUNCH_HOLE | KEEP_SIZE, 4096, 8192, (4096, 12288), SIZE),
        (PUNCH_HOLE | KEEP_SIZE, 4096, 2 * SIZE, (4096, DATA), SIZE),
        (PUNCH_HOLE | KEEP_SIZE, SIZE + 4096, 4096, (0, 0), SIZE),
        (ZERO_RANGE, 4096, 8192, (4096, 12288), SIZE),
        (ZERO_RANGE | KEEP_SIZE, 4096, 2 * SIZE, (4096, DATA), SIZE),
        (ZERO_RANGE, 4096, 2 * SIZE, (4096, DATA), 2 * SIZE + 4096),
        (ZERO_RANGE | KEEP_SIZE, SIZE, 4096, (0, 0), SIZE),
        (0, SIZE, 4096, (0, 0), SIZE + 4096),
    ],
)
def test_kinds_of_allocation(serve, node, mode, offset, length, zeroes, size):
    kernel = serve(writable=True)
    assert kernel.ask(p.FALLOCATE, p.FALLOCATE_IN.pack(0, offset, length, mode, 0)) == b""
    first, end = zeroes
    assert kernel.read(0, DATA) == b"x" * first + bytes(end - first) + b"x" * (DATA - end)
    assert node.length == size


@pytest.mark.parametrize(
    ("mode", "offset", "error"),
    [
        (PUNCH_HOLE, 0, errno.EINVAL),
        (0, 0, errno.EOPNOTSUPP),
        (0, SIZE - 1, errno.EOPNOTSUPP),
        (KEEP_SIZE, SIZE, errno.EOPNOTSUPP),
        (COLLAPSE_RANGE, 0, errno.EOPNOTSUPP),
    ],
)
def test_other_kinds_change_nothing(serve, node, mode, offset, error):
    kernel = serve(writable=True)
    assert kernel.refused(p.FALLOCATE, p.FALLOCATE_IN.pack(0, offset, 4096, mode, 0)) == error
    assert node.length == SIZE and kernel.read(0, DATA) == b"x" * DATA


@pytest.mark.parametrize(
    ("whence", "offset", "found"),
    [
        (os.SEEK_DATA, 100, 100),
        (os.SEEK_DATA, DATA, errno.ENXIO),
        (os.SEEK_HOLE, 100, DATA),
        (os.SEEK_HOLE, DATA + 5, DATA + 5),
        (os.SEEK_HOLE, SIZE, errno.ENXIO),
        (os.SEEK_DATA, SIZE, errno.ENXIO),
        (os.SEEK_SET, 0, errno.EINVAL),
    ],
)
def test_seeking(serve, whence, offset, found):
    kernel = serve()
    body = p.LSEEK_IN.pack(0, offset, whence, 0)
    if found < 100:
        assert kernel.refused(p.LSEEK, body) == found
    else:
        assert kernel.ask(p.LSEEK, body) == p.LSEEK_OUT.pack(found)


def test_a_file_without_a_hole_has_one_at_its_end(serve, node):
    node.truncate(DATA)
    kernel = serve()
    assert kernel.ask(p.LSEEK, p.LSEEK_IN.pack(0, 100, os.SEEK_HOLE, 0)) == p.LSEEK_OUT.pack(DATA)


def test_an_error_of_the_node_is_the_answer(serve, node, monkeypatch):
    def fail(*_args, **_options):
        raise OSError(errno.ENOSPC, "injected")

    kernel = serve(writable=True)
    monkeypatch.setattr(node, "_write_zeroes", fail)
    body = p.FALLOCATE_IN.pack(0, 0, 4096, ZERO_RANGE, 0)
    assert kernel.refused(p.FALLOCATE, body) == errno.ENOSPC
    assert kernel.read(0, 4) == b"xxxx"
