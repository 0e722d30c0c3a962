"""``scsi-hd``: a SCSI disk."""

from __future__ import annotations

from qobra.block import accounting
from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.scsi import sense
from qobra.machine.scsi.opcodes import MULTIMEDIA, UNMAP, WRITE_SAME, WRITE_SAME_16
from qobra.machine.scsi.removable import RemovableDisk
from qobra.machine.scsi.sense import Sense
from qobra.machine.scsi.transfer import block_range
from qobra.object.property import Bool, Int

_UNMAP_BIT = 0x08
_HEADS, _STEP_RATE, _ROTATIONS = 16, 200, 5400


@registry.register("scsi-hd")
class ScsiHd(RemovableDisk):
    """A direct-access block device, whose medium can be changed if it is ``removable``."""

    type_name = "scsi-hd"
    description = "virtual SCSI disk"

    is_removable = has_tray = False

    removable = Bool(False)
    dpofua = Bool(False)
    lcyls = Int(0, type="uint32")
    lheads = Int(0, type="uint32")
    lsecs = Int(0, type="uint32")

    def realize(self) -> None:
        if self.backend is None:
            raise QobraError("drive property not set")
        self.is_removable = self.has_tray = bool(self.removable)
        backend = self.realize_disk(512)
        if backend.node is None and not self.is_removable:
            raise QobraError("Device needs media, but drive is empty")
        self.takes_fua = self.dpofua
        backend.resized.append(self._resized)

    def unrealize(self) -> None:
        if self.backend is not None and self._resized in self.backend.resized:
            self.backend.resized.remove(self._resized)

    def _resized(self) -> None:
        self.tell(sense.CAPACITY_CHANGED)

    def mode_pages(self) -> dict[int, bytes]:
        cylinders = min(max(self.blocks // (16 * 63), 2), 0xFFFFFF)
        # Precompensation and reduced current from the last cylinder on, that is never.
        rigid = bytearray(22)
        rigid[0:3] = rigid[4:7] = rigid[7:10] = cylinders.to_bytes(3, "big")
        rigid[3] = _HEADS
        rigid[10:12] = _STEP_RATE.to_bytes(2, "big")
        rigid[12:15] = b"\xff\xff\xff"
        rigid[18:20] = _ROTATIONS.to_bytes(2, "big")
        flexible = bytearray(30)
        flexible[0:2] = (5000).to_bytes(2, "big")
        flexible[2], flexible[3] = _HEADS, 63
        flexible[4:6] = self.logical_size.to_bytes(2, "big")
        flexible[6:8] = flexible[8:10] = flexible[10:12] = min(cylinders, 0xFFFF).to_bytes(2, "big")
        flexible[12:19] = bytes((0, 1, 1, 0, 1, 1, 1))
        flexible[26:28] = _ROTATIONS.to_bytes(2, "big")
        return super().mode_pages() | {0x04: bytes(rigid), 0x05: bytes(flexible)}

    def other_command(self, cdb: bytes, data: bytes) -> bytes:
        if cdb[0] == UNMAP:
            return self._unmap(cdb, data)
        if cdb[0] in (WRITE_SAME, WRITE_SAME_16):
            return self._write_same(cdb, data)
        if cdb[0] in MULTIMEDIA:
            raise Sense(*sense.INVALID_FIELD)  # known, but not for this type of device
        return super().other_command(cdb, data)

    def _unmap(self, cdb: bytes, data: bytes) -> bytes:
        backend = self.writable()
        if cdb[1] & 1:
            raise Sense(*sense.INVALID_FIELD)
        data = data[: int.from_bytes(cdb[7:9], "big")]
        if not data:
            return b""
        if len(data) < 8:
            raise Sense(*sense.INVALID_PARAMETER_LENGTH)
        if len(data) < int.from_bytes(data[0:2], "big") + 2 or len(data) < int.from_bytes(data[2:4], "big") + 8:
            raise Sense(*sense.INVALID_PARAMETER_LENGTH)
        ranges = []
        for at in range(8, 8 + int.from_bytes(data[2:4], "big") // 16 * 16, 16):
            block, count = int.from_bytes(data[at : at + 8], "big"), int.from_bytes(data[at + 8 : at + 12], "big")
            ranges.append(self.on_medium(block, count, accounting.UNMAP))
        for offset, length in ranges:
            if length:
                backend.discard(offset, length)
        return b""

    def _write_same(self, cdb: bytes, data: bytes) -> bytes:
        backend = self.writable()
        block, count = block_range(cdb)
        if cdb[1] & 0x16 or not count:
            raise Sense(*sense.INVALID_FIELD)
        offset, length = self.on_medium(block, count, accounting.WRITE)
        pattern = data[: self.logical_size]
        if cdb[1] & 1 or not any(pattern):
            backend.write_zeroes(offset, length, may_unmap=bool(cdb[1] & _UNMAP_BIT))
            return b""
        if len(pattern) < self.logical_size:
            raise Sense(*sense.INVALID_FIELD)
        step = max(1, (512 << 10) // self.logical_size)
        while count:
            now = min(count, step)
            backend.write(offset, pattern * now)
            offset += now * self.logical_size
            count -= now
        return b""
