"""The FIFO interface of a TPM (TCG PC Client Specific TPM Interface Specification 1.3; PC Client Platform TPM Profile).

Software that wants to talk to the TPM acts from one of five localities, each of which has its page of registers. One
locality at a time is active, which software asks for, gives back, or, from a higher one, seizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qobra.machine.memory import Registers
from qobra.machine.tpm.front_end import DEVICE_ID, VENDOR_ID
from qobra.machine.vmstate import VmState, flag, parts, raw, u8, u32
from qobra.tpm import messages

if TYPE_CHECKING:
    from qobra.tpm.tpm import Tpm

LOCALITIES = 5
SIZE = LOCALITIES << 12
BUFFER_MAX = 4096

ACCESS, INT_ENABLE, INT_VECTOR, INT_STATUS, CAPABILITY, STS = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x18
FIFO, INTERFACE_ID, XFIFO, XFIFO_END, DID_VID, RID = 0x24, 0x30, 0x80, 0xC0, 0xF00, 0xF04

ACCESS_VALID, ACCESS_ACTIVE, ACCESS_SEIZED, ACCESS_SEIZE = 0x80, 0x20, 0x10, 0x08
ACCESS_PENDING, ACCESS_REQUEST, ACCESS_NOT_ESTABLISHED = 0x04, 0x02, 0x01
STS_VALID, STS_READY, STS_GO, STS_AVAILABLE = 0x80, 0x40, 0x20, 0x10
STS_EXPECT, STS_SELF_TESTED, STS_RETRY = 0x08, 0x04, 0x02
STS_CANCEL, STS_RESET_ESTABLISHMENT, _FAMILY_20 = 1 << 24, 1 << 25, 1 << 26
INT_AVAILABLE, INT_VALID, INT_LOCALITY, INT_READY, INT_GLOBAL = 0x01, 0x02, 0x04, 0x80, 1 << 31
_INTS = INT_AVAILABLE | INT_VALID | INT_LOCALITY | INT_READY
_POLARITY, _LOW_LEVEL = 0x18, 0x08
_CAPABILITY_12, _CAPABILITY_20 = (
    0x20000697,
    0x30000697,
)  # level low, transfers of 64 bytes, the version of the interface
_INTERFACE_20, _INTERFACE_LOCK = 0x2100, 1 << 19
_NOTHING, _NO_BYTE = 0xFFFFFFFF, 0xFF
_SELF_TEST_12 = 0x53

IDLE, READY, RECEPTION, EXECUTION, COMPLETION = range(5)
_NONE = 0xFF
"""No locality."""


class Locality:
    """What each locality has of its own: its state, and the registers that are not worked out."""

    vmstate = VmState(
        flag("requested", "seized", "seizing"),
        u8("state", maximum=COMPLETION),
        u8("status"),
        u32("int_enable", "int_status", "interface"),
    )

    def __init__(self) -> None:
        self.reset(is_20=False)

    def reset(self, *, is_20: bool) -> None:
        """As after power-on."""
        self.requested = self.seized = self.seizing = False
        self.state = IDLE
        self.status = 0
        self.int_enable, self.int_status = _LOW_LEVEL, 0
        self.interface = _INTERFACE_20 if is_20 else 0


class Tis:
    """The registers. ``interrupt`` sets the level of the line that ``vector`` names."""

    vmstate = VmState(
        parts("_localities"),
        u8("_active", "_next"),
        flag("_aborting"),
        u32("_offset", maximum=BUFFER_MAX),
        raw("_data", maximum=BUFFER_MAX),
    )

    def __init__(self, backend: Tpm, vector: int, interrupt: Callable[[int], None]) -> None:
        self._backend = backend
        self._vector = vector
        self._interrupt = interrupt
        self._localities = [Locality() for _ in range(LOCALITIES)]
        self._capacity = min(backend.buffer_size, BUFFER_MAX)
        self.registers = Registers("tpm-tis-mmio", SIZE, self._read, self._write)
        self.reset()

    def reset(self) -> None:
        """As after power-on; what the back end was doing has ended."""
        for locality in self._localities:
            locality.reset(is_20=self._backend.is_20)
        self._active = self._next = _NONE
        self._aborting = False
        """Whether a command is to end before locality ``_next`` has its turn."""
        self._offset = 0
        self._data = bytearray()
        """The command as far as it has come, or the response."""
        self._interrupt(0)

    # -- registers

    def _read(self, offset: int, width: int) -> int:
        number, register = offset >> 12, offset & 0xFFC
        locality, active = self._localities[number], number == self._active
        if active and (register == FIFO or XFIFO <= register < XFIFO_END):
            return sum(self._take_byte(locality) << 8 * i for i in range(min(width, 4 - (offset & 3))))
        value = _NOTHING
        if register == ACCESS:
            value = self._access(number)
        elif register == INT_ENABLE:
            value = locality.int_enable
        elif register == INT_VECTOR:
            value = self._vector
        elif register == INT_STATUS:
            value = locality.int_status
        elif register == CAPABILITY:
            value = _CAPABILITY_20 if self._backend.is_20 else _CAPABILITY_12
        elif register == STS and active:
            value = self._status(locality, width)
        elif register == INTERFACE_ID:
            value = locality.interface
        elif register == DID_VID:
            value = DEVICE_ID << 16 | VENDOR_ID
        elif register == RID:
            value = 1
        return value >> 8 * (offset & 3)

    def _access(self, number: int) -> int:
        locality = self._localities[number]
        value = ACCESS_VALID
        for condition, bit in (
            (number == self._active, ACCESS_ACTIVE),
            (locality.seized, ACCESS_SEIZED),
            (any(other.requested for other in self._localities if other is not locality), ACCESS_PENDING),
            (locality.requested, ACCESS_REQUEST),
            (not self._backend.established(), ACCESS_NOT_ESTABLISHED),
        ):
            if condition:
                value |= bit
        return value

    def _status(self, locality: Locality, width: int) -> int:
        left = len(self._data) if locality.status & STS_AVAILABLE else self._capacity
        burst = max(0, left - self._offset)
        if width == 1:
            burst = min(burst, 0xFF)
        return (_FAMILY_20 if self._backend.is_20 else 0) | burst << 8 | locality.status

    def _write(self, offset: int, width: int, value: int) -> None:
        number, register = offset >> 12, offset & 0xFFC
        if number == LOCALITIES - 1:
            return  # which only hardware acts from
        locality = self._localities[number]
        if register == FIFO or XFIFO <= register < XFIFO_END:
            if number == self._active:
                self._put(locality, value.to_bytes(width, "little"))
            return
        value <<= 8 * (offset & 3)
        if register == ACCESS:
            self._write_access(number, value)
        elif register == INT_ENABLE and number == self._active:
            locality.int_enable = value & (INT_GLOBAL | _POLARITY | _INTS)
        elif register == INT_STATUS and number == self._active:
            locality.int_status &= ~value
            self._signal()
        elif register == STS and number == self._active:
            self._write_status(locality, number, value)
        elif register == INTERFACE_ID and value & _INTERFACE_LOCK:
            for each in self._localities:
                each.interface |= _INTERFACE_LOCK

    def _raise(self, locality: Locality, reasons: int) -> None:
        if locality.int_enable & INT_GLOBAL:
            locality.int_status |= reasons & locality.int_enable
            self._signal()

    def _signal(self) -> None:
        self._interrupt(int(any(locality.int_status for locality in self._localities)))

    # -- whose turn it is

    def _write_access(self, number: int, value: int) -> None:
        locality = self._localities[number]
        if value & ACCESS_SEIZE:
            value &= ~(ACCESS_ACTIVE | ACCESS_REQUEST)  # who seizes neither asks nor gives back
        before = self._active
        if value & ACCESS_ACTIVE:
            if number == before:
                waiting = [n for n, other in enumerate(self._localities) if other.requested]
                self._hand_over(waiting[-1] if waiting else _NONE)
            else:
                locality.requested = False
        if value & ACCESS_SEIZED:
            locality.seized = False
        if value & ACCESS_SEIZE and self._may_seize(number):
            for lower in self._localities[:number]:
                lower.seizing = False
            locality.seizing = True
            self._hand_over(number)
        if value & ACCESS_REQUEST and number != before:
            if before == _NONE and not self._aborting:
                self._activate(number)
            else:
                locality.requested = True

    def _may_seize(self, number: int) -> bool:
        if self._active != _NONE and number <= self._active:
            return False
        return not any(other.seizing for other in self._localities[number:])

    def _hand_over(self, number: int) -> None:
        """Have locality ``number`` active next; a command that is being carried out ends first."""
        self._next = number
        if self._backend.busy:
            self._aborting = True
            self._backend.cancel()
        else:
            self._abort()

    def _abort(self) -> None:
        """What was under way is over: the next locality has its turn."""
        following, self._next, self._aborting = self._next, _NONE, False
        self._offset = 0
        if following == self._active and following != _NONE:
            self._make_ready(self._localities[following])
        else:
            self._activate(following)

    def _activate(self, number: int) -> None:
        before = self._active
        if number != _NONE:
            locality = self._localities[number]
            if before != _NONE and locality.seizing:
                self._localities[before].seized = True
            locality.requested = locality.seizing = False
        self._active = number
        if number not in (before, _NONE):
            self._raise(self._localities[number], INT_LOCALITY)

    # -- commands

    def _write_status(self, locality: Locality, number: int, value: int) -> None:
        if self._backend.is_20:
            if value & STS_CANCEL and locality.state == EXECUTION:
                self._backend.cancel()
            if value & STS_RESET_ESTABLISHMENT and number == 3:
                self._backend.reset_established(number)
        order = value & (STS_READY | STS_GO | STS_RETRY)
        if order == STS_READY:
            if locality.state in (EXECUTION, RECEPTION):
                self._hand_over(number)
            else:
                self._offset = 0
                self._make_ready(locality)
        elif order == STS_GO:
            if locality.state == RECEPTION and not locality.status & STS_EXPECT:
                self._execute(locality, number)
        elif order == STS_RETRY and locality.state == COMPLETION:
            self._offset = 0
            locality.status = locality.status & STS_SELF_TESTED | STS_VALID | STS_AVAILABLE

    def _make_ready(self, locality: Locality) -> None:
        locality.state = READY
        locality.status = locality.status & STS_SELF_TESTED | STS_READY
        self._raise(locality, INT_READY)

    def _put(self, locality: Locality, data: bytes) -> None:
        if locality.state not in (READY, RECEPTION):
            return
        kept = locality.status & STS_SELF_TESTED
        if locality.state == READY:
            locality.state = RECEPTION
            locality.status = kept | STS_EXPECT | STS_VALID
            self._data = bytearray()
        for value in data:
            if not locality.status & STS_EXPECT:
                return
            if self._offset == self._capacity:
                locality.status = kept | STS_VALID
                return
            self._data[self._offset :] = bytes((value,))
            self._offset += 1
            if self._offset >= 6 and messages.length(self._data) <= self._offset:
                locality.status = kept | STS_VALID

    def _execute(self, locality: Locality, number: int) -> None:
        locality.state = EXECUTION
        command = bytes(self._data)
        self._backend.execute(number, command, lambda response: self._completed(number, command, response))

    def _completed(self, number: int, command: bytes, response: bytes) -> None:
        locality = self._localities[number]
        self._data = bytearray(response[: self._capacity])
        self._offset = 0
        locality.state = COMPLETION
        if not self._backend.is_20 and _code(command) == _SELF_TEST_12 and not _code(response):
            for each in self._localities:
                each.status |= STS_SELF_TESTED
        locality.status = locality.status & STS_SELF_TESTED | STS_VALID | STS_AVAILABLE
        if self._aborting:
            self._abort()
        else:
            self._raise(locality, INT_AVAILABLE | INT_VALID)

    def _take_byte(self, locality: Locality) -> int:
        if not locality.status & STS_AVAILABLE or self._offset >= len(self._data):
            return _NO_BYTE
        value = self._data[self._offset]
        self._offset += 1
        if self._offset == len(self._data):
            locality.status = locality.status & STS_SELF_TESTED | STS_VALID
            self._raise(locality, INT_VALID)
        return value


def _code(message: bytes) -> int:
    """The command or response code of a message."""
    return int.from_bytes(message[6:10], "big")
