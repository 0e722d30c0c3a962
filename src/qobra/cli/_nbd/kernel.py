"""``-c`` and ``-d``: the kernel's NBD client (drivers/block/nbd.c), by ioctl."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from typing import TYPE_CHECKING

from qobra.cli._tool.report import ToolError
from qobra.errors import QobraError, strerror
from qobra.nbd import protocol as p

if TYPE_CHECKING:
    from qobra.cli._nbd.serve import Server

_SET_SOCK = 0xAB00
_SET_BLOCK_SIZE = 0xAB01
_DO_IT = 0xAB03
_CLEAR_SOCK = 0xAB04
_CLEAR_QUEUE = 0xAB05
_SET_SIZE_BLOCKS = 0xAB07
_DISCONNECT = 0xAB08
_SET_FLAGS = 0xAB0A

SECTOR = 512


def connect(server: Server, device: str, name: str) -> threading.Thread:
    """Let the kernel use the export ``name`` as ``device``; the thread ends when it is disconnected.

    Raises ToolError.
    """
    from qobra.nbd.connection import open_handshake

    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ToolError(f"Failed to open {device}: {strerror(error)}")
    ours, theirs = socket.socketpair()
    try:
        server.serve(ours)
        handshake, _ = open_handshake(theirs, name)
        info = handshake.go(name)
        sectors = info.size // SECTOR
        for request, argument, failure in (
            (_SET_SOCK, theirs.fileno(), "Failed to set NBD socket"),
            (_SET_BLOCK_SIZE, SECTOR, "Failed setting NBD block size"),
            (_SET_SIZE_BLOCKS, sectors, "Failed setting size (in blocks)"),
        ):
            _configure(fd, request, argument, failure)
        try:
            fcntl.ioctl(fd, _SET_FLAGS, info.flags)
        except OSError as error:
            if error.errno != errno.ENOTTY or info.flags & p.FLAG_READ_ONLY:
                raise
    except (OSError, QobraError) as error:
        os.close(fd)
        theirs.close()
        raise ToolError(f"Failed to set up {device}: {strerror(error)}" if isinstance(error, OSError) else str(error))

    def run() -> None:
        try:
            fcntl.ioctl(fd, _DO_IT)
        except OSError:
            pass  # EPIPE: disconnected while a request was under way
        try:
            fcntl.ioctl(fd, _CLEAR_QUEUE)
            fcntl.ioctl(fd, _CLEAR_SOCK)
        except OSError:
            pass
        os.close(fd)
        theirs.close()

    thread = threading.Thread(target=run, name="kernel NBD client", daemon=True)
    thread.start()
    # It reads the partition table, and is answered only while the client runs.
    threading.Thread(target=_look, args=(device,), name="partition table", daemon=True).start()
    return thread


def _configure(fd: int, request: int, argument: int, failure: str) -> None:
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        raise QobraError(failure, errno=error.errno)


def _look(device: str) -> None:
    """Open the device, upon which the kernel reads its partition table."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        pass  # disconnected meanwhile


def disconnect(device: str) -> None:
    """End the kernel's use of ``device``. Raises ToolError."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ToolError(f"Cannot open {device}: {strerror(error)}")
    try:
        for request in (_CLEAR_QUEUE, _DISCONNECT, _CLEAR_SOCK):
            try:
                fcntl.ioctl(fd, request)
            except OSError:
                pass  # it was not connected, which is what was asked for
    finally:
        os.close(fd)
