"""What the controller says of itself, its namespace and its logs (5.14, 5.15)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qobra.machine.device.nvme import Nvme

VERSION = 0x00010400
_FIRMWARE = b"1.0     "
_WARNING_KELVIN, _CRITICAL_KELVIN = 0x157, 0x175
TEMPERATURE_KELVIN = 323
_COMPARE, _DATA_SET, _WRITE_ZEROES, _SELECT, _TIMESTAMP, _VERIFY = 0x01, 0x04, 0x08, 0x10, 0x40, 0x80


def _number(value: int, width: int) -> bytes:
    return value.to_bytes(width, "little")


def controller(device: Nvme) -> bytes:
    """Identify Controller."""
    data = bytearray(4096)
    serial = (device.serial or "").encode("ascii", "replace")[:20]
    data[0:4] = _number(device.vendor_id, 2) + _number(device.subsystem_vendor_id, 2)
    data[4:24] = serial.ljust(20)
    data[24:64] = b"QEMU NVMe Ctrl".ljust(40)
    data[64:72] = _FIRMWARE
    data[72:76] = bytes((6, 0x00, 0x54, 0x52))  # arbitration burst, then the vendor's number
    data[77] = device.mdts
    data[80:84] = _number(VERSION, 4)
    data[92:96] = _number(1 << 8, 4)  # notices of changed namespaces
    data[111] = 1  # an I/O controller
    data[258], data[259] = 3, device.aerl
    data[260], data[261] = 3, 0x04  # one firmware slot, read-only; any part of a log
    data[266:270] = _number(_WARNING_KELVIN, 2) + _number(_CRITICAL_KELVIN, 2)
    data[512], data[513] = 0x66, 0x44  # sizes of the queues' entries, as powers of two
    data[516:520] = _number(1, 4)
    data[520:522] = _number(_COMPARE | _DATA_SET | _WRITE_ZEROES | _SELECT | _TIMESTAMP | _VERIFY, 2)
    data[525] = 0x07  # a volatile write cache; flush takes all namespaces
    data[768:1024] = (b"nqn.2019-08.org.qemu:" + serial).ljust(256, b"\0")
    data[2048:2050] = _number(0x9C4, 2)  # 25 watts
    data[2052:2060] = _number(0x10, 4) + _number(4, 4)
    return bytes(data)


def namespace(device: Nvme) -> bytes:
    """Identify Namespace: one format, without metadata."""
    data = bytearray(4096)
    blocks = device.blocks
    data[0:24] = _number(blocks, 8) * 3
    data[24] = 0x10  # tells what sizes are good
    data[33] = 0x01  # deallocated blocks read as zeroes
    granularity = max(device.granularity // device.logical_size, 1) - 1
    data[68:72] = _number(granularity & 0xFFFF, 2) * 2
    data[130] = device.logical_size.bit_length() - 1
    return bytes(data)


def identifiers() -> bytes:
    """Namespace Identification Descriptors: the command set is that of block devices."""
    return bytes((4, 1, 0, 0, 0)).ljust(4096, b"\0")


def health(device: Nvme) -> bytes:
    """The log of health: temperature, and how much was read and written."""
    data = bytearray(512)
    data[0] = device.smart_critical_warning
    data[1:3] = _number(TEMPERATURE_KELVIN, 2)
    data[3] = 100
    data[4] = 10
    if device.backend is not None:
        accounting = device.backend.accounting
        for at, value in (
            (32, -(-accounting.bytes[0] // 512000)),
            (48, -(-accounting.bytes[1] // 512000)),
            (64, accounting.operations[0]),
            (80, accounting.operations[1]),
        ):
            data[at : at + 16] = _number(value, 16)
    data[112:128] = _number(1, 16)
    data[128:144] = _number(device.board.clock.now_ns() // (3600 * 10**9), 16)
    return bytes(data)


def firmware() -> bytes:
    """The log of firmware slots: one, in use."""
    return (b"\x01".ljust(8, b"\0") + _FIRMWARE).ljust(512, b"\0")
