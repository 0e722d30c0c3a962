"""What the controller says of itself, its namespace and its logs (5.14, 5.15)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qobra.machine.nvme.namespace import MAX_NAMESPACES, Namespace

if TYPE_CHECKING:
    from qobra.machine.device.nvme import Nvme

VERSION = 0x00010400
_FIRMWARE = b"1.0     "
_WARNING_KELVIN, _CRITICAL_KELVIN = 0x157, 0x175
TEMPERATURE_KELVIN = 323
_COMPARE, _DATA_SET, _WRITE_ZEROES, _SELECT, _TIMESTAMP, _VERIFY = 0x01, 0x04, 0x08, 0x10, 0x40, 0x80
_OPTIONAL = _COMPARE | _DATA_SET | _WRITE_ZEROES | _SELECT | _TIMESTAMP | _VERIFY
# By opcode: there is such a command (1), it changes blocks (2), or which namespaces there are (8).
_ADMIN_EFFECTS = dict.fromkeys((0, 1, 2, 4, 5, 6, 8, 9, 10, 12), 1) | {0x15: 9}
_IO_EFFECTS = {0x00: 3, 0x01: 3, 0x02: 1, 0x05: 1, 0x08: 3, 0x09: 3, 0x0C: 1}


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
    data[76] = 0x02 if device.subsys is not None else 0  # other controllers may have the same namespaces
    data[77] = device.mdts
    data[78:80] = _number(device.controller_id, 2)
    data[80:84] = _number(VERSION, 4)
    data[92:96] = _number(1 << 8, 4)  # notices of changed namespaces
    data[111] = 1  # an I/O controller
    data[256:258] = _number(0x08, 2)  # namespaces can be attached
    data[258], data[259] = 3, device.aerl
    # One firmware slot, read-only; logs of health for each namespace, of effects, and any part of a log.
    data[260], data[261] = 3, 0x07
    data[266:270] = _number(_WARNING_KELVIN, 2) + _number(_CRITICAL_KELVIN, 2)
    data[512], data[513] = 0x66, 0x44  # sizes of the queues' entries, as powers of two
    data[516:520] = _number(MAX_NAMESPACES, 4)
    data[520:522] = _number(_OPTIONAL, 2)
    data[525] = 0x07  # a volatile write cache; flush takes all namespaces
    data[768:1024] = device.subsystem_name.encode()[:255].ljust(256, b"\0")
    data[2048:2050] = _number(0x9C4, 2)  # 25 watts
    data[2052:2060] = _number(0x10, 4) + _number(4, 4)
    return bytes(data)


def namespace(namespace: Namespace) -> bytes:
    """Identify Namespace: one format, without metadata."""
    data = bytearray(4096)
    blocks = namespace.blocks
    data[0:24] = _number(blocks, 8) * 3
    data[24] = 0x10  # tells what sizes are good
    data[30] = 0x01 if namespace.shared else 0
    data[33] = 0x01  # deallocated blocks read as zeroes
    granularity = max(namespace.granularity // namespace.block_size, 1) - 1
    data[68:72] = _number(granularity & 0xFFFF, 2) * 2
    data[120:128] = namespace.eui64.to_bytes(8, "big")
    data[130] = namespace.block_size.bit_length() - 1
    return bytes(data)


def identifiers(namespace: Namespace) -> bytes:
    """Namespace Identification Descriptors; the command set is that of block devices."""
    data = bytearray()
    if namespace.uuid:
        data += bytes((3, 16, 0, 0)) + namespace.uuid
    if namespace.eui64:
        data += bytes((1, 8, 0, 0)) + namespace.eui64.to_bytes(8, "big")
    return bytes(data + bytes((4, 1, 0, 0, 0))).ljust(4096, b"\0")


def numbers(values: list[int], width: int) -> bytes:
    """A list of namespaces or controllers."""
    return b"".join(value.to_bytes(width, "little") for value in values)[:4096].ljust(4096, b"\0")


def effects() -> bytes:
    """The log of commands that there are, and what changes by them."""
    data = bytearray(4096)
    for start, commands in ((0, _ADMIN_EFFECTS), (1024, _IO_EFFECTS)):
        for opcode, effect in commands.items():
            data[start + 4 * opcode] = effect
    return bytes(data)


def health(device: Nvme, namespaces: list[Namespace]) -> bytes:
    """The log of health: temperature, and how much was read and written in ``namespaces``."""
    data = bytearray(512)
    data[0] = device.smart_critical_warning
    data[1:3] = _number(TEMPERATURE_KELVIN, 2)
    data[3] = 100
    data[4] = 10
    accounts = [each.backend.accounting for each in namespaces]
    for at, value in (
        (32, -(-sum(each.bytes[0] for each in accounts) // 512000)),
        (48, -(-sum(each.bytes[1] for each in accounts) // 512000)),
        (64, sum(each.operations[0] for each in accounts)),
        (80, sum(each.operations[1] for each in accounts)),
    ):
        data[at : at + 16] = _number(value, 16)
    data[112:128] = _number(1, 16)
    data[128:144] = _number(device.board.clock.now_ns() // (3600 * 10**9), 16)
    return bytes(data)


def firmware() -> bytes:
    """The log of firmware slots: one, in use."""
    return (b"\x01".ljust(8, b"\0") + _FIRMWARE).ljust(512, b"\0")
