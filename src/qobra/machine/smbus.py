"""The System Management Bus: its devices, and the host controller of PIIX4 and ICH9 (its datasheet, chapter 20)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qobra.machine.memory import Registers
from qobra.machine.qdev import Bus, Device
from qobra.machine.vmstate import VmState, flag, raw, u8
from qobra.object.property import Int

_STATUS, _CONTROL, _COMMAND, _ADDRESS, _DATA0, _DATA1, _BLOCK, _EXTRA = 0x00, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x0D
REGION_SIZE = 64
_BUSY, _DONE, _DEVICE_ERROR, _FAILED, _BYTE_DONE = 0x01, 0x02, 0x04, 0x10, 0x80
_CLEARED = 0xFE
_INTERRUPT, _KILL, _LAST_BYTE, _START, _KEPT = 0x01, 0x02, 0x20, 0x40, 0x1F
_BUFFER, _EXTRA_KEPT = 0x02, 0x03
_QUICK, _BYTE, _BYTE_DATA, _WORD_DATA, _PROCESS_CALL, _BLOCK_DATA, _I2C_READ, _BLOCK_CALL = range(8)
_MAX_BLOCK = 32


class I2cBus(Bus):
    """A bus of two wires, on which each device has an address of seven bits."""

    type_name = "i2c-bus"
    architectures = frozenset(("x86_64",))

    def at(self, address: int) -> SmbusDevice | None:
        """Who answers at ``address``."""
        found = (device for device in self.devices if isinstance(device, SmbusDevice) and device.address == address)
        return next(found, None)


class SmbusDevice(Device):
    """A device that is written to and read from."""

    type_name = "smbus-device"
    ancestors = {"i2c-slave": ()}
    abstract = True
    bus_type = "i2c-bus"
    architectures = frozenset(("x86_64",))

    address = Int(0, type="uint8")

    def receive(self, data: bytes) -> None:
        """A host has written ``data``."""

    def send(self) -> int:
        """The next byte for a host that reads."""
        return 0


class SmbusHost:
    """The registers of a host controller. ``interrupt`` sets the level of its line.

    ``buffered``: drivers find blocks in a buffer of 32 bytes, though they have not asked for it.

    A command is carried out when its status is looked at for the first time, so that drivers that ask see it under way.
    A reset leaves the registers alone.
    """

    vmstate = VmState(
        raw("_registers", "_buffer"),
        flag("_started", "_reading"),
        u8("_index", maximum=_MAX_BLOCK - 1),
    )

    def __init__(self, bus: I2cBus, interrupt: Callable[[int], None], *, buffered: bool) -> None:
        self._bus = bus
        self._interrupt = interrupt
        self._registers = bytearray(16)
        self._registers[_EXTRA] = _BUFFER if buffered else 0
        self._buffer = bytearray(_MAX_BLOCK)
        self._started = self._reading = False
        self._index = 0
        self.registers = Registers("pm-smbus", REGION_SIZE, self._read, self._write, valid=(1, 1), impl=(1, 1))

    def _read(self, offset: int, _width: int) -> int:
        if offset == _STATUS:
            value = self._registers[_STATUS]
            if self._started:
                self._started = False
                self._registers[_STATUS] &= ~_BUSY
                self._carry_out()
            return value
        if offset == _CONTROL:
            self._index = 0
            return self._registers[_CONTROL] & _KEPT
        if offset == _BLOCK:
            return self._read_block()
        return self._registers[offset] if offset in (_COMMAND, _ADDRESS, _DATA0, _DATA1, _EXTRA) else 0

    def _write(self, offset: int, _width: int, value: int) -> None:
        registers = self._registers
        if offset == _STATUS:
            more = value & registers[_STATUS] & _BYTE_DONE
            registers[_STATUS] &= ~(value & _CLEARED) & 0xFF
            if more:
                self._go_on()
            self._signal()
        elif offset == _CONTROL:
            registers[_CONTROL] = value & ~_START
            if value & _KILL:
                registers[_STATUS] = registers[_STATUS] & ~_BUSY | _FAILED
                self._started = self._reading = False
            elif value & _START:
                self._start()
            self._signal()
        elif offset == _BLOCK and registers[_EXTRA] & _BUFFER:
            self._buffer[self._index] = value
            self._index = (self._index + 1) % _MAX_BLOCK
        elif offset == _EXTRA:
            registers[_EXTRA] = value & _EXTRA_KEPT
        elif offset in (_COMMAND, _ADDRESS, _DATA0, _DATA1, _BLOCK):
            registers[offset] = value & 0xFF

    def _start(self) -> None:
        if self._registers[_CONTROL] & _INTERRUPT:
            self._started = False
            self._carry_out()
        else:
            self._registers[_STATUS] |= _BUSY
            self._started = True

    def _read_block(self) -> int:
        if not self._registers[_EXTRA] & _BUFFER:
            return self._registers[_BLOCK]
        value = self._buffer[self._index]
        self._index = (self._index + 1) % _MAX_BLOCK
        return value

    def _signal(self) -> None:
        pending = self._registers[_STATUS] & (_DONE | _DEVICE_ERROR | _FAILED | _BYTE_DONE)
        self._interrupt(int(bool(pending and self._registers[_CONTROL] & _INTERRUPT)))

    # -- commands

    def _carry_out(self) -> None:
        registers = self._registers
        device: Any = self._bus.at(registers[_ADDRESS] >> 1)
        protocol = registers[_CONTROL] >> 2 & 7
        reads = bool(registers[_ADDRESS] & 1)
        command = registers[_COMMAND]
        failed = registers[_STATUS] & _DEVICE_ERROR  # as long as nobody has seen to it
        if failed or device is None or protocol in (_PROCESS_CALL, _BLOCK_CALL):
            self._end(_DEVICE_ERROR)
            return
        if protocol == _BYTE:
            if reads:
                registers[_DATA0] = device.send()
            else:
                device.receive(bytes((command,)))
        elif protocol in (_BYTE_DATA, _WORD_DATA):
            count = 1 if protocol == _BYTE_DATA else 2
            data = registers[_DATA0 : _DATA0 + count]
            if reads:
                device.receive(bytes((command,)))
                registers[_DATA0 : _DATA0 + count] = bytes(device.send() for _ in range(count))
            else:
                device.receive(bytes((command, *data)))
        elif protocol == _I2C_READ:
            device.receive(bytes((registers[_DATA1],)))
            self._begin_reading(device)
            return
        elif protocol == _BLOCK_DATA and not self._move_block(device, reads):
            return
        self._end(_DONE)

    def _move_block(self, device: SmbusDevice, reads: bool) -> bool:
        # Whether the transfer is over; else it goes on byte by byte, or has failed.
        registers = self._registers
        command, buffered = registers[_COMMAND], registers[_EXTRA] & _BUFFER
        if reads:
            device.receive(bytes((command,)))
            count = device.send()
            registers[_DATA0] = count
            if count > _MAX_BLOCK:
                self._end(_DEVICE_ERROR)
                return False
            if not buffered:
                self._begin_reading(device)
                return False
            self._buffer[:count] = bytes(device.send() for _ in range(count))
        else:
            count = min(registers[_DATA0], _MAX_BLOCK)
            device.receive(bytes((command, count, *self._buffer[:count])))
        self._index = 0
        return True

    def _begin_reading(self, device: SmbusDevice) -> None:
        self._reading = True
        self._registers[_BLOCK] = device.send()
        self._registers[_STATUS] |= _BUSY | _BYTE_DONE
        self._signal()

    def _go_on(self) -> None:
        # The driver has taken a byte.
        device = self._bus.at(self._registers[_ADDRESS] >> 1)
        if not self._reading or device is None:
            return
        if self._registers[_CONTROL] & _LAST_BYTE:
            self._reading = False
            self._registers[_STATUS] &= ~_BUSY
            self._end(_DONE)
        else:
            self._registers[_BLOCK] = device.send()
            self._registers[_STATUS] |= _BYTE_DONE

    def _end(self, status: int) -> None:
        self._registers[_STATUS] |= status
        self._signal()
