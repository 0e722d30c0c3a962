"""The ``vhost-user-blk`` export: a node as a virtio disk that another process puts into its machine.

The front end (QEMU's ``vhost-user-blk-pci``, libblkio) connects to a unix socket and shares the guest's memory;
requests are read from virtqueues there, and no data go through the socket.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

from qobra.block.export.export import Export, kinds
from qobra.errors import QobraError

if TYPE_CHECKING:
    from qobra.block.export.vhost_user_blk.session import Session
    from qobra.block.layer import BlockLayer
    from qobra.block.node import BlockNode

MIN_BLOCK = 512
MAX_BLOCK = 2 << 20


@kinds.register("vhost-user-blk")
class VhostUserBlkExport(Export):
    """Listens on ``addr``; one front end at a time, the next one may come when it has left."""

    type_name = "vhost-user-blk"

    def __init__(self, layer: BlockLayer, options: dict[str, Any], node: BlockNode, writable: bool) -> None:
        self._address: dict[str, Any] = options["addr"]
        self.block_size: int = options.get("logical-block-size") or MIN_BLOCK
        self.num_queues: int = options.get("num-queues", 1)
        self._listener: socket.socket | None = None
        self._path: str | None = None
        self._acceptor: threading.Thread | None = None
        self._session: Session | None = None
        self._stopping = False
        self._wake_read, self._wake_write = -1, -1
        super().__init__(layer, options, node, writable)

    def start(self) -> None:
        from qobra.nbd.sockets import listen

        _check_block_size(self.id, self.block_size)
        if not self.num_queues:
            raise QobraError("num-queues must be greater than 0")
        if self._address["type"] not in ("unix", "fd"):
            raise QobraError("Only socket address types 'unix' and 'fd' are supported")
        self._listener = listen(self._address, backlog=1, find_fd=self.layer.find_fd)[0]
        if self._address["type"] == "unix" and not self._address.get("abstract"):
            self._path = os.path.abspath(self._address["path"])  # a daemon leaves its directory
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._acceptor = threading.Thread(target=self._accept_all, name="vhost-user-accept", daemon=True)
        self._acceptor.start()

    def stop(self) -> None:
        self._stopping = True
        acceptor = self._acceptor
        if acceptor is not None:
            # Whoever ends the export and whoever closes the machine may both be here.
            os.write(self._wake_write, b"\0")
            acceptor.join()
            self._acceptor = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            if self._path is not None:
                try:
                    os.unlink(self._path)
                except OSError:
                    pass

    def release(self) -> None:
        self.stop()
        for fd in (self._wake_read, self._wake_write):
            if fd >= 0:
                os.close(fd)
        self._wake_read = self._wake_write = -1

    def _accept_all(self) -> None:
        from qobra.block.export.vhost_user_blk.session import Session

        assert self._listener is not None
        while not self._stopping:
            poller = select.poll()
            poller.register(self._wake_read, select.POLLIN)
            if self._session is None:
                poller.register(self._listener, select.POLLIN)
            ready = [fd for fd, _event in poller.poll()]
            if self._wake_read in ready:
                os.read(self._wake_read, 64)
                continue
            try:
                sock, _address = self._listener.accept()
            except OSError:
                continue
            sock.setblocking(True)
            session = Session(self, sock, self._ended)
            try:
                self.attach(session)
            except QobraError:
                sock.close()
                continue
            self._session = session
            session.start()

    def _ended(self, session: Session) -> None:
        self._session = None
        if not self._stopping:
            os.write(self._wake_write, b"\0")
        self.detach(session)


def _check_block_size(name: str, value: int) -> None:
    text = f"Property {name}.logical-block-size doesn't take value"
    if not MIN_BLOCK <= value <= MAX_BLOCK:
        raise QobraError(f"{text} {value} (minimum: {MIN_BLOCK}, maximum: {MAX_BLOCK})")
    if value & (value - 1):
        raise QobraError(f"{text} '{value}', it's not a power of 2")
