"""What disks and CD drives have in common: identity, mode pages, capacity, reading and writing (SBC-3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.block import accounting
from qobra.machine.blockdev import BlockFrontEnd
from qobra.machine.scsi import sense, transfer
from qobra.machine.scsi.bus import Result, ScsiDevice
from qobra.machine.scsi.opcodes import (
    FORMAT_UNIT,
    INQUIRY,
    MODE_SELECT,
    MODE_SELECT_10,
    MODE_SENSE,
    MODE_SENSE_10,
    PREVENT_REMOVAL,
    READ,
    READ_CAPACITY,
    RELEASE,
    RELEASE_10,
    REQUEST_SENSE,
    RESERVE,
    RESERVE_10,
    SEEK_10,
    SERVICE_ACTION_IN,
    START_STOP,
    SYNCHRONIZE,
    TEST_UNIT_READY,
    VERIFY,
    WRITE,
)
from qobra.machine.scsi.sense import Sense
from qobra.machine.vmstate import VmState, flag
from qobra.object.property import Int, String

if TYPE_CHECKING:
    from qobra.block.backend import BlockBackend

_MAX_TRANSFER = 1 << 30
_DEFAULT_GRANULARITY = 4096


class ScsiDisk(ScsiDevice, BlockFrontEnd):
    """A block device behind SCSI. Subclasses are the peripheral device types."""

    type_name = "scsi-disk-base"
    abstract = True
    supports_iothreads = True
    peripheral_type = 0
    default_product = "QEMU HARDDISK"
    takes_fua = False
    """Whether mode sense says that writes may ask for stable storage."""

    ver = String(type="str")
    vendor = String(type="str")
    product = String(type="str")
    device_id = String(type="str", name="device_id")
    wwn = Int(0, type="uint64")
    port_wwn = Int(0, type="uint64", name="port_wwn")
    port_index = Int(0, type="uint16", name="port_index")
    max_unmap_size = Int(1 << 30, type="uint64", name="max_unmap_size")
    max_io_size = Int((1 << 31) - 1, type="uint64", name="max_io_size")
    scsi_version = Int(5, type="int32", name="scsi_version")
    rotation_rate = Int(0, type="uint16", name="rotation_rate")

    vmstate = VmState(flag("writeback"))

    def realize_disk(self, block_size: int) -> BlockBackend:
        """Take the backend; ``block_size`` is the unit of addresses unless the user said otherwise."""
        is_disk, chosen = self.peripheral_type == 0, bool(self.logical_block_size)
        backend = self.realize_block(writable=None if is_disk else False, resizable=is_disk)
        assert backend.policy is not None
        backend.policy.counts_all_transfers = True  # as in QEMU, of disks on this bus alone
        if not chosen:
            self.logical_size = block_size
        if self.discard_granularity == 0xFFFFFFFF:
            self.granularity = self.discard_granularity = max(_DEFAULT_GRANULARITY, self.logical_size)
        for name, usual in (("vendor", "QEMU"), ("product", self.default_product), ("ver", "2.5+")):
            if self.values.get(name) is None:
                self.values[name] = usual
        self.move_to_adapter(backend)
        return backend

    # -- commands

    def carry_out(self, cdb: bytes, data: bytes, room: int) -> Result:
        answer = self.command(cdb, data, room)
        if len(answer) < room:
            # As much comes as the command allows for, with zeroes at its end.
            way, length = transfer.expected(cdb, self.logical_size)
            if way == transfer.TO_HOST:
                answer = answer.ljust(length, b"\0")
        return Result(data=answer[:room])

    def command(self, cdb: bytes, data: bytes, room: int) -> bytes:
        code = cdb[0]
        if code == INQUIRY:
            return self._inquiry(cdb)
        if code == REQUEST_SENSE:
            return self._request_sense(cdb)
        if code == TEST_UNIT_READY:
            self.medium()
            return b""
        if code == SEEK_10:
            self.medium()
            self.on_medium(int.from_bytes(cdb[2:6], "big"), 1, accounting.READ)
            return b""
        if code in READ:
            return self._read(cdb)
        if code in WRITE:
            return self._write(cdb, data)
        if code in VERIFY:
            if cdb[1] & 6:
                raise Sense(*sense.INVALID_FIELD)
            self.medium()
            return b""
        if code in (MODE_SENSE, MODE_SENSE_10):
            return self._mode_sense(cdb)
        if code in (MODE_SELECT, MODE_SELECT_10):
            return self._mode_select(cdb, data)
        if code == READ_CAPACITY:
            return self._read_capacity(cdb)
        if code == SERVICE_ACTION_IN:
            if cdb[1] & 0x1F != 0x10:
                raise Sense(*sense.INVALID_FIELD)
            return self._read_capacity_16(cdb)
        if code == SYNCHRONIZE:
            self.medium().flush()
            return b""
        if code in (RESERVE, RELEASE, RESERVE_10, RELEASE_10):
            # There is no other initiator; parts of a unit, and units on behalf of others, cannot be reserved.
            if cdb[1] & (1 if code in (RESERVE, RELEASE) else 3):
                raise Sense(*sense.INVALID_FIELD)
            return b""
        if code == FORMAT_UNIT:
            self.medium()
            return b""
        if code == START_STOP:
            return self.start_stop(cdb)
        if code == PREVENT_REMOVAL:
            return self.prevent_removal(cdb)
        return self.other_command(cdb, data)

    def other_command(self, cdb: bytes, data: bytes) -> bytes:
        """A command of the peripheral device type alone. Raises Sense."""
        raise Sense(*sense.INVALID_OPCODE)

    def start_stop(self, cdb: bytes) -> bytes:
        """START STOP UNIT."""
        return b""

    def prevent_removal(self, cdb: bytes) -> bytes:
        """PREVENT ALLOW MEDIUM REMOVAL."""
        return b""

    def medium(self) -> BlockBackend:
        """The backend with a medium in it. Raises Sense."""
        backend = self.backend
        if backend is None or backend.node is None:
            raise Sense(*sense.NO_MEDIUM)
        return backend

    @property
    def blocks(self) -> int:
        """The number of blocks of the medium."""
        return self.backend.length // self.logical_size if self.backend is not None else 0

    # -- identity

    def _inquiry(self, cdb: bytes) -> bytes:
        length = int.from_bytes(cdb[3:5], "big")
        if cdb[1] & 1:
            return self._vital_data(cdb[2])[:length]
        if cdb[2]:
            raise Sense(*sense.INVALID_FIELD)
        answer = bytearray(36)
        answer[0] = self.peripheral_type
        answer[1] = 0x80 if self.is_removable else 0
        answer[2], answer[3] = self.scsi_version, 0x12 if self.scsi_version > 2 else 2
        answer[4] = max(length, len(answer)) - 5 & 0xFF  # what follows, with the zeroes that fill the answer up
        answer[7] = 0x12 if self.scsi_bus.queues else 0x10  # wide, command queueing
        answer[8:16] = self.vendor.encode()[:8].ljust(8)
        answer[16:32] = self.product.encode()[:16].ljust(16)
        answer[32:36] = self.ver.encode()[:4].ljust(4)
        return bytes(answer)[:length]

    def _vital_data(self, page: int) -> bytes:
        pages = {0x00: b"", 0x83: self._identifiers()}
        if self.serial:
            pages[0x80] = self.serial.encode()[:36]
        if self.peripheral_type == 0:
            pages |= {0xB0: self._block_limits(), 0xB1: self._characteristics(), 0xB2: self._provisioning()}
        pages[0x00] = bytes(sorted(pages))
        # Answered by every kind of drive, though only disks list them.
        pages.setdefault(0xB1, self._characteristics())
        pages.setdefault(0xB2, self._provisioning())
        if page not in pages:
            raise Sense(*sense.INVALID_FIELD)
        body = pages[page]
        return bytes((self.peripheral_type, page)) + len(body).to_bytes(2, "big") + body

    def _identifiers(self) -> bytes:
        name = self.device_id or self.serial or (self.backend.name if self.backend is not None else "") or ""
        text = name.encode()[:235]
        body = bytes((0x02, 0x00, 0x00, len(text))) + text if text else b""
        if self.wwn:
            body += bytes((0x01, 0x03, 0x00, 8)) + self.wwn.to_bytes(8, "big")
        if self.port_wwn:
            body += bytes((0x61, 0x93, 0x00, 8)) + self.port_wwn.to_bytes(8, "big")
        return body

    def _block_limits(self) -> bytes:
        block = self.logical_size
        body = bytearray(60)
        body[0] = 1  # a length of zero in WRITE SAME is refused
        body[2:4] = (self.min_io_size // block & 0xFFFF).to_bytes(2, "big")
        body[4:8] = (self.max_io_size // block & 0xFFFFFFFF).to_bytes(4, "big")
        body[8:12] = (self.opt_io_size // block).to_bytes(4, "big")
        body[16:20] = min(self.max_unmap_size // block, 0xFFFFFFFF).to_bytes(4, "big")
        body[20:24] = (255).to_bytes(4, "big")
        body[24:28] = (max(self.granularity, block) // block).to_bytes(4, "big")
        body[32:40] = (self.max_io_size // block).to_bytes(8, "big")
        return bytes(body)

    def _characteristics(self) -> bytes:
        return int(self.rotation_rate or 0).to_bytes(2, "big") + bytes(58)

    def _provisioning(self) -> bytes:
        # UNMAP and WRITE SAME may deallocate.
        return bytes((0, 0xE0 if self.granularity else 0, 2 if self.granularity else 1, 0))

    def _request_sense(self, cdb: bytes) -> bytes:
        return (self.last_sense or Sense(sense.NO_SENSE, 0)).data()[: cdb[4]]

    # -- reading and writing

    def _range(self, cdb: bytes, kind: int = accounting.READ) -> tuple[int, int]:
        self.medium()
        return self.on_medium(*transfer.block_range(cdb), kind)

    def on_medium(self, block: int, count: int, kind: int) -> tuple[int, int]:
        """Offset and length of these blocks. Outside of the disk: counts an invalid ``kind``, and raises Sense."""
        if block + count > self.blocks:
            self.medium().accounting.add_invalid(kind)
            raise Sense(*sense.LBA_OUT_OF_RANGE)
        return block * self.logical_size, count * self.logical_size

    def _read(self, cdb: bytes) -> bytes:
        if cdb[0] != 0x08 and cdb[1] & 0xE0:
            raise Sense(*sense.INVALID_FIELD)
        offset, length = self._range(cdb)
        if length > _MAX_TRANSFER:
            raise Sense(*sense.INVALID_FIELD)
        return self.medium().read(offset, length) if length else b""

    def _write(self, cdb: bytes, data: bytes) -> bytes:
        backend = self.writable()
        if cdb[0] != 0x0A and cdb[1] & 0xE0:
            raise Sense(*sense.INVALID_FIELD)
        offset, length = self._range(cdb, accounting.WRITE)
        if len(data) < length:
            raise Sense(*sense.INVALID_FIELD)
        fua = cdb[0] != 0x0A and bool(cdb[1] & 0x08)
        if length:
            backend.write(offset, data[:length], fua=fua)
        return b""

    def writable(self) -> BlockBackend:
        """The backend, if its medium can be written. Raises Sense."""
        backend = self.medium()
        if backend.node is None or backend.node.read_only:
            raise Sense(*sense.WRITE_PROTECTED)
        return backend

    def _read_capacity(self, cdb: bytes) -> bytes:
        if not cdb[8] & 1 and any(cdb[2:6]):
            raise Sense(*sense.INVALID_FIELD)  # an address means something only where a part of the medium is asked for
        self.medium()
        last = min(max(self.blocks - 1, 0), 0xFFFFFFFF)
        return last.to_bytes(4, "big") + self.logical_size.to_bytes(4, "big")

    def _read_capacity_16(self, cdb: bytes) -> bytes:
        self.medium()
        exponent = (self.physical_size // self.logical_size).bit_length() - 1
        answer = bytearray(32)
        answer[0:8] = max(self.blocks - 1, 0).to_bytes(8, "big")
        answer[8:12] = self.logical_size.to_bytes(4, "big")
        answer[13] = max(exponent, 0)
        answer[14] = 0x80 if self.granularity else 0
        return bytes(answer)[: int.from_bytes(cdb[10:14], "big")]

    # -- mode pages

    def mode_pages(self) -> dict[int, bytes]:
        """The mode pages by code, each without its two bytes of header."""
        assert self.backend is not None
        return {
            0x01: bytes((0x80, 0)) + bytes(8),
            0x08: bytes((0x04 if self.backend.writeback else 0,)) + bytes(17),
        }

    def changeable(self, code: int, page: bytes) -> bytes:
        """Which bits of a page can be changed."""
        return bytes((0x04,)) + bytes(len(page) - 1) if code == 0x08 else bytes(len(page))

    def _mode_sense(self, cdb: bytes) -> bytes:
        control, code = cdb[2] >> 6, cdb[2] & 0x3F
        if control == 3:
            raise Sense(*sense.SAVING_NOT_SUPPORTED)
        pages = self.mode_pages()
        if code != 0x3F and code not in pages:
            raise Sense(*sense.INVALID_FIELD)
        body = b""
        for each in sorted(pages) if code == 0x3F else [code]:
            page = self.changeable(each, pages[each]) if control == 1 else pages[each]
            body += bytes((each, len(page))) + page
        descriptor = b"" if cdb[1] & 0x08 or self.peripheral_type == 5 else self._block_descriptor()
        specific = self.device_specific()
        if cdb[0] == MODE_SENSE:
            answer = bytes((len(body) + len(descriptor) + 3, 0, specific, len(descriptor)))
            return (answer + descriptor + body)[: cdb[4]]
        total = len(body) + len(descriptor) + 6
        answer = total.to_bytes(2, "big") + bytes((0, specific, 0, 0)) + len(descriptor).to_bytes(2, "big")
        return (answer + descriptor + body)[: int.from_bytes(cdb[7:9], "big")]

    def device_specific(self) -> int:
        """The device-specific parameter of mode sense."""
        protected = self.backend is not None and self.backend.node is not None and self.backend.node.read_only
        return (0x80 if protected else 0) | (0x10 if self.takes_fua else 0)

    def _block_descriptor(self) -> bytes:
        blocks = self.blocks if self.blocks <= 0xFFFFFF else 0
        return bytes((0,)) + blocks.to_bytes(3, "big") + bytes((0,)) + self.logical_size.to_bytes(3, "big")

    def _mode_select(self, cdb: bytes, data: bytes) -> bytes:
        if not transfer.expected(cdb, self.logical_size)[1]:
            return b""  # no list is no error
        if cdb[1] & 0x11 != 0x10:
            raise Sense(*sense.INVALID_FIELD)
        header = 4 if cdb[0] == MODE_SELECT else 8
        if len(data) < header:
            raise Sense(*sense.INVALID_PARAMETER_LENGTH)
        skip = data[3] if header == 4 else int.from_bytes(data[6:8], "big")
        rest = data[header + skip :]
        pages = self.mode_pages()
        while rest:
            if len(rest) < 2 or rest[0] & 0x40 or len(rest) < 2 + rest[1]:
                raise Sense(*sense.INVALID_PARAMETER_LENGTH)
            code, page = rest[0] & 0x3F, rest[2 : 2 + rest[1]]
            if code not in pages or len(page) != len(pages[code]):
                raise Sense(*sense.INVALID_PARAMETER)
            fixed = bytes(~m & 0xFF for m in self.changeable(code, pages[code]))
            if any((a ^ b) & m for a, b, m in zip(page, pages[code], fixed, strict=True)):
                raise Sense(*sense.INVALID_PARAMETER)
            if code == 0x08 and self.backend is not None:
                self.backend.writeback = bool(page[0] & 0x04)
            rest = rest[2 + rest[1] :]
        return b""
