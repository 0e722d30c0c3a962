"""virtio-blk: a disk (virtio 1.2, section 5.2)."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import TYPE_CHECKING, Any

from qobra.block.accounting import READ, UNMAP, WRITE
from qobra.errors import QobraError, errno_of
from qobra.machine.ata import geometry
from qobra.machine.blockdev import BlockFrontEnd
from qobra.machine.devices import registry
from qobra.machine.virtio.device import F_ANY_LAYOUT
from qobra.machine.virtio.pci import VirtioPci, register_variants
from qobra.machine.virtio.queue import QUEUE_MAX, Buffer, Queue, VirtioError, split_views
from qobra.machine.virtio.served import ServedDevice
from qobra.machine.vmstate import VmState, flag
from qobra.object.property import Bool, Int

if TYPE_CHECKING:
    from qobra.block.error_policy import ErrorPolicy

F_SEG_MAX, F_GEOMETRY, F_RO, F_BLK_SIZE, F_SCSI, F_FLUSH, F_TOPOLOGY = 2, 4, 5, 6, 7, 9, 10
F_CONFIG_WCE, F_MQ, F_DISCARD, F_WRITE_ZEROES = 11, 12, 13, 14
T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2

_HEADER = Struct("<IIQ")
_SEGMENT = Struct("<QII")
_CONFIG = Struct("<QIIHBBIBBHIBxHIIIIIB")
_SECTOR = 512
_ID_LENGTH = 20
_UNMAP = 1
_WCE_OFFSET = 32
_AUTO_QUEUES = 0xFFFF
_MAX_QUEUES = 1024
_MAX_TRANSFER = (1 << 31) - _SECTOR
_MAX_SECTORS = _MAX_TRANSFER // _SECTOR
_GEOMETRY_LIMITS = (65535, 255, 255)


@registry.register("virtio-blk-device")
class VirtioBlk(ServedDevice, BlockFrontEnd):
    """A disk with one request queue or more. Requests are served in the iothread, or in the device's own thread."""

    type_name = "virtio-blk-device"
    device_number = 2
    config_size = 57

    config_wce = Bool(True)
    scsi = Bool(False)
    request_merging = Bool(True)
    num_queues = Int(_AUTO_QUEUES, type="uint16")
    queue_size = Int(256, type="uint16")
    seg_max_adjust = Bool(True)
    discard = Bool(True)
    report_discard_granularity = Bool(True)
    write_zeroes = Bool(True)
    max_discard_sectors = Int(_MAX_SECTORS, type="uint32")
    max_write_zeroes_sectors = Int(_MAX_SECTORS, type="uint32")
    enable_wce_if_config_wce = Bool(True, name="x-enable-wce-if-config-wce")
    cyls = Int(0, type="uint32")
    heads = Int(0, type="uint32")
    secs = Int(0, type="uint32")
    lcyls = Int(0, type="uint32")
    lheads = Int(0, type="uint32")
    lsecs = Int(0, type="uint32")

    vmstate = VmState(flag("writeback"))

    # -- life

    def realize(self) -> None:
        if self.backend is None:
            raise QobraError("drive property not set")
        if self.num_queues == _AUTO_QUEUES:
            # One for each CPU, where each can have an interrupt of its own.
            many = self.board.first_cpus if isinstance(self.parent, VirtioPci) else 1
            self.values["num-queues"] = max(1, min(many, _MAX_QUEUES))
        if self.num_queues == 0:
            raise QobraError("num-queues property must be larger than 0")
        size = self.queue_size
        if size <= 2:
            raise QobraError(f"invalid queue-size property ({size}), must be > 2")
        if size > QUEUE_MAX or size & (size - 1):
            raise QobraError(f"invalid queue-size property ({size}), must be a power of 2 (max {QUEUE_MAX})")
        if self.num_queues > _MAX_QUEUES:
            raise QobraError(f"number of queues ({self.num_queues}) exceeds the limit of {_MAX_QUEUES}")
        backend = self.realize_block()
        if backend.node is None:
            raise QobraError("Device needs media, but drive is empty")
        (self.cyls, self.heads, self.secs), _ = geometry.choose(self, _GEOMETRY_LIMITS)
        for name, wanted, value in (
            ("max-discard-sectors", self.discard, self.max_discard_sectors),
            ("max-write-zeroes-sectors", self.write_zeroes, self.max_write_zeroes_sectors),
        ):
            if wanted and not 1 <= value <= _MAX_SECTORS:
                raise QobraError(f"invalid {name} property ({value}), must be between 1 and {_MAX_SECTORS}")
        if self.scsi and self.transport.modern:
            raise QobraError("Please set scsi=off for virtio-blk devices in order to use virtio 1.0")
        for _ in range(self.num_queues):
            self.add_queue(size)
        self._first_writeback = backend.writeback
        backend.resized.append(self._resized)
        self.start_serving(f"blk {self.qom_path}")

    def unrealize(self) -> None:
        self.stop_serving()
        if self.backend is not None:
            self.backend.resized.remove(self._resized)
        self.queues.clear()

    def device_reset(self) -> None:
        self.forget_requests()
        if self.backend is not None:
            self.backend.writeback = self._first_writeback

    def running_changed(self) -> None:
        super().running_changed()
        if self.running and self.backend is not None and not self.has(F_CONFIG_WCE):
            # A driver that does not flush must not need to.
            self.backend.writeback = self.has(F_FLUSH)
        if self.backend is not None and not self.tree.closing:
            try:
                self.backend.move(self.iothread if self.running else None)
            except QobraError:
                pass  # another user keeps the node where it is, which slows nobody down

    # -- features and configuration

    def device_features(self) -> int:
        assert self.backend is not None
        bits = [F_SEG_MAX, F_GEOMETRY, F_TOPOLOGY, F_BLK_SIZE]
        if self.config_wce:
            bits.append(F_CONFIG_WCE)
        if self.discard:
            bits.append(F_DISCARD)
        if self.write_zeroes:
            bits.append(F_WRITE_ZEROES)
        if self.backend.writeback or (self.config_wce and self.enable_wce_if_config_wce):
            bits.append(F_FLUSH)
        if self._read_only:
            bits.append(F_RO)
        if self.num_queues > 1:
            bits.append(F_MQ)
        return sum(1 << bit for bit in bits)

    def legacy_features(self) -> int:
        return super().legacy_features() & ~(1 << F_ANY_LAYOUT) | 1 << F_SCSI

    @property
    def _read_only(self) -> bool:
        return self.backend is not None and self.backend.node is not None and self.backend.node.read_only

    def read_config(self) -> bytes:
        backend, block = self.backend, self.logical_size
        assert backend is not None
        sectors = backend.length // _SECTOR
        granularity = self.granularity if self.report_discard_granularity else 0
        return _CONFIG.pack(
            sectors,
            0,
            self.queue_size - 2 if self.seg_max_adjust else 126,
            self.cyls,
            self.heads,
            self.secs & ~((block // _SECTOR) - 1),
            block,
            (self.physical_size // block).bit_length() - 1,
            0,
            self.min_io_size // block & 0xFFFF,
            self.opt_io_size // block,
            int(backend.writeback),
            self.num_queues,
            self.max_discard_sectors if self.discard else 0,
            1 if self.discard else 0,
            max(granularity, block) // _SECTOR if self.discard else 0,
            self.max_write_zeroes_sectors if self.write_zeroes else 0,
            1 if self.write_zeroes else 0,
            int(self.write_zeroes),
        )

    def write_config(self, offset: int, data: bytes) -> None:
        if offset <= _WCE_OFFSET < offset + len(data) and self.backend is not None:
            self.backend.writeback = bool(data[_WCE_OFFSET - offset])

    def _resized(self) -> None:
        self.machine.control.post(self.notify_config)

    # -- requests

    def kicked(self, queue: Queue) -> None:
        self.serve(queue)

    def policies(self) -> Iterator[ErrorPolicy | None]:
        if self.backend is not None:
            yield self.backend.policy

    def serve_one(self, queue: Queue, buffer: Buffer) -> None:
        readable, writable = buffer.readable, buffer.writable
        if not readable or not writable:
            raise VirtioError("virtio-blk missing headers")
        header, data = split_views(readable, _HEADER.size)
        raw = b"".join(header)
        if len(raw) < _HEADER.size:
            raise VirtioError("virtio-blk request outhdr too short")
        kind, _priority, sector = _HEADER.unpack(raw)
        room = buffer.writable_length - 1
        answer, status_view = split_views(writable, room)
        try:
            status, written = self._carry_out(kind, sector, data, answer, room)
        except (OSError, QobraError) as error:
            is_read = kind == T_IN
            policy = self.backend.policy if self.backend is not None else None
            action = policy.decide(error, is_read=is_read) if policy is not None and errno_of(error) else "report"
            if action == "stop":
                self.hold(queue, buffer)
                return
            status, written = (S_OK if action == "ignore" else S_IOERR), 0
        status_view[-1][-1] = status
        self.push(queue, buffer, written + 1)

    def _carry_out(self, kind: int, sector: int, data: Any, answer: Any, room: int) -> tuple[int, int]:
        backend = self.backend
        if backend is None:
            return S_IOERR, 0
        if kind == T_IN:
            if not self._in_range(sector, room, READ):
                return S_IOERR, 0
            backend.read_views(sector * _SECTOR, answer)
            return S_OK, room
        if kind == T_OUT:
            length = sum(map(len, data))
            if not self._in_range(sector, length, WRITE) or self._read_only:
                return S_IOERR, 0
            backend.write(sector * _SECTOR, data[0] if len(data) == 1 else b"".join(data))
            return S_OK, 0
        if kind == T_FLUSH:
            backend.flush()
            return S_OK, 0
        if kind == T_GET_ID:
            name = ((self.serial or "").encode() + b"\0")[: min(_ID_LENGTH, room)]
            position = 0
            for view in answer:
                part = name[position : position + len(view)]
                view[: len(part)] = part
                position += len(part)
            return S_OK, position
        if kind in (T_DISCARD, T_WRITE_ZEROES):
            return self._discard_or_zero(kind, b"".join(data)), 0
        return S_UNSUPP, 0

    def _discard_or_zero(self, kind: int, data: bytes) -> int:
        backend = self.backend
        assert backend is not None
        zeroing = kind == T_WRITE_ZEROES
        if not (self.write_zeroes if zeroing else self.discard) or len(data) != _SEGMENT.size:
            return S_UNSUPP
        sector, count, flags = _SEGMENT.unpack(data)
        limit = self.max_write_zeroes_sectors if zeroing else self.max_discard_sectors
        if flags & ~_UNMAP or (flags & _UNMAP and not zeroing):
            return S_UNSUPP
        invalid = WRITE if zeroing else UNMAP
        if count > limit:
            backend.accounting.add_invalid(invalid)
            return S_IOERR
        if not self._in_range(sector, count * _SECTOR, invalid) or self._read_only:
            return S_IOERR
        if zeroing:
            backend.write_zeroes(sector * _SECTOR, count * _SECTOR, may_unmap=bool(flags & _UNMAP))
        else:
            backend.discard(sector * _SECTOR, count * _SECTOR)
        return S_OK

    def _in_range(self, sector: int, length: int, kind: int) -> bool:
        """Whether the device has this range; it counts as an invalid request of ``kind`` if not."""
        backend, offset, block = self.backend, sector * _SECTOR, self.logical_size
        assert backend is not None
        if length % block or offset % block or length > _MAX_TRANSFER or offset + length > backend.length:
            backend.accounting.add_invalid(kind)
            return False
        return True


class VirtioBlkPciBase(VirtioPci):
    """virtio-blk as a PCI function."""

    type_name = "virtio-blk-pci-base"
    abstract = True
    backend_type = "virtio-blk-device"
    device_id = 0x1001
    class_id = 0x0100


@registry.register("virtio-blk-pci")
class VirtioBlkPci(VirtioBlkPciBase):
    """A disk that old and new drivers can use."""

    type_name = "virtio-blk-pci"


register_variants(VirtioBlkPciBase, "virtio-blk-pci")
