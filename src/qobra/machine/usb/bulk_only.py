"""USB's bulk-only transport for SCSI commands (USB Mass Storage Class, Bulk-Only Transport 1.0)."""

from __future__ import annotations

from qobra.machine.scsi import transfer
from qobra.machine.scsi.bus import Result
from qobra.machine.scsi.sense import GOOD
from qobra.machine.usb.device import FULL, HIGH, SUPER, Nak, Stall, UsbDevice
from qobra.machine.vmstate import VmState

_COMMAND_SIGNATURE, _STATUS_SIGNATURE = b"USBC", b"USBS"
_COMMAND_LENGTH = 31
_BULK_IN, _BULK_OUT = 1, 2
_MAX_DATA = 16 << 20
_BULK_RESET, _GET_MAX_LUN = 0xFF, 0xFE
_FAILED, _PHASE_ERROR = 1, 2
_WAIT_COMMAND, _DATA_OUT, _DATA_IN, _STATUS, _REFUSED = range(5)


def _device(version: int, packet: int) -> bytes:
    # ``packet``: for endpoint 0 the bytes in one, from USB 3 on as a power of two.
    return bytes((18, 1, version & 0xFF, version >> 8, 0, 0, 0, packet, 0xF4, 0x46, 0x01, 0x00, 0, 0, 1, 2, 3, 1))


def _configuration(name: int, packet: int, burst: int | None = None) -> bytes:
    companion = b"" if burst is None else bytes((6, 0x30, burst, 0, 0, 0))
    endpoints = b"".join(
        bytes((7, 5, address, 2, packet & 0xFF, packet >> 8, 0)) + companion for address in (0x80 | _BULK_IN, _BULK_OUT)
    )
    interface = bytes((9, 4, 0, 0, 2, 0x08, 0x06, 0x50, 0))
    return bytes((9, 2, 18 + len(endpoints), 0, 1, 1, name, 0xC0, 0)) + interface + endpoints


class BulkOnly(UsbDevice):
    """A device that has one command at a time. Models say who carries them out."""

    type_name = "usb-storage-dev"
    abstract = True
    category = "Storage"
    product = "QEMU USB MSD"

    by_speed = {
        FULL: (_device(0x0200, 8), _configuration(4, 64)),
        HIGH: (_device(0x0200, 64), _configuration(5, 512)),
        SUPER: (_device(0x0300, 9), _configuration(6, 1024, burst=15)),
    }
    speeds = frozenset(by_speed)
    strings = {
        1: "QEMU", 2: "QEMU USB HARDDRIVE", 4: "Full speed config (usb 1.1)", 5: "High speed config (usb 2.0)",
        6: "Super speed config (usb 3.0)",
    }  # fmt: skip

    vmstate = VmState(partial=True)

    def state_blocked(self) -> str | None:
        return "a command is under way" if self._phase != _WAIT_COMMAND else None

    # -- for models to fill in

    def last_unit(self) -> int:
        """The highest number that a unit has."""
        return 0

    def has_unit(self, lun: int) -> bool:
        """Whether there is a unit of that number."""
        raise NotImplementedError

    def carry_out(self, lun: int, cdb: bytes, data: bytes, room: int) -> None:
        """Begin a command, which ends with :meth:`finish`."""
        raise NotImplementedError

    def expected_of(self, lun: int, cdb: bytes) -> tuple[str, int]:
        """Which way a command transfers data, and how many bytes at most (:mod:`qobra.machine.scsi.transfer`)."""
        raise NotImplementedError

    def cancel_commands(self) -> None:
        """Forget what is under way."""
        raise NotImplementedError

    # -- the control pipe

    def string(self, index: int) -> str | None:
        if index == 3:
            return self.serial_number or self.place("1")
        return super().string(index)

    def device_reset(self) -> None:
        if self.realized:
            self.cancel_commands()
        self._phase = _WAIT_COMMAND
        self._tag = b"\0\0\0\0"
        self._lun = 0
        self._length = 0
        self._to_host = False
        self._cdb = b""
        self._data = bytearray()
        self._result: Result | None = None
        self._busy = False
        self._moved = self._wanted = 0

    def own_request(self, request: bytes, data: bytes) -> bytes:
        if request[:2] == bytes((0xA1, _GET_MAX_LUN)):
            return bytes((self.last_unit(),))
        if request[:2] == bytes((0x21, _BULK_RESET)):
            self.device_reset()
            return b""
        raise Stall

    # -- bulk endpoints

    def endpoint_out(self, endpoint: int, data: bytes) -> None:
        if endpoint != _BULK_OUT:
            raise Stall
        if self._phase == _REFUSED and not self._to_host:
            self._refuse()
        if self._phase == _WAIT_COMMAND:
            self._take_command(data)
        elif self._phase == _DATA_OUT:
            self._data += data[: self._length - len(self._data)]
            if len(self._data) >= self._length:
                self._execute()
        else:
            raise Stall

    def _take_command(self, data: bytes) -> None:
        if len(data) != _COMMAND_LENGTH or data[:4] != _COMMAND_SIGNATURE or not 1 <= data[14] <= 16:
            raise Stall
        self._lun = data[13] & 0x0F
        if not self.has_unit(self._lun):
            raise Stall
        self._tag, self._length = data[4:8], int.from_bytes(data[8:12], "little")
        if self._length > _MAX_DATA:
            raise Stall
        self._to_host = bool(data[12] & 0x80)
        self._cdb = data[15 : 15 + data[14]].ljust(16, b"\0")
        self._data, self._result, self._moved = bytearray(), None, 0
        way, self._wanted = self.expected_of(self._lun, self._cdb)
        wrong_way = transfer.TO_DEVICE if self._to_host else transfer.TO_HOST
        if self._length and way == wrong_way:
            self._phase = _REFUSED
        elif self._length and not self._to_host:
            self._phase = _DATA_OUT
        else:
            self._execute()

    def _execute(self) -> None:
        room = self._length if self._to_host else 0
        self._phase = _DATA_IN if self._length and self._to_host else _STATUS
        self._busy = True
        self.carry_out(self._lun, self._cdb, bytes(self._data), room)

    def finish(self, result: Result) -> None:
        """The command has ended."""
        self._busy = False
        self._result = result
        self.endpoint_ready(0x80 | _BULK_IN, wakes=False)

    def _refuse(self) -> None:
        # The data of the command go the other way (6.7.2 and 6.7.3, cases 8 and 10).
        self._phase, self._data = _STATUS, bytearray()
        raise Stall

    def endpoint_in(self, endpoint: int, room: int) -> bytes:
        if self._phase == _REFUSED and self._to_host:
            self._refuse()
        if endpoint != _BULK_IN or self._phase in (_WAIT_COMMAND, _DATA_OUT, _REFUSED):
            raise Stall
        if self._busy:
            raise Nak
        if self._phase == _DATA_IN and self._result is not None:
            wanted = min(room, self._length - self._moved)
            part = self._result.data[self._moved : self._moved + wanted]
            self._moved += wanted
            if self._moved >= self._length:
                self._phase = _STATUS
            return part.ljust(wanted, b"\0")  # what is less than the host expects is filled up (6.7.2)
        self._phase = _WAIT_COMMAND
        result = self._result
        if result is None:
            moved, status = 0, _PHASE_ERROR
        else:
            status = 0 if result.status == GOOD else _FAILED
            taken = 0 if status else min(len(self._data), self._wanted)
            moved = len(result.data) if self._to_host else taken
        residue = self._length - min(moved, self._length)
        return _STATUS_SIGNATURE + self._tag + residue.to_bytes(4, "little") + bytes((status,))
