"""Commands handed to a SCSI device of the host as they are, by Linux's SG_IO (version 3 of the sg interface)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct
from typing import Any

from qobra.block.protocol.host_device import HostDeviceNode
from qobra.errors import QobraError, strerror
from qobra.machine.blockdev import BlockFrontEnd
from qobra.machine.scsi.bus import Result, ScsiDevice
from qobra.machine.scsi.sense import CHECK_CONDITION, GOOD, INVALID_OPCODE, Sense

_SG_IO, _GET_SCSI_ID, _GET_VERSION = 0x2285, 0x2276, 0x2282
_OLDEST_VERSION = 30000
_NONE, _TO_DEVICE, _FROM_DEVICE = -1, -2, -3
_MAX_SENSE = 252
_BUSY = 0x08
_DRIVER_TIMEOUT, _DRIVER_SENSE = 0x06, 0x08
_HOST_BUSY, _HOST_TIMEOUT = 0x02, 0x03
_SCSI_ID = struct.Struct("5ihh2i")
PERSISTENT_RESERVE_IN, PERSISTENT_RESERVE_OUT = 0x5E, 0x5F
_LENGTHS = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
"""Bytes of a command block, by the upper three bits of its code."""


class _Header(ctypes.Structure):
    """sg_io_hdr of <scsi/sg.h>."""

    _fields_ = (
        ("interface_id", ctypes.c_int),
        ("direction", ctypes.c_int),
        ("command_length", ctypes.c_ubyte),
        ("max_sense", ctypes.c_ubyte),
        ("iovec_count", ctypes.c_ushort),
        ("length", ctypes.c_uint),
        ("data", ctypes.c_void_p),
        ("command", ctypes.c_void_p),
        ("sense", ctypes.c_void_p),
        ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("pack_id", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte),
        ("message_status", ctypes.c_ubyte),
        ("sense_written", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort),
        ("driver_status", ctypes.c_ushort),
        ("residual", ctypes.c_int),
        ("duration", ctypes.c_uint),
        ("info", ctypes.c_uint),
    )


def block_of(cdb: bytes) -> bytes:
    """A command block without what follows it. Raises Sense where its length cannot be told."""
    length = _LENGTHS.get(cdb[0] >> 5)
    if length is None:
        raise Sense(*INVALID_OPCODE)
    return cdb[:length]


def find_host_device(node: Any) -> HostDeviceNode | None:
    """The host's device that a node is, if need be below formats and filters that change nothing."""
    while node is not None and not isinstance(node, HostDeviceNode):
        node = node.children.get("file") if node.driver == "raw" else None
    return node


class HostUnit:
    """A logical unit of the host, open as ``node``."""

    def __init__(self, node: HostDeviceNode | None) -> None:
        """Raises QobraError, in QEMU's words, where ``node`` is none."""
        version = bytearray(4)
        try:
            if node is None:
                raise OSError(errno.ENOTSUP, "")
            fcntl.ioctl(node.fd, _GET_VERSION, version)
        except OSError as error:
            hint = "Is this a SCSI device?" if error.errno != errno.EPERM else None
            raise QobraError(f"cannot get SG_IO version number: {strerror(error)}", hint=hint)
        if int.from_bytes(version, "little") < _OLDEST_VERSION:
            raise QobraError("scsi generic interface too old")
        assert node is not None
        self._node = node
        manager = node.options.get("pr-manager")
        self.reservations: Any = node.layer.find_object(manager, "pr-manager") if manager is not None else None
        found = bytearray(_SCSI_ID.size)
        try:
            fcntl.ioctl(node.fd, _GET_SCSI_ID, found)
        except OSError:
            raise QobraError("SG_GET_SCSI_ID ioctl failed")
        self.peripheral_type: int = _SCSI_ID.unpack(found)[4]

    def execute(self, cdb: bytes, data: bytes, room: int, *, timeout_ms: int) -> Result:
        """Carry a command out; ``data`` is sent along, or at most ``room`` bytes come back. Raises OSError."""
        manager: Any = self.reservations
        if manager is not None and cdb[0] in (PERSISTENT_RESERVE_IN, PERSISTENT_RESERVE_OUT):
            status, sense, answer = manager.execute(self._node.fd, cdb, data)
            return Result(status, answer[:room], sense if status == CHECK_CONDITION else b"")
        size = len(data) or room
        buffer = ctypes.create_string_buffer(data, size) if size else None
        command = ctypes.create_string_buffer(cdb, len(cdb))
        sense_buffer = ctypes.create_string_buffer(_MAX_SENSE)
        header = _Header(
            interface_id=ord("S"),
            direction=_NONE if not size else _TO_DEVICE if data else _FROM_DEVICE,
            command_length=len(cdb),
            max_sense=_MAX_SENSE,
            length=size,
            data=ctypes.cast(buffer, ctypes.c_void_p) if buffer is not None else None,
            command=ctypes.cast(command, ctypes.c_void_p),
            sense=ctypes.cast(sense_buffer, ctypes.c_void_p),
            timeout=timeout_ms,
        )
        fcntl.ioctl(self._node.fd, _SG_IO, header)
        return _result(header, buffer.raw if buffer is not None and not data else b"", sense_buffer.raw)


def _result(header: _Header, data: bytes, sense: bytes) -> Result:
    if header.driver_status & 0x0F == _DRIVER_TIMEOUT or header.host_status in (_HOST_BUSY, _HOST_TIMEOUT):
        return Result(_BUSY)
    if header.host_status:
        raise OSError(errno.EIO, f"host status {header.host_status:#x}")
    status = header.status & 0x3E
    if header.driver_status & _DRIVER_SENSE and status == GOOD and header.sense_written:
        status = CHECK_CONDITION
    kept = min(max(len(data) - header.residual, 0), len(data))
    return Result(status, data[:kept], sense[: header.sense_written] if status == CHECK_CONDITION else b"")


class PassedThrough(ScsiDevice, BlockFrontEnd):
    """What ``scsi-generic`` and ``scsi-block`` have in common: the host's device carries out the commands."""

    io_timeout: Any
    """How long the host's device has for a command, in seconds."""

    def realize(self) -> None:
        """Take the host's device. Raises QobraError where the drive is none."""
        backend = self.realize_block()
        self._unit = HostUnit(find_host_device(backend.node))
        self.move_to_adapter(backend)

    def state_blocked(self) -> str | None:
        """Why the device cannot be migrated."""
        return "the state of the host's device cannot be moved"

    def carry_out(self, cdb: bytes, data: bytes, room: int) -> Result:
        """Carry out one command; the timeout is in seconds."""
        return self._unit.execute(block_of(cdb), data, room, timeout_ms=self.io_timeout * 1000)
