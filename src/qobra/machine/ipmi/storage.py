"""What a controller keeps: the system event log, sensor data records, the inventory (IPMI 2.0, sections 31, 33, 34)."""

from __future__ import annotations

from collections.abc import Callable

from qobra.machine.ipmi import bmc as ipmi
from qobra.machine.vmstate import Number, Raw, VmState, i64, listed, raw, u16, u32

SEL_LIMIT, ENTRY_SIZE = 128, 16
SDR_SIZE = 16384
_NEVER = 0xFFFFFFFF
_VERSION = 0x51
_FIRST, _LAST = 0x0000, 0xFFFF
_ALL = 0xFF
_OEM_PLAIN = 0xE0
"""Types of entries from here on have no time stamp."""
_START_ERASURE, _ERASURE_STATUS, _ERASED = 0xAA, 0x00, 0x01
_RESERVE = 0x02
_SDR_OPERATIONS = 0x22
_OVERFLOW = 0x80
_SDR_HEADER = 5
_RESPONSE_ROOM = 0xFF


class Fault(Exception):
    """A request that is not carried out, and the completion code that says why."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def word(data: bytes, at: int) -> int:
    """The number of two bytes at ``at``."""
    return int.from_bytes(data[at : at + 2], "little")


def _erase(data: bytes, reservation: int) -> bool:
    """Whether a request to erase starts it, or asks how far it is; it is done at once. Raises Fault."""
    if word(data, 0) != reservation:
        raise Fault(ipmi.RESERVATION_LOST)
    if data[2:5] != b"CLR" or data[5] not in (_START_ERASURE, _ERASURE_STATUS):
        raise Fault(ipmi.INVALID_DATA)
    return data[5] == _START_ERASURE


class EventLog:
    """The system event log. ``now`` is the time in seconds since the epoch."""

    vmstate = VmState(
        listed("_entries", kind=Raw(ENTRY_SIZE), maximum=SEL_LIMIT),
        u16("_reservation"),
        u32("_added", "_cleared"),
        listed("_overflown", kind=Number(1), maximum=1),
        i64("_offset"),
    )

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._entries: list[bytes] = []
        self._reservation = 0
        self._added = self._cleared = _NEVER
        self._overflown: list[int] = []
        self._offset = 0

    @property
    def _time(self) -> int:
        return (self._now() + self._offset) & 0xFFFFFFFF

    def info(self, _data: bytes) -> bytes:
        """Get SEL Info."""
        count = len(self._entries)
        free = (SEL_LIMIT - count) * ENTRY_SIZE
        stamps = self._added.to_bytes(4, "little") + self._cleared.to_bytes(4, "little")
        head = bytes((_VERSION,)) + count.to_bytes(2, "little") + min(free, 0xFFFF).to_bytes(2, "little")
        return head + stamps + bytes((_RESERVE | (_OVERFLOW if self._overflown else 0),))

    def reserve(self, _data: bytes) -> bytes:
        """Reserve SEL: a number that holds until the log changes."""
        return self._reservation.to_bytes(2, "little")

    def get(self, data: bytes) -> bytes:
        """Get SEL Entry."""
        if data[4] and word(data, 0) != self._reservation:  # who reads in pieces must have reserved
            raise Fault(ipmi.RESERVATION_LOST)
        if not self._entries:
            raise Fault(ipmi.NOT_PRESENT)
        wanted, offset, count = word(data, 2), data[4], data[5]
        number = len(self._entries) - 1 if wanted == _LAST else wanted
        if number >= len(self._entries):
            raise Fault(ipmi.NOT_PRESENT)
        if offset >= ENTRY_SIZE:
            raise Fault(ipmi.INVALID_DATA)
        end = ENTRY_SIZE if count == _ALL else offset + count
        if end > ENTRY_SIZE:
            raise Fault(ipmi.INVALID_DATA)
        following = number + 1 if number + 1 < len(self._entries) else _LAST
        return following.to_bytes(2, "little") + self._entries[number][offset:end]

    def add(self, data: bytes) -> bytes:
        """Add SEL Entry; its number."""
        if len(self._entries) >= SEL_LIMIT:
            self._overflown = [1]
            raise Fault(ipmi.OUT_OF_SPACE)
        entry = bytearray(data[:ENTRY_SIZE])
        entry[:2] = len(self._entries).to_bytes(2, "little")
        self._added = self._time
        if entry[2] < _OEM_PLAIN:
            entry[3:7] = self._added.to_bytes(4, "little")
        self._entries.append(bytes(entry))
        self._reservation = self._reservation + 1 & 0xFFFF
        return bytes(entry[:2])

    def clear(self, data: bytes) -> bytes:
        """Clear SEL."""
        if _erase(data, self._reservation):
            self._entries.clear()
            self._overflown = []
            self._cleared = self._time
            self._reservation = self._reservation + 1 & 0xFFFF
        return bytes((_ERASED,))

    def time(self, _data: bytes) -> bytes:
        """Get SEL Time."""
        return self._time.to_bytes(4, "little")

    def set_time(self, data: bytes) -> bytes:
        """Set SEL Time."""
        self._offset = int.from_bytes(data[:4], "little") - self._now()
        return b""


class Records:
    """The repository of sensor data records, one after the other. ``now`` as for :class:`EventLog`."""

    vmstate = VmState(raw("_data", maximum=SDR_SIZE), u16("_reservation", "_next_id"), u32("_added", "_cleared"))

    def __init__(self, now: Callable[[], int], records: list[bytes]) -> None:
        self._now = now
        self._data = bytearray()
        self._next_id = 0
        self._reservation = 1
        self._added = self._cleared = _NEVER
        for record in records:
            self._append(record)

    def _append(self, record: bytes) -> int:
        id = self._next_id
        self._data += id.to_bytes(2, "little") + record[2:]
        self._next_id = id + 1 & 0xFFFF
        self._added = self._now() & 0xFFFFFFFF
        return id

    def records(self) -> list[bytes]:
        """Each record, header and all."""
        found, at = [], 0
        while at + _SDR_HEADER <= len(self._data):
            end = at + _SDR_HEADER + self._data[at + 4]
            found.append(bytes(self._data[at:end]))
            at = end
        return found

    def info(self, _data: bytes) -> bytes:
        """Get SDR Repository Info."""
        free = SDR_SIZE - len(self._data)
        stamps = self._added.to_bytes(4, "little") + self._cleared.to_bytes(4, "little")
        head = bytes((_VERSION,)) + len(self.records()).to_bytes(2, "little") + free.to_bytes(2, "little")
        return head + stamps + bytes((_SDR_OPERATIONS,))

    def reserve(self, _data: bytes) -> bytes:
        """Reserve SDR Repository."""
        return self._reservation.to_bytes(2, "little")

    def get(self, data: bytes) -> bytes:
        """Get SDR."""
        if data[4] and word(data, 0) != self._reservation:  # who reads in pieces must have reserved
            raise Fault(ipmi.RESERVATION_LOST)
        records = self.records()
        wanted, offset, count = word(data, 2), data[4], data[5]
        ids = [word(record, 0) for record in records]
        if wanted == _LAST and ids:
            at = len(ids) - 1
        elif wanted == _FIRST and ids:
            at = 0
        elif wanted in ids:
            at = ids.index(wanted)
        else:
            raise Fault(ipmi.NOT_PRESENT)
        record = records[at]
        if offset > len(record):
            raise Fault(ipmi.INVALID_DATA)
        end = len(record) if count == _ALL else offset + count
        if end > len(record):
            raise Fault(ipmi.INVALID_DATA)
        if end - offset + 5 > _RESPONSE_ROOM:
            raise Fault(ipmi.CANNOT_RETURN)
        following = ids[at + 1] if at + 1 < len(ids) else _LAST
        return following.to_bytes(2, "little") + record[offset:end]

    def add(self, data: bytes) -> bytes:
        """Add SDR; its number."""
        if len(data) < _SDR_HEADER or len(data) != _SDR_HEADER + data[4]:
            raise Fault(ipmi.INVALID_DATA)
        if len(self._data) + len(data) > SDR_SIZE:
            raise Fault(ipmi.OUT_OF_SPACE)
        return self._append(data).to_bytes(2, "little")

    def clear(self, data: bytes) -> bytes:
        """Clear SDR Repository."""
        if _erase(data, self._reservation):
            self._data.clear()
            self._next_id = 0
            self._cleared = self._now() & 0xFFFFFFFF
            self._reservation = self._reservation + 1 & 0xFFFF or 1
        return bytes((_ERASED,))


def parse_records(data: bytes) -> list[bytes]:
    """The records of a file. Raises ValueError, telling where, if they are cut short or too many."""
    found, at = [], 0
    while at < len(data):
        end = at + _SDR_HEADER + data[at + 4] if at + _SDR_HEADER <= len(data) else len(data) + 1
        if end > len(data):
            raise ValueError(f"the record at offset {at} is cut short")
        found.append(data[at:end])
        at = end
    if len(data) > SDR_SIZE:
        raise ValueError(f"the records have more than {SDR_SIZE} bytes")
    return found


class Inventory:
    """The area of the one inventory device there is, number 0."""

    vmstate = VmState(raw("_area"))

    def __init__(self, size: int, content: bytes) -> None:
        self._area = bytearray(content.ljust(size, b"\0"))

    def info(self, data: bytes) -> bytes:
        """Get FRU Inventory Area Info: its size, and that it is accessed by bytes."""
        self._check(data)
        return len(self._area).to_bytes(2, "little") + b"\0"

    def read(self, data: bytes) -> bytes:
        """Read FRU Data."""
        self._check(data)
        offset, count = word(data, 1), data[3]
        if offset + count > len(self._area):
            raise Fault(ipmi.INVALID_DATA)
        return bytes((count,)) + self._area[offset : offset + count]

    def write(self, data: bytes) -> bytes:
        """Write FRU Data; how many bytes were written."""
        self._check(data)
        offset, content = word(data, 1), data[3:]
        if offset + len(content) > len(self._area):
            raise Fault(ipmi.INVALID_DATA)
        self._area[offset : offset + len(content)] = content
        return bytes((len(content) & 0xFF,))

    def _check(self, data: bytes) -> None:
        if data[0]:
            raise Fault(ipmi.NOT_PRESENT)
