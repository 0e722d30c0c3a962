"""``acpi-erst``: error records that a guest leaves behind (ACPI 6.4, section 18.5), kept in a memory backend.

The registers, and how records lie in the backend, are those of QEMU's ``docs/specs/acpi_erst``: slots of one record
each, of which the first ones are the header with the identifier of the record in each slot.
"""

from __future__ import annotations

from struct import Struct, unpack_from
from typing import TYPE_CHECKING

from qobra.errors import QobraError
from qobra.machine.devices import registry
from qobra.machine.memory import Ram, Registers
from qobra.machine.memory_slots import claim_backend, release_backend
from qobra.machine.pci import regs
from qobra.machine.pci.device import PciDevice
from qobra.machine.vmstate import VmState, u8, u32, u64
from qobra.object.property import Int, Link

if TYPE_CHECKING:
    from qobra.machine.memory import Mapping

ACTION, VALUE, REGISTERS_SIZE = 0, 8, 16

BEGIN_WRITE, BEGIN_READ, BEGIN_CLEAR, END, SET_OFFSET, EXECUTE, CHECK_BUSY, GET_STATUS = range(8)
GET_RECORD, SET_RECORD, GET_COUNT, BEGIN_DUMMY_WRITE = range(8, 12)
GET_RANGE, GET_RANGE_LENGTH, GET_RANGE_ATTRIBUTES, GET_TIMINGS = range(13, 17)
EXECUTE_MAGIC = 0x9C

SUCCESS, NO_SPACE, FAILED, EMPTY, NOT_FOUND = 0, 1, 3, 4, 5

_TIMINGS = 100 << 32 | 10
"""How long an operation takes in microseconds, at the worst and usually."""
_HEADER = Struct("<QIIHHI")
"""Magic, size of a record, where the first one is, version, nothing, how many records there are."""
_MAGIC, _VERSION = 0x524F545354535245, 0x0100
_COUNT_AT = 20
_LEAST_RECORD = 128
"""The header of a record (UEFI 2.1, appendix N.2): its length is at 20, its identifier at 96."""
_LENGTH_AT, _ID_AT = 20, 96
_NO_RECORD = 0xFFFFFFFFFFFFFFFF
_UNUSED = (0, _NO_RECORD)


@registry.register("acpi-erst")
class AcpiErst(PciDevice):
    """Two registers at base address 0, and at 1 the buffer by which records come and go."""

    type_name = "acpi-erst"
    architectures = frozenset(("x86_64",))
    category = "Misc"
    description = "keeps error records of the guest (ACPI ERST)"
    hotpluggable_class = False
    vendor_id = regs.RED_HAT
    device_id = 0x0012
    class_id = 0x00FF

    memdev = Link("memory-backend")
    record_size = Int(8192, type="uint32", name="record_size")

    vmstate = VmState(
        u8("_operation", maximum=BEGIN_DUMMY_WRITE),
        u8("_status", maximum=NOT_FOUND),
        u32("_offset", "_next"),
        u64("_value", "_record"),
    )

    _mapping: Mapping | None = None
    _operation, _status = BEGIN_WRITE, SUCCESS
    _offset = _value = _record = 0

    def realize(self) -> None:
        if self.memdev is None:
            raise QobraError("'memdev' property is not set")
        if self.memdev.mapped:
            raise QobraError(f"can't use already busy memdev: {self.memdev.id}")
        self._store: Ram = self.memdev.ram
        self._set_up_store()
        # It is of the machine's memory, which moves with it, though no guest sees it.
        self._mapping = self.board.memory.map(0, self._store, enabled=False)
        claim_backend(self.memdev)
        self._exchange = Ram("erst.exchange", self._slot_size)
        registers = Registers("erst.reg", REGISTERS_SIZE, self._read, self._write, valid=(1, 8), impl=(1, 8))
        self.add_bar(0, registers)
        self.add_bar(1, self._exchange)
        self._next = self._first

    def unrealize(self) -> None:
        super().unrealize()
        if self._mapping is not None:
            self._mapping.remove()
            release_backend(self.memdev)
            self._exchange.close()

    def reset(self) -> None:
        # The value stays as it is: there is nothing that says otherwise.
        super().reset()
        self._next = self._first
        self._operation, self._status = BEGIN_WRITE, SUCCESS
        self._offset = self._record = 0

    # -- what is kept

    def _set_up_store(self) -> None:
        """Find the slots; what has no header yet is given one. Raises QobraError for what cannot be used."""
        store = self._store.view
        magic, size, start, version, reserved, _count = (
            _HEADER.unpack_from(store) if len(store) >= _HEADER.size else (0,) * 6
        )
        if not magic:
            size = self.record_size
        if size < 4096 or size & (size - 1):
            raise QobraError(f"ERST record_size {size} is invalid")
        if len(store) % size:
            raise QobraError(f"ACPI ERST requires storage size be multiple of record size ({size}KiB)")
        if not magic:
            magic, version, reserved = _MAGIC, _VERSION, 0
            start = -(-(_HEADER.size + 8 * (len(store) // size)) // size) * size
            _HEADER.pack_into(store, 0, magic, size, start, version, reserved, 0)
        if (magic, version, reserved, start % size) != (_MAGIC, _VERSION, 0, 0) or not start:
            raise QobraError("ERST backend storage header is invalid")
        self._slot_size, self._first, self._slots = size, start // size, len(store) // size

    def _id(self, slot: int) -> int:
        return self._store.load(_HEADER.size + 8 * slot, 8)

    def _set_id(self, slot: int, record: int, *, more: int) -> None:
        """Have a record in the slot, and count ``more`` of them."""
        self._store.store(_HEADER.size + 8 * slot, 8, record)
        self._store.store(_COUNT_AT, 4, (self._count() + more) & 0xFFFFFFFF)

    def _count(self) -> int:
        return self._store.load(_COUNT_AT, 4)

    def _find(self, record: int) -> int | None:
        return next((slot for slot in range(self._first, self._slots) if self._id(slot) == record), None)

    def _following(self) -> int:
        """The identifier of the next record; after the last one there is none, and then the first one."""
        for slot in range(self._next, self._slots):
            record = self._id(slot)
            if record not in _UNUSED:
                self._next = slot + 1
                return record
        self._next = self._first
        return _NO_RECORD

    # -- operations

    def _execute(self) -> int:
        """What the guest has set up; what became of it."""
        if self._operation == BEGIN_WRITE:
            return self._write_record()
        if self._operation == BEGIN_READ:
            return self._read_record()
        if self._operation == BEGIN_CLEAR:
            return self._clear_record()
        return SUCCESS

    def _write_record(self) -> int:
        buffer = self._exchange.piece(0, self._slot_size)
        if self._offset > len(buffer) - _LEAST_RECORD:
            return FAILED
        length = unpack_from("<I", buffer, self._offset + _LENGTH_AT)[0]
        record = unpack_from("<Q", buffer, self._offset + _ID_AT)[0]
        if record in _UNUSED or not _LEAST_RECORD <= length <= len(buffer) - self._offset:
            return FAILED
        slot = self._find(record)
        free = slot is None
        if slot is None:
            slot = next((slot for slot in range(self._first, self._slots) if self._id(slot) in _UNUSED), None)
        if slot is None:
            return NO_SPACE
        data = bytes(buffer[self._offset : self._offset + length]).ljust(self._slot_size, b"\xff")
        self._store.piece(slot * self._slot_size, self._slot_size)[:] = data
        self._set_id(slot, record, more=int(free))
        return SUCCESS

    def _read_record(self) -> int:
        if not self._count():
            return EMPTY
        record = self._record
        if record == 0:
            self._next = self._first
            record = self._following()
        if record == _NO_RECORD or self._offset > self._slot_size - _LEAST_RECORD:
            return FAILED
        slot = self._find(record)
        if slot is None:
            self._next = self._first
            self._following()
            return NOT_FOUND
        stored = self._store.piece(slot * self._slot_size, self._slot_size)
        length = unpack_from("<I", stored, _LENGTH_AT)[0]
        if not _LEAST_RECORD <= length <= self._slot_size - self._offset:
            return FAILED
        self._exchange.piece(self._offset, length)[:] = stored[:length]
        return SUCCESS

    def _clear_record(self) -> int:
        if self._record in _UNUSED:
            return FAILED
        slot = self._find(self._record)
        if slot is None:
            return NOT_FOUND
        self._set_id(slot, 0, more=-1)
        return SUCCESS

    # -- registers

    def _read(self, offset: int, width: int) -> int:
        if offset == VALUE:
            return self._value
        return self._value >> 32 if offset == VALUE + 4 else 0

    def _write(self, offset: int, width: int, value: int) -> None:
        if offset == ACTION:
            self._act(value & 0xFFFFFFFF)
        elif offset == VALUE:
            self._value = value if width == 8 else self._value >> 32 << 32 | value
        elif offset == VALUE + 4:
            self._value = value << 32 & _NO_RECORD | self._value & 0xFFFFFFFF

    def _act(self, action: int) -> None:
        if action in (BEGIN_WRITE, BEGIN_READ, BEGIN_CLEAR, BEGIN_DUMMY_WRITE, END):
            self._operation = action
        elif action == SET_OFFSET:
            self._offset = self._value & 0xFFFFFFFF
        elif action == EXECUTE:
            if self._value & 0xFF == EXECUTE_MAGIC:
                self._status = self._execute()
        elif action == SET_RECORD:
            self._record = self._value
        elif action == CHECK_BUSY:
            self._value = 0
        elif action == GET_STATUS:
            self._value = self._status
        elif action == GET_RECORD:
            self._value = self._following()
            self._status = SUCCESS
        elif action == GET_COUNT:
            self._value = self._count()
        elif action == GET_RANGE:
            self._value = self.bar_address(self.bars[1]) or 0
        elif action == GET_RANGE_LENGTH:
            self._value = self._slot_size
        elif action == GET_RANGE_ATTRIBUTES:
            self._value = 0
        elif action == GET_TIMINGS:
            self._value = _TIMINGS
