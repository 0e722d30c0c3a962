"""One front end: its messages in one thread, each of its queues in another."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import threading
from struct import Struct
from typing import TYPE_CHECKING

from qobra.block.export.vhost_user_blk import guard
from qobra.block.export.vhost_user_blk import protocol as vu
from qobra.block.export.vhost_user_blk import requests as blk
from qobra.block.export.vhost_user_blk.memory import Memory, map_region
from qobra.block.export.vhost_user_blk.vring import Vring
from qobra.errors import QobraError
from qobra.nbd.sockets import hung_up

if TYPE_CHECKING:
    from collections.abc import Callable

    from qobra.block.export.vhost_user_blk import VhostUserBlkExport

_PROTOCOL_FEATURES = (
    1 << vu.PROTOCOL_F_MQ
    | 1 << vu.PROTOCOL_F_REPLY_ACK
    | 1 << vu.PROTOCOL_F_CONFIG
    | 1 << vu.PROTOCOL_F_CONFIGURE_MEM_SLOTS
)
_ONE = (1).to_bytes(8, "little")


class Queue:
    """One virtqueue: what the front end has said of it, and the thread that serves it while it runs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.size = 0
        self.base = 0
        self.addresses: tuple[int, int, int] | None = None
        """Descriptors, available ring, used ring."""
        self.kick = -1
        self.enabled = False
        self._call = -1
        self._calling = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._stop_read = self._stop_write = -1

    def set_kick(self, fd: int) -> None:
        """The driver says by ``fd`` that there are requests; -1 for none."""
        self.stop()
        _close(self.kick)
        self.kick = fd

    def set_call(self, fd: int) -> None:
        """The driver is told by ``fd`` what is done, from the next request on; -1 for none."""
        with self._calling:  # a number that was closed may be another file's at once
            old, self._call = self._call, fd
            _close(old)
            # What was done before may not have been told, as to a front end that has come back.
            self._tell()

    def start(self) -> None:
        """Serve the queue if everything that it needs is there."""
        if self._thread is None and self.enabled and self.kick >= 0 and self.addresses is not None:
            descriptors, available, used = self.addresses
            event_idx = bool(self._session.features >> blk.RING_F_EVENT_IDX & 1)
            ring = Vring(self._session.memory, self.size, descriptors, available, used, self.base, event_idx=event_idx)
            self._stopping = False
            self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._thread = threading.Thread(target=self._run, args=(ring,), name="vhost-user-queue", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop serving; no request is in flight when this returns."""
        if self._thread is not None:
            self._stopping = True
            os.write(self._stop_write, b"\0")
            self._thread.join()
            self._thread = None
            _close(self._stop_read)
            _close(self._stop_write)

    def close(self) -> None:
        """Stop, and let go of the descriptors."""
        self.stop()
        self.set_kick(-1)
        self.set_call(-1)

    def _run(self, ring: Vring) -> None:
        guard.enter_thread()
        self._session.export.enter_thread()
        slot = self._session.export.backend.new_slot()
        session = self._session
        block_size = session.export.block_size
        requests = blk.Requests(session.export, slot, ring.memory, block_size, session.caches_writes)
        poller = select.poll()
        poller.register(self._stop_read, select.POLLIN)
        poller.register(self.kick, select.POLLIN)
        try:
            while True:
                self._serve(ring, requests)
                ready = [fd for fd, _event in poller.poll()]
                if self._stop_read in ready:
                    return
                try:
                    if not os.read(self.kick, 8):
                        raise OSError(errno.EPIPE, "nobody will write to this pipe any more")
                except BlockingIOError:
                    pass  # somebody else has read it
        except (QobraError, OSError):
            self._session.disconnect()  # a driver that breaks the rules, or a descriptor that is none
        finally:
            self.base = ring.next
            slot.close()

    def _serve(self, ring: Vring, requests: blk.Requests) -> None:
        """Everything that is in the ring, until nothing has come while we asked to be told."""
        while True:
            ring.expect_kicks(False)
            while self._serve_one(ring, requests):
                pass
            ring.expect_kicks(True)
            if not self._serve_one(ring, requests):
                return

    def _serve_one(self, ring: Vring, requests: blk.Requests) -> bool:
        """The next request, if there is one and the queue is not to stop: a driver may always have another."""
        chain = None if self._stopping else ring.take()
        ring.memory.check()
        if chain is None:
            return False
        ring.put(chain.head, requests.perform(chain))
        if ring.should_signal():
            with self._calling:
                self._tell()
        return True

    def _tell(self) -> None:
        if self._call >= 0:
            try:
                os.write(self._call, _ONE)
            except BlockingIOError:
                pass  # it has been told more often than it has looked


class Session:
    """See the module. An :class:`~qobra.block.export.export.ExportClient`."""

    def __init__(self, export: VhostUserBlkExport, sock: socket.socket, ended: Callable[[Session], None]) -> None:
        self.export = export
        self.features = 0
        self.memory = Memory()
        self.write_cache = not export.writethrough
        self._socket = sock
        self._ended = ended
        self._protocol_features = 0
        self._queues = [Queue(self) for _ in range(export.num_queues)]
        self._thread = threading.Thread(target=self._run, name="vhost-user", daemon=True)

    def start(self) -> None:
        """Serve in a thread."""
        self._thread.start()

    def caches_writes(self) -> bool:
        """Whether writes may wait for a flush; not with a driver that does not know flushes."""
        return self.write_cache and bool(self.features >> blk.F_FLUSH & 1)

    def disconnect(self) -> None:
        """See :class:`~qobra.block.export.export.ExportClient`."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def hung_up(self) -> bool:
        """See :class:`~qobra.block.export.export.ExportClient`."""
        return hung_up(self._socket)

    def _run(self) -> None:
        guard.enter_thread()
        try:
            while (message := vu.receive(self._socket)) is not None:
                self._handle(message)
        except (QobraError, OSError):
            pass  # the front end is gone or talks nonsense: no one to tell
        finally:
            for queue in self._queues:
                queue.close()
            self.memory = Memory()  # at once: it may be gigabytes
            self._socket.close()
            self._ended(self)

    def _handle(self, message: vu.Message) -> None:
        fds = list(message.fds)
        try:
            answer = self._answer(message.request, message.payload, fds)
            failed = 0
        except QobraError:
            if not self._acknowledges(message):
                raise
            answer, failed = None, 1
        finally:
            for fd in fds:
                os.close(fd)
        if answer is not None:
            vu.reply(self._socket, message.request, answer)
        elif self._acknowledges(message):
            vu.reply(self._socket, message.request, vu.U64.pack(failed))

    def _acknowledges(self, message: vu.Message) -> bool:
        return bool(message.flags & vu.FLAG_NEED_REPLY and self._protocol_features >> vu.PROTOCOL_F_REPLY_ACK & 1)

    def _answer(self, request: int, payload: bytes, fds: list[int]) -> bytes | None:
        """Do what ``request`` says and return the reply, if it has one. Descriptors that are kept leave ``fds``."""
        match request:
            case vu.GET_FEATURES:
                return vu.U64.pack(blk.features(self.export) | 1 << vu.F_PROTOCOL_FEATURES)
            case vu.SET_FEATURES:
                self._set_features(_u64(payload))
            case vu.GET_PROTOCOL_FEATURES:
                return vu.U64.pack(_PROTOCOL_FEATURES)
            case vu.SET_PROTOCOL_FEATURES:
                self._protocol_features = _u64(payload) & _PROTOCOL_FEATURES
            case vu.GET_QUEUE_NUM:
                return vu.U64.pack(len(self._queues))
            case vu.GET_CONFIG:
                return self._get_config(payload)
            case vu.SET_CONFIG:
                self._set_config(payload)
            case vu.SET_OWNER | vu.SET_VRING_ERR:
                pass
            case vu.RESET_OWNER:
                for queue in self._queues:
                    queue.stop()
            case vu.SET_MEM_TABLE:
                self._set_memory(payload, fds)
            case vu.GET_MAX_MEM_SLOTS:
                return vu.U64.pack(vu.MAX_REGIONS)
            case vu.ADD_MEM_REG | vu.REM_MEM_REG:
                self._change_memory(request, payload, fds)
            case _:
                return self._answer_vring(request, payload, fds)
        return None

    def _answer_vring(self, request: int, payload: bytes, fds: list[int]) -> bytes | None:
        if request == vu.SET_VRING_ADDR:
            index, _flags, descriptors, used, available, _log = _unpack(vu.VRING_ADDR, payload)
            queue = self._queue(index)
            queue.stop()
            queue.addresses = (descriptors, available, used)
        elif request in (vu.SET_VRING_KICK, vu.SET_VRING_CALL):
            value = _u64(payload)
            queue = self._queue(value & vu.VRING_INDEX_MASK)
            fd = -1
            if not value & vu.VRING_NO_FD:
                fd = _notifier(fds)
            if request == vu.SET_VRING_CALL:
                queue.set_call(fd)
            else:
                queue.set_kick(fd)
                if not self.features >> vu.F_PROTOCOL_FEATURES & 1:
                    queue.enabled = True
        elif request in (vu.SET_VRING_NUM, vu.SET_VRING_BASE, vu.GET_VRING_BASE, vu.SET_VRING_ENABLE):
            index, number = _unpack(vu.VRING_STATE, payload)
            queue = self._queue(index)
            queue.stop()
            if request == vu.SET_VRING_NUM:
                queue.size = number
            elif request == vu.SET_VRING_BASE:
                queue.base = number & 0xFFFF
            elif request == vu.SET_VRING_ENABLE:
                queue.enabled = bool(number)
            else:
                queue.set_kick(-1)
                return vu.VRING_STATE.pack(index, queue.base)
        else:
            raise QobraError(f"vhost-user: message {request} is not supported", errno=errno.ENOTSUP)
        queue.start()
        return None

    def _set_features(self, features: int) -> None:
        offered = blk.features(self.export) | 1 << vu.F_PROTOCOL_FEATURES
        if features & ~offered:
            raise QobraError("vhost-user: features that were not offered", errno=errno.EPROTO)
        self.features = features

    def _get_config(self, payload: bytes) -> bytes:
        offset, size, flags = _unpack(vu.CONFIG, payload[: vu.CONFIG.size])
        space = blk.config(self.export, self.export.block_size, len(self._queues), self.write_cache)
        # Newer front ends ask for fields that came later, which read as zero.
        data = space[offset : offset + size].ljust(min(size, vu.MAX_PAYLOAD - vu.CONFIG.size), b"\0")
        return vu.CONFIG.pack(offset, len(data), flags) + data

    def _set_config(self, payload: bytes) -> None:
        offset, size, _flags = _unpack(vu.CONFIG, payload[: vu.CONFIG.size])
        body = payload[vu.CONFIG.size :]
        if offset != blk.WCE_OFFSET or size != 1 or len(body) < 1:
            raise QobraError("vhost-user-blk: only the write cache can be configured", errno=errno.EPROTO)
        self.write_cache = bool(body[0]) and not self.export.writethrough

    def _set_memory(self, payload: bytes, fds: list[int]) -> None:
        count, _padding = _unpack(vu.MEM_HEADER, payload[: vu.MEM_HEADER.size])
        if count > vu.MAX_FDS or count != len(fds) or len(payload) < vu.MEM_HEADER.size + count * vu.MEM_REGION.size:
            raise QobraError("vhost-user: malformed memory table", errno=errno.EPROTO)
        memory = Memory()
        for number, fd in enumerate(fds):
            fields = vu.MEM_REGION.unpack_from(payload, vu.MEM_HEADER.size + number * vu.MEM_REGION.size)
            memory = memory.plus(map_region(fd, *fields))
        self._use_memory(memory)

    def _change_memory(self, request: int, payload: bytes, fds: list[int]) -> None:
        _padding, guest, size, user, offset = _unpack(vu.MEM_SINGLE, payload)
        if request == vu.REM_MEM_REG:
            self._use_memory(self.memory.minus(guest, size, user))
        elif len(fds) != 1:
            raise QobraError("vhost-user: a memory region comes with one descriptor", errno=errno.EPROTO)
        else:
            self._use_memory(self.memory.plus(map_region(fds[0], guest, size, user, offset)))

    def _use_memory(self, memory: Memory) -> None:
        for queue in self._queues:
            queue.stop()
        self.memory = memory
        for queue in self._queues:
            queue.start()

    def _queue(self, index: int) -> Queue:
        if index >= len(self._queues):
            raise QobraError(f"vhost-user: no queue {index}", errno=errno.EPROTO)
        return self._queues[index]


def _u64(payload: bytes) -> int:
    return int(_unpack(vu.U64, payload)[0])


def _unpack(struct: Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != struct.size:
        raise QobraError("vhost-user: message of a wrong length", errno=errno.EPROTO)
    fields: tuple[int, ...] = struct.unpack(payload)
    return fields


def _notifier(fds: list[int]) -> int:
    """The descriptor by which one side tells the other, taken from ``fds``.

    Raises QobraError for anything but an eventfd, a pipe or a socket: a file always has something to read.
    """
    if len(fds) != 1:
        raise QobraError("vhost-user: one descriptor expected", errno=errno.EPROTO)
    fd = fds[0]
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        try:
            is_eventfd = os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
        except OSError:
            is_eventfd = not stat.S_IFMT(mode)  # what has no inode of a file system, as all that is like an eventfd
        if not is_eventfd:
            raise QobraError("vhost-user: notifications come by an eventfd or a pipe", errno=errno.EINVAL)
    os.set_blocking(fd, False)  # the front end may have left it to block whoever reads or writes it
    return fds.pop()


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
