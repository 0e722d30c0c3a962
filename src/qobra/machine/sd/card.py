"""An SD memory card: its states and commands (SD Physical Layer Simplified Specification 6.00, chapter 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qobra.machine.sd import identity
from qobra.machine.vmstate import Field, Number, VmState, flag, u8, u16, u32

if TYPE_CHECKING:
    from qobra.machine.device.sd_card import SdCard

IDLE, READY, IDENT, STANDBY, TRANSFER, SENDING, RECEIVING, PROGRAMMING, DISCONNECTED = range(9)
BLOCK = 512
_OUT_OF_RANGE, _ADDRESS_ERROR, _LENGTH_ERROR, _ERASE_SEQUENCE = 1 << 31, 1 << 30, 1 << 29, 1 << 28
_PROTECTED, _ILLEGAL, _READY_FOR_DATA, _APP = 1 << 26, 1 << 22, 1 << 8, 1 << 5
_VOLTAGES, _POWERED_UP, _HIGH_CAPACITY = 0x00FFFF00, 1 << 31, 1 << 30
_RCA_STEP = 0x4567

Answer = bytes | None
"""4 bytes, or 16 of CID and CSD; None where the card keeps silent."""


class Data:
    """What the command moves: ``reading`` from the card or writing; from ``offset`` on, or ``fixed`` bytes."""

    __slots__ = ("fixed", "many", "offset", "reading")

    def __init__(self, reading: bool, offset: int = 0, *, many: bool = False, fixed: bytes | None = None) -> None:
        self.reading = reading
        self.offset = offset
        self.many = many
        self.fixed = fixed


class Card:
    """The card of ``device``, whose backend is its memory. All calls come inside the control strand."""

    vmstate = VmState(
        Field("state", Number(1, maximum=DISCONNECTED)),
        u32("_errors", "_block_length", "_erase_start", "_erase_end"),
        u16("_rca"),
        u8("_expecting_app", maximum=1),
        flag("_wide"),
    )

    def __init__(self, device: SdCard) -> None:
        self.device = device
        self.data: Data | None = None
        """What is to be moved now."""
        self._commands: dict[int, Callable[[int], Answer]] = {
            2: self._all_send_cid, 3: self._send_address, 6: self._switch, 7: self._select, 8: self._interface,
            9: self._send_csd, 10: self._send_cid, 12: self._stop, 13: self._send_status, 16: self._set_length,
            17: self._read, 18: self._read, 24: self._write, 25: self._write, 32: self._erase_from,
            33: self._erase_to, 38: self._erase, 55: self._app,
        }  # fmt: skip
        self._app_commands: dict[int, Callable[[int], Answer]] = {
            6: self._bus_width, 13: self._sd_status, 22: self._written, 23: self._nothing, 41: self._conditions,
            42: self._nothing, 51: self._configuration,
        }  # fmt: skip
        self.reset()

    def reset(self) -> None:
        """GO_IDLE_STATE, or power-on."""
        self.state = IDLE
        self._errors = 0
        self._rca = 0
        self._block_length = BLOCK
        self._erase_start = self._erase_end = 0xFFFFFFFF
        self._expecting_app = 0
        self._wide = False
        self._number = 0
        self.data = None

    @property
    def length(self) -> int:
        """Bytes of memory."""
        return self.device.length

    @property
    def read_only(self) -> bool:
        """Whether the switch at its side is set."""
        return self.device.read_only

    def command(self, number: int, argument: int) -> Answer:
        """One command."""
        if number == 0:
            self.reset()
            return None
        self._number = number
        app, self._expecting_app = self._expecting_app, 0
        handler = (self._app_commands.get(number) if app else None) or self._commands.get(number)
        if handler is None:
            return self._refuse()
        return handler(argument)

    def data_ended(self) -> None:
        """All that the command was to move has been moved, or as much as there will be."""
        if self.data is not None and not self.data.many:
            self._end()

    def failed(self) -> None:
        """The memory could not be read or written."""
        self._errors |= 1 << 19
        self._end()

    def _end(self) -> None:
        self.data = None
        if self.state in (SENDING, RECEIVING):
            self.state = TRANSFER

    # -- answers

    def _status(self, errors: int = 0) -> bytes:
        value = self._errors | errors | self.state << 9 | _READY_FOR_DATA | (_APP if self._expecting_app else 0)
        self._errors = 0
        return value.to_bytes(4, "big")

    def _refuse(self, error: int = _ILLEGAL) -> Answer:
        # A command that is none here is not answered; the next answer says so.
        self._errors |= error
        return None

    def _addressed(self, argument: int) -> bool:
        return argument >> 16 == self._rca

    def _in(self, *states: int) -> bool:
        return self.state in states

    # -- identification

    def _interface(self, argument: int) -> Answer:
        if not self._in(IDLE) or argument >> 8 & 15 != 1:
            return self._refuse()
        return (argument & 0xFFF).to_bytes(4, "big")

    def _conditions(self, argument: int) -> Answer:
        if not self._in(IDLE, READY):
            return self._refuse()
        if argument & _VOLTAGES:
            self.state = READY
        capacity = _HIGH_CAPACITY if identity.is_high_capacity(self.length) and argument & _HIGH_CAPACITY else 0
        return (_VOLTAGES | _POWERED_UP | capacity).to_bytes(4, "big")

    def _all_send_cid(self, _argument: int) -> Answer:
        if not self._in(READY):
            return self._refuse()
        self.state = IDENT
        return identity.cid()

    def _send_address(self, _argument: int) -> Answer:
        if not self._in(IDENT, STANDBY):
            return self._refuse()
        self._rca = (self._rca + _RCA_STEP) & 0xFFFF or _RCA_STEP
        status = int.from_bytes(self._status(), "big")
        self.state = STANDBY
        bits = status >> 8 & 0xC000 | status >> 6 & 0x2000 | status & 0x1FFF
        return (self._rca << 16 | bits).to_bytes(4, "big")

    def _send_csd(self, argument: int) -> Answer:
        if not self._in(STANDBY) or not self._addressed(argument):
            return self._refuse()
        return identity.csd(self.length, read_only=self.read_only)

    def _send_cid(self, argument: int) -> Answer:
        if not self._in(STANDBY) or not self._addressed(argument):
            return self._refuse()
        return identity.cid()

    def _select(self, argument: int) -> Answer:
        chosen = self._addressed(argument)
        if self._in(STANDBY) and chosen:
            status = self._status()
            self.state = TRANSFER
            return status
        if self._in(TRANSFER, SENDING) and not chosen:
            self.state = STANDBY
            self.data = None
            return None
        return self._refuse()

    def _send_status(self, argument: int) -> Answer:
        return self._status() if self.state >= STANDBY and self._addressed(argument) else self._refuse()

    def _app(self, argument: int) -> Answer:
        if not self._addressed(argument):
            return self._refuse()
        self._expecting_app = 1
        return self._status()

    # -- settings

    def _set_length(self, argument: int) -> Answer:
        if not self._in(TRANSFER):
            return self._refuse()
        if not 0 < argument <= BLOCK:
            return self._status(_LENGTH_ERROR)
        self._block_length = argument
        return self._status()

    def _bus_width(self, argument: int) -> Answer:
        if not self._in(TRANSFER):
            return self._refuse()
        self._wide = argument & 3 == 2
        return self._status()

    def _nothing(self, _argument: int) -> Answer:
        return self._status() if self._in(TRANSFER) else self._refuse()

    # -- data that is not memory

    def _offer(self, data: bytes) -> Answer:
        if not self._in(TRANSFER):
            return self._refuse()
        status = self._status()
        self.state, self.data = SENDING, Data(True, fixed=data)
        return status

    def _switch(self, argument: int) -> Answer:
        return self._offer(identity.functions(argument))

    def _sd_status(self, _argument: int) -> Answer:
        return self._offer(identity.status(wide=self._wide))

    def _written(self, _argument: int) -> Answer:
        return self._offer(bytes(4))

    def _configuration(self, _argument: int) -> Answer:
        return self._offer(identity.SCR)

    # -- memory

    def _offset(self, argument: int) -> int:
        return argument * BLOCK if identity.is_high_capacity(self.length) else argument

    def _transfer(self, argument: int, *, reading: bool) -> Answer:
        if not self._in(TRANSFER):
            return self._refuse()
        offset = self._offset(argument)
        if offset + BLOCK > self.length or offset % BLOCK:
            return self._status(_ADDRESS_ERROR)
        if not reading and self.read_only:
            return self._status(_PROTECTED)
        status = self._status()
        self.state = SENDING if reading else RECEIVING
        self.data = Data(reading, offset, many=self._number in (18, 25))
        return status

    def _read(self, argument: int) -> Answer:
        return self._transfer(argument, reading=True)

    def _write(self, argument: int) -> Answer:
        return self._transfer(argument, reading=False)

    def _stop(self, _argument: int) -> Answer:
        if not self._in(SENDING, RECEIVING):
            return self._refuse()
        status = self._status()
        self._end()
        return status

    def _erase_from(self, argument: int) -> Answer:
        if not self._in(TRANSFER):
            return self._refuse()
        self._erase_start = argument
        return self._status()

    def _erase_to(self, argument: int) -> Answer:
        if not self._in(TRANSFER):
            return self._refuse()
        self._erase_end = argument
        return self._status()

    def _erase(self, _argument: int) -> Answer:
        if not self._in(TRANSFER):
            return self._refuse()
        first, last = self._erase_start, self._erase_end
        self._erase_start = self._erase_end = 0xFFFFFFFF
        if 0xFFFFFFFF in (first, last) or first > last:
            return self._status(_ERASE_SEQUENCE)
        start, end = self._offset(first) // BLOCK * BLOCK, self._offset(last) // BLOCK * BLOCK + BLOCK
        if end > self.length:
            return self._status(_OUT_OF_RANGE)
        if self.read_only:
            return self._status(_PROTECTED)

        def erased(_result: Any, error: Exception | None) -> None:
            if error is not None:
                self.failed()

        self.device.requests.submit(lambda backend: backend.write_zeroes(start, end - start), erased, is_read=False)
        return self._status()
