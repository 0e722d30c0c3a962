"""The 512 bytes of IDENTIFY DEVICE and IDENTIFY PACKET DEVICE (ATA/ATAPI-7, sections 6.16 and 6.17)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qobra.machine.ata.atapi import PacketDevice
    from qobra.machine.ata.device import AtaDevice
    from qobra.machine.ata.disk import Disk

Words = dict[int, int]


def disk(drive: Disk) -> bytes:
    """What a disk says of itself."""
    sectors, (cylinders, heads, per_track) = drive.sectors, drive.geometry
    shown = cylinders * heads * per_track
    trims = bool(drive.granularity)
    short = min(sectors, (1 << 28) - 1)
    words: Words = _identity(drive) | {
        0: 0x0040, 1: cylinders, 3: heads, 4: 512 * per_track, 5: 512, 6: per_track,
        47: 0x8010, 48: 1, 49: 0x0B00, 51: 0x0200, 52: 0x0200, 53: 7,
        54: cylinders, 55: heads, 56: per_track, 57: shown & 0xFFFF, 58: shown >> 16 & 0xFFFF,
        59: 0x0100 | drive.multiple if drive.multiple else 0,
        60: short & 0xFFFF, 61: short >> 16,
        65: 120, 66: 120, 67: 120, 68: 120, 69: 0x4000 if trims else 0,
        80: 0x00F0, 81: 0x0016,
        82: 0x4021, 83: 0x7400, 84: 0x4100 if drive.wwn else 0x4000,
        85: 0x4001 | (0x20 if drive.write_cache_on else 0), 86: 0x3400, 87: 0x4100 if drive.wwn else 0x4000,
        93: 0x6001, 106: 0x6000 | ((drive.physical_size // 512).bit_length() - 1),
        169: int(trims), 217: drive.rotation_rate,
    }  # fmt: skip
    for i in range(4):
        words[100 + i] = sectors >> 16 * i & 0xFFFF
        if drive.wwn:
            words[108 + i] = drive.wwn >> 16 * (3 - i) & 0xFFFF
    if drive.ide_bus.ncq:
        words |= {75: 31, 76: 0x0100}
    return _pack(words)


def packet_device(drive: PacketDevice) -> bytes:
    """What a CD drive says of itself."""
    words: Words = _identity(drive) | {
        0: 0x85C0, 48: 1, 49: 0x0300, 53: 7, 65: 0xB4, 66: 0xB4, 67: 0x12C, 68: 0xB4, 71: 30, 72: 30, 80: 0x1E,
    }  # fmt: skip
    if drive.wwn:
        words |= {84: 0x0100, 87: 0x0100} | {108 + i: drive.wwn >> 16 * (3 - i) & 0xFFFF for i in range(4)}
    if drive.ide_bus.ncq:
        words |= {75: 31, 76: 0x0100}
    return _pack(words)


def _identity(drive: AtaDevice) -> Words:
    words: Words = {20: 3, 21: 512, 22: 4}
    single, multi, ultra = drive.transfer_modes
    words |= {62: single, 63: multi, 64: 3, 88: ultra}
    _text(words, 10, 10, drive.serial_text)
    _text(words, 23, 4, drive.ver or "")
    _text(words, 27, 20, drive.model or drive.default_model)
    return words


def _text(words: Words, start: int, count: int, text: str) -> None:
    # Two characters a word, the first in the high byte.
    data = text.encode("ascii", "replace")[: 2 * count].ljust(2 * count)
    for i in range(count):
        words[start + i] = data[2 * i] << 8 | data[2 * i + 1]


def _pack(words: Words) -> bytes:
    data = bytearray(512)
    for number, value in words.items():
        data[2 * number : 2 * number + 2] = value.to_bytes(2, "little")
    return bytes(data)
